"""What verbs say of files of images: what was passed over, what is lacking, masks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.model.opening import load

RANDOM = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
TURN = Image.Exif()
TURN[0x0112] = 8  # to be turned counterclockwise


@pytest.fixture
def photos(tmp_path):
    """A folder of three pictures of different kinds, and a text."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.tiff", "c.gif"):
        Image.fromarray(RANDOM).save(folder / name)
    (folder / "notes.txt").touch()
    return folder


def test_fewer_images_than_asked_for(ddim, tiny, photos, caplog):
    encode = ("encode", "--model", tiny, "--data", photos, "--steps", 2, "--json", "--force")
    found = json.loads(ddim(*encode, "-n", 5).out)
    assert (found["images"], found["asked"]) == (3, 5)
    assert caplog.messages == [
        "photos: 3 images used; 1 of other kinds (.txt) passed over",
        "photos: fewer images than the 5 asked for: 3",
    ]
    caplog.clear()
    assert json.loads(ddim(*encode, "-n", 3).out)["images"] == 3
    assert len(caplog.messages) == 1
    common = ("--model", tiny, "--data", photos, "-n", 7, "--steps", 2, "--json")
    found = json.loads(ddim("reconstruct", *common, "--codecs", "obelm").out)
    assert (found["images"], found["asked"]) == (3, 7)
    found = json.loads(ddim("checks", tiny, *common[2:]).out)
    assert (found["images"], found["asked"]) == (3, 7)


def test_broken_files_are_skipped_where_asked(ddim, fails, tiny, photos, noise_data, caplog):
    (photos / "d.jpg").write_bytes(b"nothing")
    Image.fromarray(RANDOM).save(photos / "e.jpg")
    (photos / "e.jpg").write_bytes((photos / "e.jpg").read_bytes()[:-60])
    encode = ("encode", "--model", tiny, "--data", photos, "--steps", 2, "--force")
    fails(2, r"d\.jpg cannot be read as an image", *encode)
    answer = ddim(*encode, "--skip-broken", "-n", 3)
    assert answer.status == 0, answer.err
    assert "photos: 3 images used; 2 broken (" in caplog.text
    fails(
        2,
        "no folder of image files",
        *encode[:3],
        "--data",
        noise_data,
        *encode[5:],
        "--skip-broken",
    )


TRAIN = (
    *("train", "--size", 8, "--channels", 8, 16, "--groups", 4, "--blocks", 1, "--T", 20),
    *("--images", 8, "--batch-size", 4, "--sample-every", 0, "--quiet", "--force"),
)


def test_a_model_has_the_channels_of_its_pictures(ddim, photos, caplog):
    (photos / "d.png").write_bytes(b"nothing")
    train = (*TRAIN, "--data", photos, "--skip-broken")
    assert ddim(*train).status == 0
    assert "all greyscale, so images have 1 channel" in caplog.text
    assert load("run").shape == (1, 8, 8)
    caplog.clear()
    assert ddim(*train, "--image-channels", 3).status == 0
    assert load("run").shape == (3, 8, 8)
    assert "greyscale" not in caplog.text
    Image.new("RGB", (8, 8), "red").save(photos / "e.png")
    assert ddim(*train).status == 0
    assert load("run").shape == (3, 8, 8)


def test_channels_that_data_do_not_have(fails, noise_data):
    fails(2, "1 channel, not 3", *TRAIN, "--data", noise_data, "--image-channels", 3)
    fails(2, "channels must be 1 or 3", *TRAIN, "--data", ".", "--image-channels", 4)


def edit(tiny, *options):
    common = ("sample", "--model", tiny, "--images", "photo.png", "--mask", "mask.tif")
    return *common, "-n", 2, "--steps", 4, "--quiet", "--output", "o.npz", "--force", *options


def test_photo_and_mask_are_read_alike(ddim, tiny):
    """Both lie on their side, in 16 bits, the mask in 0 and 1."""
    half = np.zeros((8, 8), np.uint16)
    half[:, 5:] = 1
    Image.fromarray(RANDOM.astype(np.uint16) * 257).save("photo.png", exif=TURN)
    Image.fromarray(half).save("mask.tif", exif=TURN)
    answer = ddim(*edit(tiny))
    assert answer.status == 0, answer.err
    upright, painted = np.rot90(RANDOM), np.rot90(half) == 1
    with np.load("o.npz") as file:
        for image in file["images"][..., 0]:
            assert (image[~painted] == upright[~painted]).all()
            assert (image[painted] != upright[painted]).mean() > 0.5


@pytest.mark.parametrize("value", [0, 1, 3, 255])
def test_masks_that_select_nothing_or_everything(fails, ddim, tiny, value):
    Image.fromarray(RANDOM).convert("RGB").save("photo.png")
    Image.fromarray(np.full((8, 8), value, np.uint8)).save("mask.tif")
    fails(2, "mask mask.tif is white (every|no)where", *edit(tiny))
    assert not Path("o.npz").exists()


def test_a_mask_with_transparency(fails, ddim, tiny):
    Image.fromarray(RANDOM).save("photo.png")
    Image.fromarray(np.dstack([RANDOM, RANDOM])).save("mask.tif")
    fails(2, "mask mask.tif is transparent in parts", *edit(tiny))


def test_one_picture_is_taken_in_turn_without_a_word(ddim, tiny, caplog):
    Image.fromarray(RANDOM).save("one.png")
    words = ("sample", "--model", tiny, "--images", "one.png", "--strength", 0.5, "-n", 3)
    assert ddim(*words, "--steps", 4, "--quiet", "--output", "o.npz").status == 0
    assert not caplog.messages
    with np.load("o.npz") as file:
        assert len(file["images"]) == 3


def test_transparent_pictures_are_encoded_on_white(ddim, tiny, tmp_path, caplog):
    (tmp_path / "set").mkdir()
    Image.fromarray(np.dstack([RANDOM, RANDOM * 0])).save("set/a.png")
    words = ("encode", "--model", tiny, "--data", "set", "-n", 1, "--steps", 2, "--quiet")
    assert ddim(*words).status == 0
    assert "1 with transparency put on white" in caplog.text
    assert ddim("decode", "--model", tiny, "--output", "d.npz", "--quiet").status == 0
    with np.load("d.npz") as file:
        assert torch.from_numpy(file["images"]).min() > 250


SIGNALS = """
import torch

import ddim


class Net(torch.nn.Module):
    def forward(self, x, t):
        raise AssertionError("nothing is to be drawn")


def features(images):
    return images.flatten(1)


def signals():
    return ddim.Model(Net(), ddim.Schedule.linear(20), "eps", (2, 32))


def pairs():
    return ddim.Model(Net(), ddim.Schedule.linear(20), "eps", (2, 8, 8))
"""


def test_models_of_no_images_are_refused_before_anything_is_drawn(fails, photos, tmp_path):
    (tmp_path / "own.py").write_text(SIGNALS)
    given = ("--model", f"{tmp_path / 'own.py'}:signals")
    line = r"images are \(C, H, W\), and model makes \(2, 32\): draw it in Python"
    # Four signals of two channels have the shape of one picture of four.
    fails(2, line, "sample", *given, "-n", 4, "--output", "x.png")
    fails(2, line, "sample", *given, "--output", "x.npz")
    fails(2, line, "compare", *given, "--steps", 5)
    fails(2, line, "interpolate", *given)
    fails(2, line, "demo", *given)
    fails(2, line, "encode", *given, "--data", photos)
    features = ("--features", f"{tmp_path / 'own.py'}:features", "--steps", 5, "-n", 3)
    fails(2, line, "evaluate", *given, "--data", photos, *features)


def test_pictures_have_as_many_channels_as_a_picture_can_have(fails, tmp_path):
    (tmp_path / "own.py").write_text(SIGNALS)
    given = ("--model", f"{tmp_path / 'own.py'}:pairs")
    line = r"a picture has 1, 3 or 4 channels, and model makes \(2, 8, 8\)"
    fails(2, line, "sample", *given)
    fails(2, line, "compare", *given, "--steps", 5)
