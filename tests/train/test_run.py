from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image

from ddim.base.device import pick_device, set_threads
from ddim.base.errors import RunError
from ddim.checkpoints.training import read_training, write_training
from ddim.model.drawing import sample
from ddim.model.opening import load
from ddim.train import loop
from ddim.train.checkpoint import saved_config
from ddim.train.config import TrainConfig
from ddim.train.run import CHECKPOINT, Run, unet_config

Make = Callable[..., Run]


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images of 8 x 8 pixels in three classes."""
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(40) % 3)
    return path


@pytest.fixture
def config(noise: Path) -> TrainConfig:
    """Twelve steps; checkpoints after 4, 8 and 12, metrics after 3, 6, 9 and 12."""
    return TrainConfig(
        data=str(noise),
        channels=(8, 16),
        blocks=1,
        groups=4,
        T=5,
        beta_start=0.1,
        beta_end=0.8,
        batch_size=8,
        images=96,
        save_every=32,
        sample_every=0,
        log_every=3,
        device="cpu",
        threads=1,
    )


def train(run: Run, steps: int | None = None) -> Run:
    """To the end, or closed after some steps."""
    iterator = run.steps()
    for step in iterator:
        if step.step == steps:
            iterator.close()
            break
    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics, without what the clock says."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in found]


def tensors(folder: Path) -> dict[str, bytes]:
    loaded = safetensors.torch.load_file(folder / "checkpoint.safetensors")
    return {key: value.numpy().tobytes() for key, value in loaded.items()}


def assert_same(one: Path, two: Path) -> None:
    assert lines(one) == lines(two)
    assert tensors(one) == tensors(two)
    weights = Path("model", "unet", "diffusion_pytorch_model.safetensors")
    assert (one / weights).read_bytes() == (two / weights).read_bytes()


# -- what a run writes ----------------------------------------------------------------------------


def test_the_files_of_a_run(tmp_path, config):
    config = dataclasses.replace(config, sample_every=48)
    train(Run(config, tmp_path / "run"))
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.safetensors",
        "metrics.jsonl",
        "model",
        "samples",
    ]
    assert saved_config(read_training(folder / CHECKPOINT)) == config
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        "000000048.png",
        "000000096.png",
    ]
    with Image.open(folder / "samples" / "000000096.png") as image:
        assert image.size == (7 * (8 * 8 + 7 * 2),) * 2


def test_lines_of_the_metrics(tmp_path, config):
    losses = []
    for step in Run(config, tmp_path).steps():
        losses.append(step.loss)  # noqa: PERF401
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [3, 6, 9, 12]
    assert [line["images"] for line in found] == [24, 48, 72, 96]
    for line in found:
        assert set(line) == {"step", "images", "loss", "grad_norm", "lr", "images_per_s"}
        mean = sum(losses[line["step"] - 3 : line["step"]]) / 3
        assert line["loss"] == pytest.approx(mean, rel=1e-12)
        assert line["lr"] == config.lr
        assert line["images_per_s"] > 0


def test_the_last_steps_are_logged_and_saved_whatever_the_intervals(tmp_path, config):
    config = dataclasses.replace(config, images=33, log_every=50, save_every=10_000)
    train(Run(config, tmp_path))
    assert [(line["step"], line["images"]) for line in lines(tmp_path)] == [(5, 40)]
    assert load(tmp_path).facts.more["images_seen"] == 40


def test_facts_of_the_model_folder(tmp_path, config, noise):
    train(Run(config, tmp_path / "mine"))
    model = load(tmp_path / "mine" / "model")
    assert model.name == "mine"
    assert model.facts.more["images_seen"] == 96
    assert model.facts.data["name"] == "noise"
    assert set(model.facts.data["sha256"]) == {noise.name}
    assert (model.facts.more["seed"], model.facts.more["threads"]) == (0, 1)


def test_one_configuration_trains_to_one_set_of_weights(tmp_path, config):
    for name in ("one", "two"):
        train(Run(config, tmp_path / name))
    assert_same(tmp_path / "one", tmp_path / "two")
    train(Run(dataclasses.replace(config, seed=1), tmp_path / "three"))
    assert tensors(tmp_path / "three") != tensors(tmp_path / "one")


def test_sample_grids_are_of_the_same_latents_and_change_nothing(tmp_path, config):
    train(Run(config, tmp_path / "without"))
    train(Run(dataclasses.replace(config, sample_every=48), tmp_path / "with"))
    assert_same(tmp_path / "without", tmp_path / "with")


def test_class_conditional_with_dropped_labels_and_mirrored_images(tmp_path, config):
    config = dataclasses.replace(
        config, classes=True, label_dropout=0.5, flip=True, dropout=0.1, sample_every=96
    )
    for name in ("one", "two"):
        train(Run(config, tmp_path / name))
    assert_same(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one" / "samples" / "000000096.png").exists()
    model = load(tmp_path / "one")
    assert (model.classes, model.null_label) == (3, 3)
    assert sample(model, 2, steps=2, guidance=2.0).shape == (2, 1, 8, 8)
    train(Run(dataclasses.replace(config, flip=False), tmp_path / "three"))
    assert tensors(tmp_path / "three") != tensors(tmp_path / "one")


def test_without_dropped_labels_there_is_no_guidance(tmp_path, config, refuses):
    train(Run(dataclasses.replace(config, classes=True, label_dropout=0.0), tmp_path))
    for source in (tmp_path, tmp_path / "model"):
        model = load(source)
        assert (model.classes, model.null_label) == (3, None)
        assert sample(model, 1, steps=1).shape == (1, 1, 8, 8)
        with refuses("was not trained for guidance"):
            sample(model, 1, steps=1, guidance=2.0)


def test_tensorboard_events(tmp_path, config):
    pytest.importorskip("tensorboard")
    train(Run(dataclasses.replace(config, tensorboard=True, sample_every=96), tmp_path))
    events = list((tmp_path / "tensorboard").iterdir())
    assert len(events) == 1
    content = events[0].read_bytes()
    assert all(name in content for name in (b"loss", b"grad_norm", b"lr", b"samples"))


def test_tensorboard_points_after_the_last_checkpoint_come_once(tmp_path, config):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = dataclasses.replace(config, tensorboard=True)
    killed = Run(config, tmp_path)
    for step in killed.steps():
        if step.step == 7:  # logged after 6, saved after 4
            killed.metrics.flush()
            break
    killed.state.step = 4  # nothing more is saved
    train(Run(config, tmp_path, resume=True))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.step for point in events.Scalars("loss")] == [24, 48, 72, 96]


def test_tensorboard_that_is_not_installed(tmp_path, config, monkeypatch, refuses):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with refuses("pip install 'ddim\\[tensorboard\\]'"):
        Run(dataclasses.replace(config, tensorboard=True), tmp_path)


# -- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "classes"), [(1, False), (4, False), (6, False), (11, False), (7, True)]
)
def test_trap_a_resumed_run_goes_on_to_the_same_bits(tmp_path, config, stop, classes):
    config = dataclasses.replace(config, classes=classes, dropout=0.1)
    train(Run(config, tmp_path / "whole"))
    parts = tmp_path / "parts"
    train(Run(config, parts), stop)
    assert load(parts).facts.more["images_seen"] == stop * 8
    train(Run(config, parts, resume=True), stop + 1)
    train(Run(config, parts, resume=True))
    assert_same(tmp_path / "whole", parts)


def test_lines_after_the_last_checkpoint_are_written_again(tmp_path, config):
    train(Run(config, tmp_path / "whole"))
    killed = tmp_path / "killed"
    train(Run(config, killed), 4)
    ahead = lines(tmp_path / "whole")[1]
    with (killed / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(ahead) + "\n" + '{"step": 9, "ima')
    train(Run(config, killed, resume=True))
    assert_same(tmp_path / "whole", killed)


def test_a_failure_while_saving_leaves_the_checkpoint_before_it(tmp_path, config, monkeypatch):
    train(Run(config, tmp_path / "whole"))
    inner, calls = Path.replace, []

    def fail(path: Path, target: Path) -> Path:
        calls.extend([path] if path.name.startswith(".checkpoint.safetensors.") else [])
        if len(calls) > 1:  # the first checkpoint and its model folder are written
            raise OSError(28, "No space left on device")
        return inner(path, target)

    folder = tmp_path / "full"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            train(Run(config, folder))
    assert load(folder).facts.more["images_seen"] == 32
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
    train(Run(config, folder, resume=True))
    assert_same(tmp_path / "whole", folder)


def test_a_failure_in_training_keeps_what_was_learned(tmp_path, config, monkeypatch):
    train(Run(config, tmp_path / "whole"))
    folder = tmp_path / "broken"
    run = Run(config, folder)

    def log(*_: object) -> None:
        raise RuntimeError("the disk has gone")

    monkeypatch.setattr(run.metrics, "write", log)
    with pytest.raises(RuntimeError, match="the disk has gone"):
        train(run)
    assert load(folder).facts.more["images_seen"] == 24


def test_a_run_that_diverges_keeps_what_was_good(tmp_path, config):
    run = Run(config, tmp_path)
    with pytest.raises(RunError, match="no longer finite"):
        for step in run.steps():
            if step.step == 6:
                with torch.no_grad():
                    for parameter in run.state.net.parameters():
                        parameter.fill_(float("nan"))
    assert load(tmp_path).facts.more["images_seen"] == 32
    assert all(bool(p.isfinite().all()) for p in load(tmp_path, weights="net").net.parameters())


def test_an_interruption_within_a_step_saves_nothing_half_done(tmp_path, config, monkeypatch):
    train(Run(config, tmp_path / "whole"))
    folder = tmp_path / "torn"
    run = Run(config, folder)
    inner = loop._average

    def interrupt(*arguments: Any) -> None:
        if run.state.step == 6:  # the weights have been moved, their average has not
            raise KeyboardInterrupt
        inner(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_average", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    assert load(folder).facts.more["images_seen"] == 32
    train(Run(config, folder, resume=True))
    assert_same(tmp_path / "whole", folder)


def test_data_that_moved_is_the_same_and_other_data_is_not(tmp_path, config, noise, refuses):
    train(Run(config, tmp_path / "whole"))
    train(Run(config, tmp_path / "moved"), 6)
    shutil.copy(noise, tmp_path / "renamed.npz")
    moved = dataclasses.replace(config, data=str(tmp_path / "renamed.npz"))
    train(Run(moved, tmp_path / "moved", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "moved")
    np.savez(tmp_path / "other.npz", images=np.zeros((40, 8, 8), np.uint8))
    other = dataclasses.replace(config, data=str(tmp_path / "other.npz"))
    with refuses("other.npz is not the data that the run was begun with"):
        Run(other, tmp_path / "moved", resume=True)


def test_more_images_than_were_asked_for_at_first(tmp_path, config):
    train(Run(config, tmp_path / "whole"))
    half = dataclasses.replace(config, images=48)
    train(Run(half, tmp_path / "grown"))
    train(Run(config, tmp_path / "grown", resume=True))
    assert tensors(tmp_path / "grown") == tensors(tmp_path / "whole")


def test_resuming_what_is_finished_changes_nothing(tmp_path, config):
    train(Run(config, tmp_path))
    before = tensors(tmp_path), lines(tmp_path)
    run = train(Run(config, tmp_path, resume=True))
    assert run.state.step == 12
    assert (tensors(tmp_path), lines(tmp_path)) == before


def test_training_starts_from_a_model(tmp_path, config, refuses):
    """From its averaged weights; resumed, it needs the model no more and ends in the same bits."""
    train(Run(config, tmp_path / "first"))
    model = load(tmp_path / "first")
    more = dataclasses.replace(config, init=str(tmp_path / "first"), seed=1)
    run = Run(more, tmp_path / "second")
    for key, value in model.net.state_dict().items():
        assert torch.equal(run.state.net.state_dict()[key], value)
        assert torch.equal(run.state.ema.state_dict()[key], value)
    train(run)
    origin = {"name": "first", "identity": model.identity}
    assert load(tmp_path / "second").facts.more["init"] == origin
    train(Run(more, tmp_path / "third"), steps=5)
    shutil.rmtree(tmp_path / "first")
    resumed = train(Run(more, tmp_path / "third", resume=True))
    for key, value in run.state.ema.state_dict().items():
        assert torch.equal(resumed.state.ema.state_dict()[key], value)
    assert load(tmp_path / "third").facts.more["init"] == origin
    wider = dataclasses.replace(more, init=str(tmp_path / "second"), channels=(8, 24))
    with refuses("block_out_channels"):
        Run(wider, tmp_path / "fourth")


def test_a_run_begun_anew_forgets_the_old_one(tmp_path, config):
    train(Run(config, tmp_path / "whole"))
    train(Run(dataclasses.replace(config, seed=5), tmp_path / "anew"))
    train(Run(config, tmp_path / "anew"))
    assert_same(tmp_path / "whole", tmp_path / "anew")
    (tmp_path / "anew" / "samples").mkdir(exist_ok=True)
    (tmp_path / "anew" / "samples" / "000000096.png").write_bytes(b"an old grid")
    Run(config, tmp_path / "anew")
    assert not (tmp_path / "anew" / "samples").exists()
    assert not (tmp_path / "anew" / "checkpoint.safetensors").exists()
    assert not [*(tmp_path / "anew").glob("m*")]  # neither the metrics nor the model


@pytest.mark.parametrize("damage", [b"\xff\x00 no text", b"[1]\n{}\n", b"[" * 50_000])
def test_trap_a_damaged_log_never_blocks_a_resume(tmp_path, config, damage):
    train(Run(config, tmp_path / "whole"))
    train(Run(config, tmp_path / "hurt"), 8)
    path = tmp_path / "hurt" / "metrics.jsonl"
    good = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(good[0] + damage + b"\n" + good[1])
    (tmp_path / "hurt" / "model" / "ddim.json").write_bytes(damage)
    train(Run(config, tmp_path / "hurt", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "hurt")


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 4), ("lr", 1e-3), ("seed", 1), ("target", "v"), ("flip", True), ("ema", 0.5)],
)
def test_a_run_is_resumed_as_it_was_begun(tmp_path, config, field, value, refuses):
    train(Run(config, tmp_path), 4)
    before = tensors(tmp_path)
    with refuses(f"the run was begun with {field} = .*, not {value!r}"):
        Run(dataclasses.replace(config, **{field: value}), tmp_path, resume=True)
    assert tensors(tmp_path) == before


def test_a_resumed_run_may_see_its_batches_in_other_parts(tmp_path, config):
    """So a run goes on on a smaller device, and its file says so from then on."""
    train(Run(config, tmp_path / "whole"))
    train(Run(config, tmp_path / "parts"), 4)
    other = dataclasses.replace(config, accumulate=4)
    train(Run(other, tmp_path / "parts", resume=True))
    assert saved_config(read_training(tmp_path / "parts" / CHECKPOINT)) == other
    for one, two in zip(lines(tmp_path / "whole"), lines(tmp_path / "parts"), strict=True):
        assert one["images"] == two["images"]
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


def test_a_run_without_a_checkpoint_begins_again(tmp_path, config):
    """Killed before the first one: what it has logged comes again."""
    train(Run(config, tmp_path / "whole"))
    killed = tmp_path / "killed"
    for step in Run(config, killed).steps():
        if step.step == 3:
            break
    (killed / "checkpoint.safetensors").unlink(missing_ok=True)
    assert [line["step"] for line in lines(killed)] == [3]
    (killed / ".checkpoint.safetensors.abcd1234.safetensors").write_bytes(b"half of it")
    train(Run(config, killed, resume=True))
    assert_same(tmp_path / "whole", killed)
    assert not [*killed.rglob(".*")]


@pytest.mark.parametrize(
    "change",
    [
        {"data": None},
        {"data": {"sha256": 3}},
        {"data": {"sha256": {"noise.npz": 3}}},
        {"interval": None},
        {"interval": [1]},
        {"interval": ["a", 2]},
        {"init": 3},
    ],
)
def test_checkpoints_with_damaged_facts(tmp_path, config, change, refuses):
    train(Run(config, tmp_path), 4)
    saved = read_training(tmp_path / CHECKPOINT)
    path = tmp_path / CHECKPOINT
    write_training(path, saved.config, saved.step, {**saved.facts, **change}, saved.tensors)
    with refuses("checkpoint.safetensors: its header is damaged: "):
        Run(config, tmp_path, resume=True)


def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(tmp_path, config, refuses):
    train(Run(config, tmp_path / "whole"))
    folder = tmp_path / "one"
    first = Run(config, folder)
    for step in first.steps():
        if step.step in (2, 6):  # before and after the first checkpoint
            for resume in (False, True):
                with refuses(f"{folder} is being written by another process"):
                    Run(config, folder, resume=resume)
    assert_same(tmp_path / "whole", folder)
    assert Run(config, folder, resume=True).state.step == 12  # the first has ended
    assert not (folder / ".lock").exists()


def test_a_refused_checkpoint_gives_the_folder_back(tmp_path, config, refuses):
    path = tmp_path / "checkpoint.safetensors"
    path.write_text("text, and quite some of it")
    with refuses("is not a safetensors file"):
        Run(config, tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_checkpoints_that_cannot_be_resumed(tmp_path, config, refuses):
    path = tmp_path / "checkpoint.safetensors"
    path.write_text("text, and quite some of it")
    with refuses("checkpoint.safetensors is not a safetensors file, or is truncated"):
        Run(config, tmp_path, resume=True)
    safetensors.torch.save_file({"x": torch.zeros(2)}, path)
    with refuses("checkpoint.safetensors is not a training checkpoint of ddim"):
        Run(config, tmp_path, resume=True)
    train(Run(config, tmp_path), 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with refuses("is not a safetensors file, or is truncated"):
        Run(config, tmp_path, resume=True)


# -- what is refused ------------------------------------------------------------------------------


def test_data_that_does_not_fit(tmp_path, config, noise, refuses):
    with refuses("images of 8×8 cannot pass through 5 resolutions: .* divisible by 16"):
        Run(dataclasses.replace(config, channels=(8,) * 5), tmp_path)
    with refuses("images of 8 x 8 pixels, not 16 x 16"):
        Run(dataclasses.replace(config, size=16), tmp_path)
    np.savez(tmp_path / "wide.npz", images=np.zeros((4, 8, 16), np.uint8))
    with refuses("images of 8×16 cannot pass"):
        Run(dataclasses.replace(config, data=str(tmp_path / "wide.npz")), tmp_path)
    np.savez(tmp_path / "bare.npz", images=np.zeros((4, 8, 8), np.uint8))
    with refuses("bare.npz has no labels, which a class-conditional model needs"):
        Run(dataclasses.replace(config, data=str(tmp_path / "bare.npz"), classes=True), tmp_path)
    with refuses("head_dim do not fit: block_out_channels 9 is not a multiple of norm_num_groups"):
        Run(dataclasses.replace(config, channels=(9, 16)), tmp_path)


def test_a_refusal_leaves_the_old_checkpoint(tmp_path, config, refuses, monkeypatch):
    train(Run(config, tmp_path), 1)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with refuses("TensorBoard is not installed"):
            Run(dataclasses.replace(config, tensorboard=True), tmp_path)
    assert (tmp_path / "checkpoint.safetensors").exists()
    with refuses("cannot pass through"):
        Run(dataclasses.replace(config, channels=(8,) * 5), tmp_path)
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_devices_and_threads(refuses, monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    with refuses("no device 'gpu' here"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with refuses("no device 'cuda' here"):
            pick_device("cuda")
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    set_threads(None)
    set_threads(2)
    assert asked == [2]
    for count in (0, -3):
        with refuses(f"threads must be at least 1, not {count}"):
            set_threads(count)


def test_the_network_of_a_configuration():
    config = TrainConfig(channels=(32, 64, 64), attention=(14,), blocks=2, head_dim=16)
    unet = unet_config(config, (3, 28, 28), 10)
    assert unet.down_block_types == ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    assert unet.up_block_types == ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    assert unet.num_class_embeds == 11
    # Those of the official DDPM and DDIM networks.
    assert (unet.norm_eps, unet.downsample_padding) == (1e-6, 0)
    assert (unet.flip_sin_to_cos, unet.freq_shift) == (False, 1)
    assert (unet.in_channels, unet.out_channels, unet.sample_size) == (3, 3, 28)
    assert unet_config(config, (3, 28, 28), None).num_class_embeds is None


def test_attention_where_there_is_no_such_resolution(refuses):
    for attention in ((15,), (14, 3), (56,)):
        config = TrainConfig(channels=(32, 64, 64), attention=attention)
        with refuses("attention is at one of the resolutions 28, 14, 7, not at"):
            unet_config(config, (1, 28, 28), None)
