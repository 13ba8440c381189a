from __future__ import annotations

import errno
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from ddim.checkpoints.calibration import write_calibration
from ddim.data import pixels as images
from ddim.data.sheet import enlarged
from ddim.model.drawing import sample
from ddim.model.opening import load
from ddim.samplers.sampler import Sampler

FAST = ("--steps", 3, "--threads", 1, "--device", "cpu", "--quiet")


def expected(model: Path, n: int, **options) -> torch.Tensor:
    """What the library draws, as bytes."""
    return images.to_pixels(sample(load(model), n, **{"steps": 3, **options}))


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image))[None]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- what is written ------------------------------------------------------------------------------


def test_png_is_a_grid(ddim, tiny, tmp_path):
    answer = ddim("sample", "--model", tiny, "-n", 5, "--columns", 3, *FAST)
    assert answer.status == 0
    assert answer.err == ""
    assert answer.out.startswith("samples.png: 5 images by ddim in 3 steps, 3 network calls each")
    assert names(tmp_path) == ["samples.png", "samples.png.run.toml"]
    assert torch.equal(
        pixels(tmp_path / "samples.png"), enlarged(images.grid(expected(tiny, 5), 3))
    )


@pytest.mark.parametrize("n", [1, 8, 13])
def test_trap_exact_count_of_images_in_an_array(ddim, tiny, tmp_path, n):
    ddim("sample", "--model", tiny, "-n", n, "--batch-size", 8, "--output", "x.npz", *FAST)
    with np.load(tmp_path / "x.npz") as archive:
        assert archive.files == ["images"]
        found = archive["images"]
    assert (found.shape, found.dtype) == ((n, 8, 8, 1), np.uint8)
    assert torch.equal(torch.from_numpy(found).permute(0, 3, 1, 2), expected(tiny, n))


def test_trap_exact_count_of_images_in_a_folder(ddim, tiny, tmp_path):
    ddim("sample", "--model", tiny, "-n", 13, "--batch-size", 8, "--output", "out", *FAST)
    assert names(tmp_path / "out") == [f"{i:06d}.png" for i in range(13)] + ["run.toml"]
    for i, image in enumerate(expected(tiny, 13)):
        assert torch.equal(pixels(tmp_path / "out" / f"{i:06d}.png"), image), i


def test_an_animation_has_its_images_in_order_however_many_batches_are_under_way(
    ddim, tiny, tmp_path
):
    threads = torch.get_num_threads()
    words = ("sample", "--model", tiny, "-n", 12, "--batch-size", 1, "--steps", 3, "--quiet")
    for count in (1, 4, 4, 4):
        out = tmp_path / f"{count}.gif"
        assert ddim(*words, "--threads", count, "--force", "--output", out).status == 0
        assert out.read_bytes() == (tmp_path / "1.gif").read_bytes()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("scale", [1, 3])
def test_the_scale_of_a_grid_is_an_option(ddim, tiny, tmp_path, scale):
    ddim("sample", "--model", tiny, "-n", 5, "--scale", scale, *FAST)
    wanted = images.grid(expected(tiny, 5))
    wanted = wanted.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    assert torch.equal(pixels(tmp_path / "samples.png"), wanted)


def test_one_image_keeps_its_own_pixels(ddim, tiny, tmp_path):
    ddim("sample", "--model", tiny, "-n", 1, *FAST)
    assert torch.equal(pixels(tmp_path / "samples.png"), expected(tiny, 1)[0])
    ddim("sample", "--model", tiny, "-n", 1, "--scale", 2, "--output", "two.png", *FAST)
    assert pixels(tmp_path / "two.png").shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("match", "flags"),
    [
        ("--scale must be at least 1, not 0", ["--scale", 0]),
        ("--scale is for a grid .* not out", ["--scale", 2, "--output", "out"]),
        ("--scale is for a grid .* not x.npz", ["--scale", 2, "--output", "x.npz"]),
        ("the picture would have 100,000 x 100,000 pixels", ["--scale", 10_000]),
    ],
)
def test_a_scale_that_cannot_be_is_refused_before_anything_is_drawn(
    fails, tiny, tmp_path, match, flags
):
    fails(2, match, "sample", "--model", tiny, "-n", 1, *FAST, *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["gif", "webp"])
@pytest.mark.parametrize(("steps", "frames"), [(1, 1), (3, 3), (20, 20)])
def test_animations_have_a_frame_for_each_step(ddim, tiny, tmp_path, kind, steps, frames):
    answer = ddim(
        "sample", "--model", tiny, "-n", 9, "--output", f"x.{kind}", *FAST, "--steps", steps
    )
    assert answer.status == 0
    with Image.open(tmp_path / f"x.{kind}") as image:
        assert image.format == kind.upper()
        assert image.n_frames == frames
        image.seek(frames - 1)
        last = torch.from_numpy(np.array(image.convert("L")))[None]
    assert torch.equal(last, enlarged(images.grid(expected(tiny, 9, steps=steps))))


def test_long_animations_are_thinned_out(ddim, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("ddim.cli.sample.FRAMES", 6)
    ddim("sample", "--model", tiny, "-n", 2, "--output", "x.webp", *FAST, "--steps", 20)
    with Image.open(tmp_path / "x.webp") as image:
        assert image.n_frames == 5
        image.seek(4)
        last = torch.from_numpy(np.array(image.convert("L")))[None]
    assert torch.equal(last, enlarged(images.grid(expected(tiny, 2, steps=20))))


def test_classes_are_taken_in_turn_or_as_listed(ddim, conditional, tmp_path):
    ddim("sample", "--model", conditional, "-n", 5, "--output", "a.npz", *FAST)
    ddim(
        "sample", "--model", conditional, "-n", 5, "--output", "b.npz", *FAST,
        "--labels", 2, 0, "--guidance", 2,
    )  # fmt: skip
    for name, labels, guidance in [("a", [0, 1, 2, 0, 1], 1.0), ("b", [2, 0, 2, 0, 2], 2.0)]:
        with np.load(tmp_path / f"{name}.npz") as archive:
            assert archive["labels"].tolist() == labels
            found = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2)
        wanted = expected(conditional, 5, labels=labels, guidance=guidance)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--eta", 0.5, "--seed", 9], {"eta": 0.5, "seed": 9}),
        (["--method", "ddpm"], {"method": "ddpm"}),
        (["--nodes", "quadratic"], {"nodes": "quadratic"}),
        (["--clip", "True"], {"clip": True}),
        (["--batch-size", 1], {"batch_size": 1}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_reach_the_sampler(ddim, tiny, tmp_path, flags, options):
    assert ddim("sample", "--model", tiny, "-n", 3, *FAST, *flags).status == 0
    assert torch.equal(
        pixels(tmp_path / "samples.png"), enlarged(images.grid(expected(tiny, 3, **options)))
    )


def test_nodes_as_a_list_and_the_default_number_of_steps(ddim, tiny, tmp_path):
    fast = [a for a in FAST if a not in ("--steps", 3)]
    answer = ddim("sample", "--model", tiny, "-n", 2, "--nodes", "20,9,4,0", "--json", *fast)
    assert json.loads(answer.out)["steps"] == 3
    wanted = images.grid(images.to_pixels(sample(load(tiny), 2, nodes=[20, 9, 4, 0])))
    assert torch.equal(pixels(tmp_path / "samples.png"), enlarged(wanted))
    answer = ddim("sample", "--model", tiny, "-n", 1, "--output", "b.png", "--json", *fast)
    assert json.loads(answer.out)["steps"] == 20  # T, which is below 50


def test_double_precision(ddim, tiny, tmp_path):
    answer = ddim("sample", "--model", tiny, "-n", 2, "--dtype", "float64", *FAST)
    assert answer.status == 0
    found = pixels(tmp_path / "samples.png").int()
    assert (found - enlarged(images.grid(expected(tiny, 2))).int()).abs().max() <= 1


def test_the_network_in_bfloat16(ddim, tiny, tmp_path):
    answer = ddim("sample", "--model", tiny, "-n", 2, "--dtype", "bfloat16", *FAST)
    assert answer.status == 0
    assert answer.out.endswith("in bfloat16\n")
    found = pixels(tmp_path / "samples.png").int()
    difference = (found - enlarged(images.grid(expected(tiny, 2))).int()).abs()
    assert 0 < difference.max() <= 12
    assert difference.float().mean() < 1


def test_json_is_on_stdout_and_progress_on_stderr(ddim, conditional):
    fast = [a for a in FAST if a != "--quiet"]
    answer = ddim("sample", "--model", conditional, "-n", 9, "--guidance", 2, "--json", *fast)
    facts = json.loads(answer.out)
    assert facts.pop("seconds") > 0
    assert facts == {
        "output": "samples.png",
        "images": 9,
        "drawn": 9,
        "method": "ddim",
        "steps": 3,
        "network_calls": 6,
        "batch_size": 8,
        "backend": "torch",
        "dtype": "float32",
    }
    assert "6/6" in answer.err


def test_steps_by_guidance_cost_two_calls_each(ddim, conditional):
    plain = ddim("sample", "--model", conditional, "-n", 1, "--json", *FAST)
    assert json.loads(plain.out)["network_calls"] == 3


# -- the record -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "npz", "webp"])
def test_the_record_given_back_draws_the_same_bytes(ddim, conditional, tmp_path, kind):
    ddim(
        "sample", "--model", conditional, "-n", 5, "--output", f"a.{kind}", *FAST,
        "--eta", 0.3, "--seed", 4, "--labels", 1, 2, "--guidance", 1.5, "--clip", "False",
    )  # fmt: skip
    answer = ddim("sample", "--config", f"a.{kind}.run.toml", "--output", f"b.{kind}")
    assert answer.status == 0
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    if kind == "npz":  # nor does the archive tell the time, by which it would differ
        with zipfile.ZipFile(tmp_path / "a.npz") as archive:
            assert {member.date_time[0] for member in archive.infolist()} == {1980}
    one, two = ((tmp_path / f"{name}.{kind}.run.toml").read_text() for name in "ab")
    assert one.replace("a.", "b.") == two


def test_the_record_holds_what_was_resolved(ddim, tiny, tmp_path):
    ddim("sample", "--model", tiny, "-n", 1, "--force", "--json", "--device", "cpu", "--quiet")
    record = (tmp_path / "samples.png.run.toml").read_text()
    for line in ("steps = 20", "batch_size = 8", "# model: tiny"):
        assert line in record.splitlines()
    assert not re.search("^(force|json|quiet)", record, re.MULTILINE)


def test_a_record_over_its_own_output_needs_force(ddim, fails, tiny, tmp_path):
    ddim("sample", "--model", tiny, "-n", 2, "--output", "out", *FAST)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    fails(2, "out exists already", "sample", "--config", "out/run.toml")
    assert ddim("sample", "--config", "out/run.toml", "--force").status == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


# -- going on with a folder -----------------------------------------------------------------------


def test_trap_a_resumed_folder_is_the_identical_set(ddim, conditional, tmp_path):
    arguments = (
        "sample", "--model", conditional, "-n", 13, "--output", "out", *FAST,
        "--method", "ddpm", "--guidance", 2,
    )  # fmt: skip
    ddim(*arguments)
    folder = tmp_path / "out"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    for index in (0, 3, 7, 8, 12):
        (folder / f"{index:06d}.png").unlink()
    kept = (folder / "000001.png").stat().st_mtime_ns
    answer = ddim(*arguments, "--resume", "--json")
    assert (json.loads(answer.out)["drawn"], json.loads(answer.out)["images"]) == (5, 13)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert (folder / "000001.png").stat().st_mtime_ns == kept
    answer = ddim(*arguments, "--resume", "--json")
    assert json.loads(answer.out)["drawn"] == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_folder_may_grow_but_not_shrink(ddim, fails, tiny, tmp_path):
    arguments = ("sample", "--model", tiny, "--output", "out", *FAST)
    ddim(*arguments, "-n", 3)
    ddim(*arguments, "-n", 10, "--resume")
    ddim("sample", "--model", tiny, "--output", "all", *FAST, "-n", 10)
    for i in range(10):
        one, two = (tmp_path / folder / f"{i:06d}.png" for folder in ("out", "all"))
        assert one.read_bytes() == two.read_bytes()
    fails(2, "begun with n = 10, which may grow but not shrink", *arguments, "-n", 9, "--resume")


def test_resuming_with_other_options_is_refused(ddim, fails, tiny, conditional, tmp_path):
    arguments = ("sample", "--model", tiny, "-n", 3, "--output", "out", *FAST)
    ddim(*arguments)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    for flag, value, match in [
        ("--seed", 1, "begun with seed = 0, not 1"),
        ("--steps", 4, "begun with steps = 3, not 4"),
        ("--eta", 0.5, "begun with eta = None, not 0.5"),
        ("--batch-size", 1, "begun with batch_size = 8, not 1"),
        ("--nodes", "quadratic", "begun with nodes = nothing, not quadratic"),
        ("--method", "ddpm", "begun with method = ddim, not ddpm"),
        ("--model", conditional, "begun with model = .*tiny, not .*conditional"),
    ]:
        fails(2, f"out/run.toml was {match}", *arguments, "--resume", flag, value)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_resuming_a_folder_that_is_not_ours_is_refused(ddim, fails, tiny, tmp_path):
    arguments = ("sample", "--model", tiny, "-n", 2, "--output", "out", *FAST, "--resume")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "000000.png").write_bytes(b"mine")
    fails(2, "out exists already", *arguments)
    assert names(tmp_path / "out") == ["000000.png"]
    (tmp_path / "out" / "000000.png").unlink()
    assert ddim(*arguments).status == 0
    assert len(names(tmp_path / "out")) == 3
    fails(2, "--resume goes with a folder", "sample", "--output", "x.png", "--resume")


def test_resuming_with_other_weights_is_refused(ddim, fails, tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    arguments = ("sample", "--model", copy, "-n", 3, "--output", "out", *FAST)
    assert ddim(*arguments).status == 0
    (tmp_path / "out" / "000001.png").unlink()
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    safetensors.torch.save_file({**weights, "conv_in.bias": weights["conv_in.bias"] + 1}, path)
    fails(2, "begun with other weights", *arguments, "--resume")
    assert not (tmp_path / "out" / "000001.png").exists()


def test_resuming_with_another_calibration_is_refused(ddim, fails, tiny, tmp_path):
    """Its name is the same, and the images are others."""
    copy = shutil.copytree(tiny, tmp_path / "copy")
    model = load(copy)
    for method in ("ddim", "dpmpp"):
        sampler = Sampler(method, nodes=(20, 9, 0))
        moments = (20, 0), np.array([0.5]), 1
        path = copy / "calibrated.json"
        write_calibration(path, model.identity, model.schedule, sampler, moments, {})
        if method == "ddim":
            arguments = ("sample", "--model", copy, "-n", 2, "--output", "out", "--quiet")
            arguments += ("--method", "calibrated", "--steps", 2)
            assert ddim(*arguments).status == 0
            (tmp_path / "out" / "000001.png").unlink()
            assert ddim(*arguments, "--resume").status == 0
            (tmp_path / "out" / "000001.png").unlink()
    fails(2, "begun with another sampler, calibrated anew, perhaps", *arguments, "--resume")


def test_half_an_image_that_a_kill_left_goes(ddim, tiny, tmp_path):
    arguments = ("sample", "--model", tiny, "-n", 2, "--output", "out", *FAST)
    assert ddim(*arguments).status == 0
    (tmp_path / "out" / "000001.png").unlink()
    (tmp_path / "out" / ".000001.png.x1y2z3_4.png").write_bytes(b"half")
    assert ddim(*arguments, "--resume").status == 0
    assert names(tmp_path / "out") == ["000000.png", "000001.png", "run.toml"]


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda data, end=end: data[:end] for end in (0, 7, 8, 33, -13, -12, -1)),
        lambda data: data + b"x",
        lambda data: data[:45] + bytes([data[45] ^ 1]) + data[46:],
        lambda data: bytes(len(data)),
    ],
)
def test_a_damaged_image_is_drawn_again(ddim, tiny, tmp_path, damage):
    arguments = ("sample", "--model", tiny, "-n", 3, "--output", "out", *FAST)
    ddim(*arguments)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    path = tmp_path / "out" / "000002.png"
    path.write_bytes(damage(before[path.name]))
    assert json.loads(ddim(*arguments, "--resume", "--json").out)["drawn"] == 1
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_a_damaged_record_is_said_in_one_line(ddim, fails, tiny, tmp_path):
    arguments = ("sample", "--model", tiny, "-n", 2, "--output", "out", *FAST)
    ddim(*arguments)
    path = tmp_path / "out" / "run.toml"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged in (b"", whole[: len(whole) // 2], b"".join(lines[:-2]), b"\xff\x00", b"n = [[["):
        path.write_bytes(damaged)
        fails(2, "run.toml (is damaged|is not valid TOML|takes|: )", *arguments, "--resume")
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    assert ddim(*arguments, "--resume").status == 0


def test_trap_force_that_was_killed_while_it_removed_what_was_there(ddim, tiny, tmp_path):
    """What was left of the earlier run must not be taken for images of this one."""
    arguments = ("sample", "--model", tiny, "-n", 3, "--output", "out", *FAST)
    ddim(*arguments, "--seed", 1)
    wanted = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    ddim(*arguments, "-n", 4, "--force")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddim.cli.sample.clear_images", lambda folder: 1 / 0)
        assert ddim(*arguments, "--seed", 1, "--force").status == 1
    assert len(names(tmp_path / "out")) == 5
    assert ddim(*arguments, "--seed", 1, "--resume").status == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == wanted


def test_resuming_before_anything_was_written(ddim, tiny, tmp_path):
    """A kill right after the folder was made, or while its record was written."""
    arguments = ("sample", "--model", tiny, "-n", 2, "--output", "out", *FAST)
    for left in ((), (".lock",), (".lock", ".run.toml.abcd_123.toml")):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").mkdir()
        for name in left:
            (tmp_path / "out" / name).write_bytes(b"")
        assert ddim(*arguments, *(["--resume"] if len(left) != 1 else [])).status == 0
        assert names(tmp_path / "out") == ["000000.png", "000001.png", "run.toml"]


def test_resuming_with_other_images_of_the_same_name_is_refused(ddim, fails, tiny, tmp_path):
    def write(name: str, seed: int, colours: int) -> None:
        numbers = np.random.default_rng(seed).integers(0, 2, (8, 8), dtype=np.uint8)
        Image.fromarray(numbers * colours).save(tmp_path / name)

    write("photo.png", 0, 200)
    write("mask.png", 1, 255)
    arguments = ("sample", "--model", tiny, "-n", 2, "--output", "out", *FAST)
    arguments += ("--images", "photo.png", "--mask", "mask.png", "--strength", 0.5)
    assert ddim(*arguments).status == 0
    (tmp_path / "out" / "000001.png").unlink()
    for name, seed, colours in (("photo.png", 2, 200), ("mask.png", 3, 255)):
        before = (tmp_path / name).read_bytes()
        write(name, seed, colours)
        fails(2, "begun with other images or another mask", *arguments, "--resume")
        (tmp_path / name).write_bytes(before)
    assert ddim(*arguments, "--resume").status == 0


def test_options_that_would_have_no_effect(fails, tmp_path):
    fails(
        2,
        "--resume keeps .*, --force gives it up",
        "sample",
        "--output",
        "out",
        "--resume",
        "--force",
    )
    fails(2, "--data-root is .*give --images", "sample", "--data-root", "there")
    assert names(tmp_path) == []


def test_force_keeps_images_that_are_not_ours(ddim, tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "012345.png").write_bytes(b"mine")
    ddim("sample", "--model", tiny, "-n", 1, "--output", "out", *FAST, "--force")
    assert names(tmp_path / "out") == ["000000.png", "012345.png", "run.toml"]


def test_a_broken_network_is_a_failure(fails, tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    safetensors.torch.save_file({**weights, "conv_out.bias": torch.full((1,), 3e38)}, path)
    match = (
        "what tiny draws by ddim:steps=3 is not finite, image 0 from step 1 of 3 on: `ddim checks`"
    )
    fails(1, match, "sample", "--model", copy, "-n", 2, *FAST)
    fails(1, match, "sample", "--model", copy, "-n", 2, "--output", "out", *FAST)


def test_trap_force_leaves_no_image_of_the_run_before(ddim, tiny, tmp_path):
    ddim("sample", "--model", tiny, "-n", 5, "--output", "out", *FAST)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    ddim("sample", "--model", tiny, "-n", 2, "--output", "out", *FAST, "--seed", 1, "--force")
    assert names(tmp_path / "out") == ["000000.png", "000001.png", "notes.txt", "run.toml"]
    for i, image in enumerate(expected(tiny, 2, seed=1)):
        assert torch.equal(pixels(tmp_path / "out" / f"{i:06d}.png"), image)


def test_interrupted_in_the_middle_and_resumed(ddim, fails, tiny, tmp_path, monkeypatch):
    arguments = ("sample", "--model", tiny, "-n", 13, "--output", "out", *FAST)
    inner, calls = images.save_image, []

    def interrupt(path: Path, image: torch.Tensor) -> None:
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        inner(path, image)

    with monkeypatch.context() as patch:
        patch.setattr(images, "save_image", interrupt)
        fails(130, "interrupted", *arguments)
    assert len(names(tmp_path / "out")) == 5 + 1
    ddim(*arguments, "--resume")
    for i, image in enumerate(expected(tiny, 13)):
        # Other images share the batch, and change nothing.
        assert torch.equal(pixels(tmp_path / "out" / f"{i:06d}.png"), image)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "flags"),
    [
        ("the number of steps must be at least 1, not 0", ["--steps", 0]),
        ("steps must be from 1 to T = 20, not 21", ["--steps", 21]),
        ("the number of steps must be at least 1, not -3", ["--steps", -3]),
        ("eta must be at least 0, not -1", ["--eta", -1]),
        ("eta must be a finite number, not nan", ["--eta", "nan"]),
        ("eta = 3 is too large: .* the largest is", ["--eta", 3]),
        ("unknown method 'ddmi': did you mean 'ddpm'", ["--method", "ddmi"]),
        ("'ddpm' has no option 'eta': it has variance", ["--method", "ddpm", "--eta", 1]),
        ("unknown nodes 'unifrom': did you mean 'uniform'", ["--nodes", "unifrom"]),
        ("4 nodes are 3 steps, not 4", ["--nodes", "20,9,4,0", "--steps", 4]),
        ("nodes must be in 0..20", ["--nodes", "500,250,100,0"]),
        ("numbers like 500-250-0", ["--nodes", "20,x,0"]),
        ("unknown model 'mnst': did you mean 'mnist'", ["--model", "mnst"]),
        ("has no classes, so labels mean nothing to it", ["--labels", 1]),
        ("guidance compares with a condition left out", ["--guidance", 2]),
        ("no device 'gpu' here", ["--device", "gpu"]),
        ("threads must be at least 1, not 0", ["--threads", 0]),
        ("the batch size must be at least 1, not 0", ["--batch-size", 0]),
        ("--columns must be at least 1, not 0", ["--columns", 0]),
        ("-n must be at least 1, not 0", ["-n", 0]),
        ("seed must be .*0.*, not -1", ["--seed", -1]),
        ("a .png, .npz, .webp or .gif file, or a folder, not x.jpg", ["--output", "x.jpg"]),
        ("--setps.* did you mean --steps", ["--setps", 3]),
        ("--dtype is one of .*, not 'float16'", ["--dtype", "float16"]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("output", ["x.png", "out"])
def test_bad_input_is_one_line_and_writes_nothing(fails, tiny, tmp_path, match, flags, output):
    fails(2, match, "sample", "--model", tiny, "-n", 2, "--output", output, *FAST, *flags)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("match", "flags"),
    [
        ("labels are from 0 to 2, or 3 for 'none', not 4", ["--labels", 0, 4]),
        ("labels are from 0 to 2, or 3 for 'none', not -1", ["--labels", -1]),
        ("guidance must be a finite number, not nan", ["--guidance", "nan"]),
    ],
)
def test_labels_and_guidance_out_of_range(fails, conditional, tmp_path, match, flags):
    fails(2, match, "sample", "--model", conditional, "-n", 2, "--output", "out", *FAST, *flags)
    assert names(tmp_path) == []


def test_nothing_is_overwritten_without_force(ddim, fails, tiny, tmp_path):
    arguments = ("sample", "--model", tiny, "-n", 1, *FAST, "--output")
    for name in ("x.png", "out"):
        ddim(*arguments, name)
        path = tmp_path / name
        before = [path.read_bytes()] if path.is_file() else names(path)
        fails(2, f"{name} exists already: give --force", *arguments, name, "--seed", 1)
        assert before == ([path.read_bytes()] if path.is_file() else names(path))
        assert ddim(*arguments, name, "--seed", 1, "--force").status == 0
    (tmp_path / "empty").mkdir()
    assert ddim(*arguments, "empty").status == 0


def test_files_that_are_no_model(fails, tiny, tmp_path):
    arguments = ("sample", "-n", 1, *FAST, "--model")
    (tmp_path / "notes.txt").write_text("no tensors in here")
    fails(2, "is not a safetensors file, or is truncated", *arguments, tmp_path / "notes.txt")
    (tmp_path / "folder").mkdir()
    fails(2, "is not a model folder", *arguments, tmp_path / "folder")
    weights = tiny / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:1000])
        fails(2, "is not a safetensors file, or is truncated", *arguments, tiny)
    finally:
        weights.write_bytes(whole)


def test_configurations_that_are_none(fails, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("stpes = 3\n")
    fails(2, "run.toml: unknown key 'stpes': did you mean 'steps'", "sample", "--config", path)
    path.write_text("steps = = 3\n")
    fails(2, "run.toml is not valid TOML", "sample", "--config", path)
    fails(2, "there is no file", "sample", "--config", tmp_path / "nothing.toml")


@pytest.mark.parametrize("name", ["x.png", "x.npz", "x.gif", "out"])
@pytest.mark.parametrize("failing", ["fsync", "write_bytes"])
def test_a_full_disk_leaves_no_partial_file(fails, tiny, tmp_path, monkeypatch, name, failing):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if failing == "fsync" else Path, failing, fail)
    line = fails(1, "", "sample", "--model", tiny, "-n", 2, "--output", name, *FAST)
    assert re.fullmatch(
        rf"ddim sample: cannot write or read {name}\S*: No space left on device", line
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_where_a_file_is(fails, tiny, tmp_path):
    (tmp_path / "out").write_text("a file")
    arguments = ("sample", "--model", tiny, "-n", 1, "--output", "out", *FAST)
    fails(2, "out exists already", *arguments)
    fails(2, "cannot write or read out: File exists", *arguments, "--force")
    assert (tmp_path / "out").read_text() == "a file"


def test_a_method_in_a_file_that_changed_is_not_resumed(ddim, fails, tmp_path):
    source = (
        "import ddim\n"
        "def mine(schedule, nodes, *, share: float = 0.0):\n"
        "    return ddim.make_tableau(schedule, nodes, 'ddim', eta=share)\n"
    )
    (tmp_path / "mine.py").write_text(source)
    words = ("sample", "--method", "mine.py:mine", "--steps", 2, "--output", "drawn", "--quiet")
    assert ddim(*words, "-n", 1).status == 0
    assert ddim(*words, "-n", 2, "--resume").status == 0
    (tmp_path / "mine.py").write_text(source.replace("'ddim'", "'ddim' if nodes else 'heun'"))
    fails(2, "another file of the method", *words, "-n", 3, "--resume")
