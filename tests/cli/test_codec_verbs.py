"""encode, decode, reconstruct, interpolate, and editing with sample."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.data.load import load_data
from ddim.latents.record import Latents


@pytest.fixture
def encoded(ddim, tiny, noise_data):
    """Run ``ddim encode`` on a few images, with options, into l.safetensors."""

    def run(*options):
        common = ("--model", tiny, "--data", noise_data, "-n", 5, "--steps", 6, "--quiet")
        return ddim("encode", *common, "--output", "l.safetensors", *options)

    return run


def opened(path):
    with Image.open(path) as image:
        return np.asarray(image)


def unlabelled(path, width, scale, top=32):
    """A labelled picture's first row of images at their own size, from its upper left corner on."""
    sheet = opened(path)
    left = sheet.shape[1] - 12 - width * scale
    assert sheet.shape[1] >= 512 and (sheet[:20] == sheet[:20, :, :1]).all()
    inner = sheet[top:, left : left + width * scale, 0]
    return inner[scale // 2 :: scale, scale // 2 :: scale]


def originals(noise_data, count):
    return load_data(str(noise_data)).batch(torch.arange(count)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("codec", ["obelm", "edict", "bdia"])
def test_there_and_back(ddim, encoded, tiny, noise_data, codec):
    answer = encoded("--codec", codec, "--dtype", "float64")
    assert answer.status == 0, answer.err
    assert f"5 images by {codec} in 6 steps" in answer.out
    back = ddim("decode", "--model", tiny, "-l", "l.safetensors", "--output", "d.npz", "--quiet")
    assert back.status == 0, back.err
    with np.load("d.npz") as file:
        assert (file["images"] == originals(noise_data, 5)).all()


def test_records_say_what_was_run(encoded, ddim, tiny):
    encoded()
    text = Path("l.safetensors.run.toml").read_text(encoding="utf-8")
    assert "steps = 6" in text and "batch_size = 8" in text and "identity: " in text
    again = ddim("encode", "--config", "l.safetensors.run.toml", "--force", "--quiet")
    assert again.status == 0, again.err


def test_a_codec_is_spelled_with_its_steps(encoded, ddim, tiny):
    assert encoded("--codec", "edict:steps=6", "--nodes", "quadratic").status == 0
    spelled = Latents.load("l.safetensors")
    again = ("encode", "--config", "l.safetensors.run.toml", "--output", "m.safetensors", "--quiet")
    assert ddim(*again).status == 0
    apart = ("--codec", "edict", "--nodes", *spelled.nodes, "--steps", 6, "--force")
    assert encoded(*apart).status == 0
    for path in ("m.safetensors", "l.safetensors"):
        latents = Latents.load(path)
        assert (latents.codec, latents.nodes) == ("edict", spelled.nodes)
        assert all(map(torch.equal, latents.tensors, spelled.tensors))


def test_implicit_reports_every_image_and_fails(encoded):
    answer = encoded("--codec", "implicit", "--steps", "2", "--json")
    facts = json.loads(answer.out)
    assert len(facts["residual"]) == 5
    assert answer.status == (1 if facts["unsolved"] else 0)
    if facts["unsolved"]:
        assert f"{len(facts['unsolved'])} of 5 images did not converge" in answer.err
    assert Latents.load("l.safetensors").unsolved == facts["unsolved"]
    assert facts["caveat"] == Latents.load("l.safetensors").caveat


def test_an_approximate_round_trip_says_so(encoded, ddim, tiny, noise_data):
    """In every sentence and every document, and drawn images, which were not encoded, do not."""
    said = "ddim is approximate: its images come back changed, in 4 steps"
    words = ("--codec", "ddim", "--steps", 4, "--force")
    assert said in encoded(*words).out
    assert said in json.loads(encoded(*words, "--json").out)["caveat"]
    common = ("--model", tiny, "--quiet", "--force")
    latents = ("--latents", "l.safetensors")
    real = ("--data", noise_data, "--steps", 4)
    for verb, more in (("decode", latents), ("interpolate", latents), ("interpolate", real)):
        assert said in ddim(verb, *common, *more).out, verb
        assert said in json.loads(ddim(verb, *common, *more, "--json").out)["caveat"], verb
    drawn = ddim("interpolate", *common, "--steps", 4)
    assert drawn.status == 0 and "approximate" not in drawn.out
    encoded("--force")
    assert json.loads(ddim("decode", *common, *latents, "--json").out)["caveat"] is None
    flags = ("--data", noise_data, "-n", 2, "--steps", 4, "--codecs", "ddim", "obelm")
    shown = ddim("reconstruct", *common, *flags).out
    assert shown.count("approximate") == 1


def test_the_wrong_model_is_an_error(encoded, fails, conditional):
    encoded()
    fails(2, "of the model tiny", "decode", "--model", conditional, "-l", "l.safetensors")


def test_what_encode_and_decode_refuse(encoded, fails, tiny, noise_data):
    encode = ("encode", "--model", tiny, "--data", noise_data)
    fails(2, "cannot be undone", *encode, "--clip", "True")
    fails(2, "obelm", *encode, "--codec", "obelmm")
    fails(2, "at least 2 steps", *encode, "--steps", 1)
    fails(2, "at least 1, not 0", *encode, "--steps", 0)
    fails(2, "which is not 7", *encode, "--codec", "obelm:steps=6", "--steps", 7)
    fails(2, "3 nodes are 2 steps, not 7", *encode, "--steps", 7, "--nodes", "20,10,0")
    fails(2, "safetensors", *encode, "--output", "x.png")
    fails(2, "-n", *encode, "-n", 0)
    fails(2, "batch size", *encode, "--batch-size", 0)
    fails(2, "bfloat16, where images do not come back", *encode, "--dtype", "bfloat16")
    fails(2, "unknown option --dtype", "decode", "--model", tiny, "--dtype", "float64")
    fails(2, "no file", "decode", "--model", tiny, "-l", "nothing.safetensors")
    encoded()
    fails(2, "exists already", *encode, "--output", "l.safetensors")
    fails(2, "png", "decode", "--model", tiny, "-l", "l.safetensors", "--output", "x.jpg")


def test_data_of_another_shape(fails, tiny, tmp_path):
    np.savez(tmp_path / "big.npz", images=np.zeros((2, 16, 16), np.uint8))
    fails(2, "16 x 16", "encode", "--model", tiny, "--data", tmp_path / "big.npz")


def test_labels_come_with_the_data(ddim, conditional, noise_data, fails, tmp_path):
    common = ("--model", conditional, "--steps", 4, "--quiet")
    answer = ddim("encode", *common, "--data", noise_data, "-n", 4)
    assert answer.status == 0, answer.err
    assert Latents.load("latents.safetensors").condition.labels == (0, 1, 2, 0)
    edited = ddim("decode", "--model", conditional, "--labels", 1, "--guidance", 2, "--quiet")
    assert edited.status == 0, edited.err
    np.savez(tmp_path / "bare.npz", images=np.zeros((2, 8, 8), np.uint8))
    bare = ("encode", *common, "--data", tmp_path / "bare.npz", "--force")
    fails(2, "no labels", *bare)
    answer = ddim(*bare, "--labels", 2, 1, "--guidance", 1.5)
    assert answer.status == 0, answer.err
    condition = Latents.load("latents.safetensors").condition
    assert (condition.labels, condition.guidance) == ((2, 1), 1.5)


def test_reconstruct(ddim, tiny, noise_data):
    arguments = ("--model", tiny, "--data", noise_data, "-n", 3, "--steps", 4, 8, "--quiet")
    answer = ddim(
        "reconstruct", *arguments, "--codecs", "ddim", "obelm", "--dtypes", "float32", "float64"
    )
    assert answer.status == 0, answer.err
    found = json.loads(Path("reconstruct/errors.json").read_text(encoding="utf-8"))
    rows = found["rows"]
    assert list(rows) == [
        f"{c} {d} {s}" for c in ("ddim", "obelm") for d in ("float32", "float64") for s in (4, 8)
    ]
    assert rows["obelm float64 8"]["max"] < 1e-11 < rows["ddim float64 8"]["max"]
    assert rows["obelm float64 8"]["calls"] == 15
    for name in ("errors.png", "images.png"):
        assert opened(f"reconstruct/{name}").size
    assert Path("reconstruct/errors.md").read_text(encoding="utf-8").count("\n") == 10
    # Resumed with one more codec, it measures that alone.
    rows["obelm float64 8"]["seconds"] = -1
    Path("reconstruct/errors.json").write_text(json.dumps(found), encoding="utf-8")
    more = ddim(
        *("reconstruct", *arguments, "--codecs", "obelm", "edict", "--dtypes", "float64"),
        *("--resume", "--json"),
    )
    assert more.status == 0, more.err
    found = {(r["codec"], r["steps"]): r for r in json.loads(more.out)["rows"]}
    assert found["obelm", 8]["seconds"] == -1
    assert found["edict", 8]["amplification"] == pytest.approx(0.93**-16)
    other = ddim("reconstruct", *arguments, "--resume", "--nodes", "quadratic")
    assert other.status == 2 and "was begun with nodes = uniform" in other.err


def test_reconstruct_reports_what_did_not_converge(ddim, tiny, noise_data):
    answer = ddim(
        *("reconstruct", "--model", tiny, "--data", noise_data, "-n", 3, "--steps", 2),
        *("--codecs", "implicit", "--quiet", "--json"),
    )
    (row,) = json.loads(answer.out)["rows"]
    assert len(row["residuals"]) == 3
    assert row["converged"] == pytest.approx(1 - len(row["unsolved"]) / 3)
    assert answer.status == (1 if row["unsolved"] else 0)


def test_what_reconstruct_refuses(fails, tiny, noise_data):
    common = ("reconstruct", "--model", tiny, "--data", noise_data)
    fails(2, "T = 20", *common, "--steps", 21)
    fails(2, "float16", *common, "--dtypes", "float16")
    fails(2, "did you mean 'bdia'", *common, "--codecs", "bdai")
    fails(2, "at least one each", *common, "--codecs", ",")
    fails(2, "at least one each", *common, "--steps", ",")
    fails(2, "--codecs needs a value", *common, "--codecs")
    fails(2, "family", *common, "--nodes", "20,10,0")
    fails(2, "a folder", *common, "--output", "x.png")


def test_reconstruct_does_not_mix_images(ddim, tiny):
    common = ("reconstruct", "--model", tiny, "--data", "one.npz", "-n", 1, "--steps", 4)
    for value in (10, 200):
        np.savez("one.npz", images=np.full((1, 8, 8), value, np.uint8))
        answer = ddim(*common, "--codecs", "ddim", "--resume", "--quiet")
    assert answer.status == 2 and "is of other images" in answer.err


def test_interpolate_drawn_images(ddim, tiny):
    drawn = ddim("sample", "--model", tiny, "-n", 4, "--steps", 5, "--output", "s.npz", "--quiet")
    assert drawn.status == 0
    answer = ddim(
        *("interpolate", "--model", tiny, "--between", 0, 3, "--frames", 5, "--steps", 5),
        "--quiet",
    )
    assert answer.status == 0, answer.err
    # 5 images of 8 pixels, 2 between them; the ends are the images that sample draws.
    line = unlabelled("interpolation.png", 48, 11)[:8]
    assert line.shape == (8, 48)
    with np.load("s.npz") as file:
        assert abs(line[:, :8].astype(int) - file["images"][0, ..., 0]).max() <= 1
        assert abs(line[:, -8:].astype(int) - file["images"][3, ..., 0]).max() <= 1


def test_interpolate_real_and_encoded_images(ddim, tiny, noise_data, encoded):
    square = ddim(
        *("interpolate", "--model", tiny, "--data", noise_data, "--between", 0, 1, 2, 3),
        *("--frames", 3, "--steps", 5, "--codec", "obelm", "--quiet", "--output", "q.png"),
    )
    assert square.status == 0, square.err
    picture = unlabelled("q.png", 28, 19).astype(int)
    assert abs(picture[:8, :8] - originals(noise_data, 1)[0, ..., 0]).max() <= 1
    encoded()
    moving = ddim(
        *("interpolate", "--model", tiny, "--latents", "l.safetensors", "--between", 4, 0),
        *("--frames", 4, "--quiet", "--output", "m.webp"),
    )
    assert moving.status == 0, moving.err
    with Image.open("m.webp") as animation:
        assert animation.n_frames == 7  # there and back


def test_what_interpolate_refuses(fails, tiny, conditional, noise_data, encoded):
    common = ("interpolate", "--model", tiny)
    fails(2, "2 images or 4", *common, "--between", 0, 1, 2)
    fails(2, "at least 2", *common, "--frames", 1)
    fails(2, "png", *common, "--output", "x.npz")
    fails(2, "no image 77", *common, "--data", noise_data, "--between", 0, 77)
    fails(2, "one latent", *common, "--codec", "obelm")
    fails(2, "class-conditional", "interpolate", "--model", conditional)
    encoded()
    fails(2, "no image 9", *common, "--latents", "l.safetensors", "--between", 0, 9)
    latents = (*common, "--latents", "l.safetensors")
    fails(2, "--codec does not fit", *latents, "--codec", "ddim")
    fails(2, "--steps does not fit", *latents, "--steps", 9)
    fails(2, "--labels does not fit", *common, "--data", noise_data, "--labels", 1, 2)
    fails(2, "--seed does not fit", *common, "--data", noise_data, "--seed", 1)
    fails(2, "--split does not fit", *common, "--split", "train")


def test_interpolation_between_images_that_are_not_solved(ddim, tiny, noise_data):
    answer = ddim(
        *("interpolate", "--model", tiny, "--data", noise_data, "--between", 0, 3, "--steps", 2),
        *("--codec", "implicit", "--frames", 2, "--quiet", "--json"),
    )
    unsolved = json.loads(answer.out)["unsolved"]
    assert answer.status == (1 if unsolved else 0)
    assert ("did not converge" in answer.err) == bool(unsolved)


def test_editing_by_strength(ddim, tiny, noise_data):
    common = ("sample", "--model", tiny, "--images", noise_data, "-n", 3, "--steps", 10, "--quiet")
    near = ddim(*common, "--strength", 0.1, "--output", "near.npz")
    assert near.status == 0, near.err
    assert "the part of 10 steps that begins at node 2, 1 network calls" in near.out
    far = ddim(*common, "--strength", 1.0, "--output", "far.npz")
    assert far.status == 0, far.err
    before = originals(noise_data, 3).astype(int)
    with np.load("near.npz") as a, np.load("far.npz") as b:
        change = [abs(x["images"].astype(int) - before).mean() for x in (a, b)]
    assert change[0] < change[1]


@pytest.mark.parametrize("method", ["ddim", "ddpm", "edict", "obelm"])
def test_editing_by_mask(ddim, tiny, noise_data, method):
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save("mask.png")
    answer = ddim(
        *("sample", "--model", tiny, "--images", noise_data, "-n", 3, "--steps", 10, "--quiet"),
        *("--mask", "mask.png", "--output", "m.npz", "--method", method),
    )
    assert answer.status == 0, answer.err
    before = originals(noise_data, 3)
    with np.load("m.npz") as file:
        assert (file["images"][:, :, :4] == before[:, :, :4]).all()
        assert (file["images"][:, :, 4:] != before[:, :, 4:]).mean() > 0.5


def test_an_edit_stands_beside_its_original_in_a_second_file(ddim, fails, tiny, noise_data):
    Image.fromarray(np.repeat(np.uint8([0, 255]), 4)[None].repeat(8, 0)).save("mask.png")
    common = ("sample", "--model", tiny, "--images", noise_data, "-n", 3, "--steps", 4, "--quiet")
    assert ddim(*common, "--mask", "mask.png", "--output", "e.png").status == 0
    assert opened("e.png").shape == (18, 18)  # data: its own pixels
    compared = unlabelled("e-compare.png", 28, 19, 12)
    before = originals(noise_data, 3)[..., 0]
    assert (compared[:8, :8] == before[0]).all() and (compared[:8, 20:] == before[2]).all()
    line = fails(2, "e-compare.png", *common, "--strength", 0.5, "--output", "e.npz")
    assert "exists already" in line
    assert ddim(*common, "--strength", 0.5, "--output", "folder").status == 0
    assert sorted(path.name for path in Path().glob("*compare*")) == ["e-compare.png"]


def test_one_image_makes_many(ddim, tiny):
    Image.fromarray(np.full((20, 20), 90, np.uint8)).save("one.png")
    answer = ddim(
        *("sample", "--model", tiny, "--images", "one.png", "-n", 3, "--strength", 0.5),
        *("--steps", 4, "--quiet", "--output", "v.npz"),
    )
    assert answer.status == 0, answer.err
    with np.load("v.npz") as file:
        assert not (file["images"][0] == file["images"][1]).all()


def test_what_editing_refuses(fails, ddim, tiny, noise_data):
    common = ("sample", "--model", tiny)
    fails(2, "need --images", *common, "--strength", 0.5)
    fails(2, "give one", *common, "--images", noise_data)
    images = (*common, "--images", noise_data)
    fails(2, r"\(0, 1\]", *images, "--strength", 0)
    fails(2, r"\(0, 1\]", *images, "--strength", 1.5)
    fails(2, "no file", *images, "--mask", "nothing.png")
    Image.fromarray(np.tile(np.uint8([0, 255]), (4, 4))).save("small.png")
    fails(2, "8 x 4 pixels", *images, "--mask", "small.png")
    Path("text.png").write_text("not an image")
    fails(2, "cannot be read as an image", *images, "--mask", "text.png")


def test_force_leaves_no_images_of_the_files_before(encoded, ddim, tiny):
    encoded()
    decode = ("decode", "--model", tiny, "-l", "l.safetensors", "--output", "out", "--quiet")
    assert ddim(*decode).status == 0
    encoded("-n", 2, "--force")
    assert ddim(*decode, "--force").status == 0
    assert sorted(p.name for p in Path("out").glob("*.png")) == ["000000.png", "000001.png"]


def test_images_of_some_classes_only(ddim, conditional, fails):
    """Numbers are labels of a model with more; names must be the model's."""
    drawn = ("sample", "--model", conditional, "--labels", 1, "-n", 2, "--steps", 2, "--quiet")
    assert ddim(*drawn, "--output", "ones.npz").status == 0
    common = ("encode", "--model", conditional, "-n", 2, "--steps", 2, "--quiet")
    answer = ddim(*common, "--data", "ones.npz")
    assert answer.status == 0, answer.err
    assert Latents.load(Path("latents.safetensors")).condition.labels == (1, 1)
    for name in ("cat", "dog"):
        Path("folder", name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(Path("folder", name, "0.png"))
    fails(2, "has 3 classes, and folder has 2 classes", *common, "--data", "folder", "--force")


def test_reconstruct_without_matplotlib(ddim, tiny, noise_data, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    answer = ddim(
        "reconstruct", "--model", tiny, "--data", noise_data, "-n", 2, "--codecs", "obelm",
        "--steps", 2, "--output", "out", "--quiet",
    )  # fmt: skip
    assert answer.status == 0
    assert answer.err.startswith("ddim reconstruct: no errors.png: plots need matplotlib")
    assert "obelm" in answer.out
    assert Path("out/images.png").exists() and not Path("out/errors.png").exists()
