from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddim.data.pixels import from_pixels, grid, picture, save_animation, save_image, to_pixels


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def frames(count: int, channels: int = 1) -> list[Tensor]:
    """Pictures that all differ."""
    return [torch.full((channels, 6, 9), 10 * i, dtype=torch.uint8) for i in range(count)]


def test_pixels_there_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    x = from_pixels(pixels)
    assert x.dtype == torch.float32
    assert (x[0], x[-1]) == (-1, 1)
    assert torch.equal(to_pixels(x), pixels)
    assert torch.equal(to_pixels(x.double()), pixels)
    assert torch.equal(to_pixels(x.bfloat16()[[0, -1]]), pixels[[0, -1]])


def test_pixels_are_rounded_to_the_nearest_and_clamped():
    x = torch.tensor([-7.0, -1.0, -1 + 0.9 / 255, -1 + 1.1 / 255, 1.0, 7.0, 1e30])
    assert to_pixels(x).tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_pixels_leave_what_they_are_made_of_alone():
    x = noise(2, 1, 4, 4)
    before = x.clone()
    to_pixels(x)
    assert torch.equal(x, before)
    pixels = to_pixels(x)
    from_pixels(pixels)
    assert torch.equal(pixels, to_pixels(x))


def test_the_scale_is_fixed_and_not_that_of_the_batch(tmp_path):
    dim, bright = torch.full((1, 4, 4), -0.9), noise(1, 4, 4)
    batch = to_pixels(torch.stack([dim, bright]))
    assert torch.equal(batch[0], to_pixels(dim))
    assert torch.equal(batch[1], to_pixels(bright))
    save_image(tmp_path / "dim.png", dim)
    assert set(np.asarray(Image.open(tmp_path / "dim.png")).flat) == {13}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(tmp_path, refuses, value):
    x = noise(1, 4, 4)
    x[0, 1, 1] = value
    with refuses("not finite"):
        to_pixels(x)
    with refuses("not finite"):
        save_image(tmp_path / "x.png", x)
    assert not list(tmp_path.iterdir())


def test_bytes_that_are_given_as_images_are_refused(tmp_path, refuses):
    pixels = (noise(3, 5, 5) + 1) * 127.5
    for call in (to_pixels, lambda x: grid(x[None]), lambda x: save_image(tmp_path / "x.png", x)):
        with refuses(r"in \[-1, 1\]; these are from"):
            call(pixels)
        with refuses("floating-point numbers"):
            call(pixels.long())
    with refuses("pixels are bytes"):
        from_pixels(noise(1, 2, 2))
    assert not list(tmp_path.iterdir())


def test_arrays_in_either_order_of_arguments(tmp_path, refuses):
    images = noise(4, 1, 6, 6)
    save_image(tmp_path / "a.png", images)
    save_image(images, tmp_path / "b.png")
    save_image(images.numpy(), str(tmp_path / "c.png"), 2)
    save_image(tmp_path / "d.png", to_pixels(images.numpy()).numpy())
    assert len({(tmp_path / f"{name}.png").read_bytes() for name in "abcd"}) == 1
    assert torch.equal(from_pixels(to_pixels(images).numpy()), from_pixels(to_pixels(images)))
    with refuses("saved to a path, not to a Tensor"):
        save_image(images, images)
    with refuses("a tensor or a NumPy array, not a list"):
        save_image(tmp_path / "e.png", [0.0])
    with refuses("a grid is of images"):
        grid(images[0])


def test_grid_is_filled_row_by_row():
    images = torch.stack([torch.full((1, 3, 4), i + 1, dtype=torch.uint8) for i in range(5)])
    sheet = grid(images)
    assert sheet.shape == (1, 2 * 3 + 2, 3 * 4 + 2 * 2)
    for i in range(5):
        y, x = i // 3 * 5, i % 3 * 6
        assert (sheet[0, y : y + 3, x : x + 4] == i + 1).all()
    assert int(sheet.long().sum()) == sum(12 * (i + 1) for i in range(5))  # black elsewhere


@pytest.mark.parametrize(
    ("count", "columns", "size"),
    [(1, None, (3, 4)), (4, 4, (3, 22)), (4, 1, (18, 4)), (2, 9, (3, 10)), (3, 2, (8, 10))],
)
def test_columns_of_a_grid(count, columns, size):
    assert grid(noise(count, 3, 3, 4), columns).shape == (3, *size)


def test_a_grid_of_nothing_is_refused(refuses):
    with refuses("a grid needs at least one image"):
        grid(torch.zeros(0, 1, 4, 4))


def test_grid_without_columns_is_refused(refuses):
    for columns in (0, -1):
        with refuses(f"columns must be at least 1, not {columns}"):
            grid(noise(2, 1, 3, 3), columns)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_png_gives_the_bytes_back(tmp_path, channels, mode):
    pixels = to_pixels(noise(channels, 5, 7))
    save_image(tmp_path / "new" / "x.png", pixels)
    with Image.open(tmp_path / "new" / "x.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", mode, (7, 5))
        found = torch.from_numpy(np.array(image)).reshape(5, 7, channels).permute(2, 0, 1)
    assert torch.equal(found, pixels)


def test_png_of_a_batch_is_a_grid(tmp_path):
    images = noise(3, 1, 5, 5)
    save_image(tmp_path / "x.png", images, columns=3)
    with Image.open(tmp_path / "x.png") as image:
        assert torch.equal(torch.from_numpy(np.array(image))[None], grid(images, 3))


def test_a_picture_of_two_channels_is_refused(refuses):
    for pixels in (frames(1, 2)[0], noise(1, 4, 4), frames(1)[0][0]):
        with refuses("1, 3 or 4 channels"):
            picture(pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animations_have_every_frame(tmp_path, kind, channels):
    path = tmp_path / f"x.{kind}"
    shown = frames(5, channels)
    save_animation(path, shown, milliseconds=70)
    with Image.open(path) as image:
        assert image.format == kind.upper()
        assert image.n_frames == 5
        assert image.size == (9, 6)
        assert image.info.get("loop", 0) == 0
        durations = []
        for i, frame in enumerate(shown):
            image.seek(i)
            image.load()
            durations.append(image.info["duration"])
            pixels = np.array(image.convert("RGB"))
            assert (pixels == frame.expand(3, -1, -1).permute(1, 2, 0).numpy()).all()
    assert durations == [70, 70, 70, 70, 1500]


def test_other_animations_are_refused(tmp_path, refuses):
    with refuses("a .webp or a .gif"):
        save_animation(tmp_path / "x.mp4", frames(2))


@pytest.mark.parametrize("write", ["png", "gif"])
@pytest.mark.parametrize("failing", ["write_bytes", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, write, failing):
    path = tmp_path / f"x.{write}"

    def save(value: int) -> None:
        if write == "png":
            save_image(path, torch.full((1, 4, 4), value, dtype=torch.uint8))
        else:
            save_animation(path, [frame + value for frame in frames(2)])

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    save(1)
    old = path.read_bytes()
    owner = os if failing == "fsync" else Path
    with monkeypatch.context() as patch:
        patch.setattr(owner, failing, fail)
        with pytest.raises(OSError, match="No space left"):
            save(2)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
    save(2)
    assert path.read_bytes() != old


def test_what_cannot_be_encoded_leaves_no_file(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("encoder error")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="encoder error"):
        save_image(tmp_path / "x.png", frames(1)[0])
    assert not list(tmp_path.iterdir())


def test_pictures_do_not_depend_on_where_they_are_written(tmp_path):
    images = noise(2, 3, 4, 4)
    for name in ("a.png", "b.png"):
        save_image(tmp_path / name, images)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).size == (10, 4)
