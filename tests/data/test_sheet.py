"""Pictures for people: every shape that is drawn, enlarged by whole pixels, with labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

import ddim
from ddim.data import sheet
from ddim.data.pixels import grid, to_pixels
from ddim.data.sheet import captioned, enlarged, labelled, pixel_scale, plain, png, show


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def pixels(picture: Image.Image) -> torch.Tensor:
    array = np.array(picture)
    return torch.from_numpy(array[..., None] if array.ndim == 2 else array).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("shape", "mode", "size"),
    [
        ((28, 28), "L", (532, 532)),
        ((1, 28, 28), "L", (532, 532)),
        ((3, 20, 30), "RGB", (540, 360)),
        ((600, 700), "L", (700, 600)),
        ((64, 1, 28, 28), "L", (714, 714)),
        ((2, 3, 16, 16), "RGB", (544, 256)),
        ((5, 4, 16, 16), "L", (544, 208)),
        ((1, 2, 8, 8), "L", (527, 248)),
        ((6, 2, 100), "L", (608, 388)),
        ((3, 2, 64), "L", (588, 288)),
        ((1, 1, 5000), "L", (1000, 48)),
        ((3, 1, 10, 12, 12), "L", (515, 200)),
        ((2, 3, 4, 8, 8), "RGB", (525, 270)),
    ],
)
def test_everything_that_is_drawn_can_be_shown(shape, mode, size):
    for images in (noise(*shape), to_pixels(noise(*shape)), noise(*shape).numpy()):
        picture = show(images)
        assert (picture.mode, picture.size) == (mode, size)
    assert picture.width >= 512


def test_a_grid_is_that_of_save_image_in_larger_pixels():
    images = noise(5, 1, 8, 8)
    picture = pixels(show(images, scale=3, columns=2))
    assert torch.equal(picture[:, 1::3, 1::3], grid(images, 2))
    assert torch.equal(picture, enlarged(grid(images, 2), 3))


def test_a_signal_is_a_curve():
    """+1 is the top of its band, -1 the bottom, and neighbours are joined."""
    steps = torch.tensor([1.0, 1, -1, -1])[None, None]
    drawn = pixels(show(steps, scale=1))[0] == 255
    assert drawn[0, :2].all() and drawn[47, 2:].all()
    assert drawn[:, 1].all()  # where it falls
    assert not drawn[1:, 0].any() and not drawn[:47, 2:].any()
    second = pixels(show(torch.cat([steps, -steps], dim=1), scale=1))[0] == 255
    assert torch.equal(second[:48], drawn) and torch.equal(second[48:], drawn.flip(0))


def test_a_long_signal_keeps_its_peaks():
    signal = torch.full((1, 1, 10_000), -1.0)
    signal[..., 7777] = 1
    drawn = pixels(show(signal))[0] == 255
    assert drawn.shape == (48, 1000)
    assert drawn[0].nonzero().flatten().tolist() == [777]


def test_volumes_are_a_row_of_slices_from_the_first_to_the_last():
    volume = torch.linspace(-1, 1, 15)[None, None, :, None, None].expand(1, 1, 15, 4, 4)
    drawn = pixels(show(volume, scale=1))[0]
    assert drawn.shape == (4, 8 * 5 - 1)
    assert drawn[0, ::5].tolist() == to_pixels(volume)[0, 0, ::2, 0, 0].tolist()


def test_channels_that_are_no_colours_stand_side_by_side():
    images = noise(1, 2, 8, 8)
    drawn = pixels(show(images, scale=1))[0]
    assert torch.equal(drawn[:, :8], to_pixels(images[0, 0]))
    assert torch.equal(drawn[:, 9:], to_pixels(images[0, 1]))


@pytest.mark.parametrize(
    ("images", "options", "match"),
    [
        (noise(4), {}, r"what can be shown is an image .* not \(4,\)"),
        (noise(1, 1, 1, 1, 2, 2), {}, "what can be shown"),
        (noise(0, 1, 8, 8), {}, r"nothing to show in a tensor of shape \(0, 1, 8, 8\)"),
        (noise(1, 8, 8) / 0, {}, "not finite"),
        (noise(1, 8, 8).abs() * 255, {}, "bytes are a tensor of torch.uint8"),
        (torch.zeros(1, 8, 8, dtype=torch.int64), {}, "floating-point"),
        ("samples.png", {}, "a tensor or a NumPy array, not a str"),
        (noise(1, 8, 8), {"scale": 0}, "scale is a whole number from 1 on, not 0"),
        (noise(1, 8, 8), {"scale": 1.5}, "scale is a whole number from 1 on, not 1.5"),
        (noise(1, 8, 8), {"scale": 10_000}, "the picture would have 80,000 x 80,000 pixels"),
        (noise(2, 1, 8, 8), {"columns": 0}, "columns must be at least 1, not 0"),
        (noise(2, 1, 8, 8), {"columns": 1.5}, "columns is a whole number, not 1.5"),
        (torch.zeros(1).expand(40_000, 1, 64, 64), {}, "show fewer images"),
    ],
)
def test_what_cannot_be_shown_is_refused(images, options, match):
    with pytest.raises(ddim.InputError, match=match):
        ddim.show(images, **options)


@pytest.mark.parametrize(("width", "scale"), [(8, 64), (28, 19), (238, 3), (511, 2), (512, 1)])
def test_the_scale_is_the_smallest_that_makes_512_pixels(width, scale):
    assert pixel_scale(width, 10) == scale
    assert pixel_scale(width, 10, 2) == 2


def test_a_high_column_is_not_made_wide_at_any_price():
    assert pixel_scale(10, 1_000_000) == 3


def test_labels_stand_left_of_rows_and_above_columns():
    rows = [noise(3, 1, 8, 8), noise(3, 1, 8, 8).neg()]
    bare = labelled(rows, scale=4)
    assert bare.size == (12 + 28 * 4 + 12, 24 + 2 * (8 * 4 + 6))
    wide = labelled(rows, ["first", "second"], ["a", "b", "c"], scale=4)
    left, top = wide.width - bare.width + 12, wide.height - bare.height + 12
    inner = (left, top, left + 28 * 4, top + 32)
    assert torch.equal(pixels(wide.crop(inner)), enlarged(grid(rows[0], 3), 4).expand(3, -1, -1))
    for box in ((0, top, left, top + 32), (left, 0, wide.width, top)):
        assert len(wide.crop(box).getcolors()) > 1  # there is ink
    assert labelled(rows).width >= 512


def test_captions_stand_under_grids_and_are_not_cut():
    grids = [grid(noise(4, 1, 8, 8))] * 2
    picture = captioned(grids, [("a caption that is longer than the grid is wide", "1 s")] * 2, 1)
    assert picture.width > 2 * 18 + 3 * 16
    assert captioned(grids[:1], [("x",)]).width >= 512


def test_equal_pictures_have_equal_bytes():
    rows = [noise(3, 3, 8, 8)]
    assert png(labelled(rows, ["η = 0"])) == png(labelled(rows, ["η = 0"]))
    assert png(show(rows[0])) == png(show(rows[0]))


def test_letters_that_the_font_lacks_are_written_out():
    font = ImageFont.load_default(15)
    missing = bytes(font.getmask("\u4e00"))
    for letter in plain("η = σ̂, 1 → 2 ± … 水"):
        assert letter == " " or bytes(font.getmask(letter)) != missing, letter


def test_labels_without_freetype(monkeypatch):
    """A Pillow without it has one small font, which knows no anchors."""
    small = ImageFont.load_default_imagefont()

    def load_default(size: float | None = None):
        if size is not None:
            raise ImportError("no FreeType")
        return small

    monkeypatch.setattr(ImageFont, "load_default", load_default)
    picture = labelled([noise(3, 1, 8, 8)], ["η = 0"], ["a", "b", "c"], scale=4)
    assert len(picture.crop((0, 0, 30, picture.height)).getcolors()) > 1
    assert captioned([grid(noise(4, 1, 8, 8))], [("one", "two")]).width >= 512
    assert sheet.WIDTH == 512
