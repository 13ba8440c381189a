from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.base.errors import InputError
from ddim.data.folder import FolderData


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def only(folder: Path, size: int, channels: int = 3) -> np.ndarray:
    """The one image of a folder, with shape (C, H, W)."""
    return FolderData("f", folder, size, channels).batch(torch.tensor([0]))[0].numpy()


def test_sorted_recursive_and_without_labels(tmp_path: Path):
    for i, name in enumerate(["b.png", "a/z.PNG", "c.jpeg", "a/b/y.webp", "x.bmp", "d.jpg"]):
        save(tmp_path / name, np.full((9, 9, 3), 40 * i, np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._b.png").write_text("nor is this")
    (tmp_path / ".thumbnails").mkdir()
    save(tmp_path / ".thumbnails/b.png", noise(4, 4))
    data = FolderData("f", tmp_path, 8)
    names = [path.relative_to(tmp_path).as_posix() for path in data.files]
    assert names == ["a/b/y.webp", "a/z.PNG", "b.png", "c.jpeg", "d.jpg", "x.bmp"]
    assert (len(data), data.shape, data.classes) == (6, (3, 8, 8), None)
    batch = data.batch(torch.tensor([5, 1, 5]))
    assert batch.dtype == torch.uint8
    assert batch[:, 0, 0, 0].tolist() == [160, 40, 160]
    assert data.labels(torch.tensor([0])) is None
    assert data.batch(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 8, 8)


def test_subfolders_are_classes(tmp_path: Path):
    for name in ["dog/1.png", "cat/deep/1.png", "cat/2.png"]:
        save(tmp_path / name, noise(4, 4))
    data = FolderData("f", tmp_path, 4)
    assert (data.classes, data.class_names) == (2, ("cat", "dog"))
    targets = data.labels(torch.tensor([2, 0, 1]))
    assert targets is not None
    assert targets.dtype == torch.int64
    assert targets.tolist() == [1, 0, 0]


def test_checksums_tell_folders_apart(tmp_path: Path):
    for folder in ("a", "b", "c"):
        save(tmp_path / folder / "x/1.png", noise(4, 4))
        save(tmp_path / folder / "2.png", noise(4, 4, seed=1))
    (found,) = FolderData("a", tmp_path / "a", 4).checksums.values()
    assert list(FolderData("b", tmp_path / "b", 9).checksums.values()) == [found]
    (tmp_path / "b/2.png").rename(tmp_path / "b/3.png")
    save(tmp_path / "c/2.png", np.zeros((4, 4), np.uint8))
    others = [FolderData("f", tmp_path / name, 4).checksums["names and sizes"] for name in "bc"]
    assert len({found, *others}) == 3


def test_one_subfolder_is_no_class(tmp_path: Path):
    save(tmp_path / "cat/1.png", noise(4, 4))
    assert FolderData("f", tmp_path).classes is None


def test_central_square_is_exact_where_nothing_is_resized(tmp_path: Path):
    pixels = noise(8, 13)
    save(tmp_path / "wide.png", pixels)
    np.testing.assert_array_equal(only(tmp_path, 8), pixels[:, 2:10].transpose(2, 0, 1))


def test_tall_image(tmp_path: Path):
    pixels = noise(12, 8)
    save(tmp_path / "tall.png", pixels)
    np.testing.assert_array_equal(only(tmp_path, 8), pixels[2:10].transpose(2, 0, 1))


def test_resizing_is_antialiased(tmp_path: Path):
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    save(tmp_path / "stripes.png", stripes)
    small = only(tmp_path, 16, channels=1)
    assert small.min() > 120
    assert small.max() < 135


def test_small_images_are_enlarged(tmp_path: Path):
    save(tmp_path / "dot.png", np.full((2, 3, 3), 77, np.uint8))
    assert (only(tmp_path, 16) == 77).all()


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_exif_orientation(tmp_path: Path, suffix: str):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 255  # bright above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: bright at the right
    save(tmp_path / f"turned{suffix}", pixels, exif=exif)
    upright = only(tmp_path, 16, channels=1)[0]
    assert upright[:, 9:].min() > 240
    assert upright[:, :7].max() < 15


def test_conversions(tmp_path: Path):
    rgb = noise(6, 6)
    save(tmp_path / "a.png", rgb)
    grey = np.array(Image.fromarray(rgb).convert("L"))
    np.testing.assert_array_equal(only(tmp_path, 6, channels=1)[0], grey)
    save(tmp_path / "a.png", grey)
    np.testing.assert_array_equal(only(tmp_path, 6), np.stack([grey] * 3))


def test_what_is_transparent_becomes_white(tmp_path: Path):
    pixels = np.full((6, 6, 4), (200, 0, 0, 255), np.uint8)
    pixels[:, 3:, 3] = 0
    save(tmp_path / "a.png", pixels)
    data = FolderData("f", tmp_path, 6)
    image = data.batch(torch.tensor([0]))[0]
    assert image[:, 0, 0].tolist() == [200, 0, 0]
    assert image[:, 0, 5].tolist() == [255, 255, 255]
    assert "1 with transparency put on white" in data.notes


def test_folder_without_images_says_what_is_there(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no images, in any subfolder$"):
        FolderData("f", tmp_path)
    (tmp_path / "a.npz").touch()
    (tmp_path / "b.NPZ").touch()
    (tmp_path / "notes").touch()
    with pytest.raises(InputError, match=r"3 of other kinds \(\.npz, notes\) passed over"):
        FolderData("f", tmp_path)


@pytest.mark.parametrize(
    "suffix", [".tif", ".TIFF", ".gif", ".tga", ".ppm", ".pgm", ".jp2", ".ico", ".pcx", ".jfif"]
)
def test_every_kind_that_pillow_opens(tmp_path: Path, suffix: str):
    save(tmp_path / "a.png", noise(16, 16, 1))
    Image.fromarray(noise(16, 16, 1)).save(tmp_path / f"b{suffix}")
    data = FolderData("f", tmp_path, 16)
    assert [path.suffix for path in data.files] == [".png", suffix]
    assert len(data.batch(torch.arange(2))) == 2


def test_what_is_passed_over_is_counted(tmp_path: Path):
    for name in ("a.png", ".b.png"):
        save(tmp_path / name, noise(4, 4))
    for name in ("scan.pdf", "plot.eps", "film.mpg", "x/notes.txt", "x/more.txt", ".gitignore"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    hidden, other = FolderData("f", tmp_path, 4).notes
    assert hidden == "1 hidden passed over"
    assert other.startswith("5 of other kinds (.txt, ")
    assert all(kind in other for kind in (".pdf", ".eps", ".mpg"))


def test_frames_after_the_first_are_said(tmp_path: Path):
    first, second = (Image.fromarray(noise(8, 8, 1, seed=i)) for i in range(2))
    for name in ("a.gif", "b.tif", "c.png"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
    save(tmp_path / "d.png", noise(8, 8, 1))
    data = FolderData("f", tmp_path, 8)
    assert data.notes[0] == "3 with several frames, of which the first is taken"


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16", "P"])
def test_greyscale_pictures_have_one_channel(tmp_path: Path, mode: str):
    grey = Image.fromarray(noise(8, 8, 1))
    picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey
    (picture if mode in ("L", "I;16") else picture.convert(mode)).save(tmp_path / "a.png")
    save(tmp_path / "b.png", noise(8, 8, 1))
    data = FolderData("f", tmp_path, 8)
    assert data.shape == (1, 8, 8)
    assert data.notes[-1].startswith("all greyscale, so images have 1 channel")
    asked = FolderData("f", tmp_path, 8, 3)
    assert asked.shape == (3, 8, 8)
    assert not any("greyscale" in note for note in asked.notes)


def test_one_picture_in_colour_makes_three_channels(tmp_path: Path):
    save(tmp_path / "a.png", noise(8, 8, 1))
    save(tmp_path / "b.png", noise(8, 8))
    Image.fromarray(noise(8, 8)).quantize(8).save(tmp_path / "c.png")
    data = FolderData("f", tmp_path, 8)
    assert data.shape == (3, 8, 8)
    assert data.notes == ("1 greyscale among others, so all have 3 channels",)
    assert FolderData("f", tmp_path, 8, 1).notes == ("2 in colour turned grey",)


def test_linked_folders_are_searched_and_circles_are_not(tmp_path: Path):
    save(tmp_path / "set/cat/1.png", noise(4, 4))
    save(tmp_path / "elsewhere/2.png", noise(4, 4))
    (tmp_path / "set/dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/cat/again").symlink_to(tmp_path / "set")
    data = FolderData("f", tmp_path / "set", 4)
    assert [path.name for path in data.files] == ["1.png", "2.png"]
    assert data.class_names == ("cat", "dog")


def test_broken_files_are_skipped_and_counted(tmp_path: Path):
    for name in ("a.jpg", "b.jpg", "c.tif"):
        save(tmp_path / name, noise(64, 64))
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-900])
    (tmp_path / "d.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"d\.png cannot be read"):
        FolderData("f", tmp_path, 64)
    data = FolderData("f", tmp_path, 64, skip_broken=True)
    assert [path.name for path in data.files] == ["a.jpg", "c.tif"]
    assert len(data.batch(torch.arange(2))) == 2
    (note,) = data.notes
    assert note.startswith("2 broken (b.jpg cannot be read as an image: ")
    assert "; d.png cannot be read as an image: it is of no kind that Pillow knows)" in note
    for name in ("a.jpg", "c.tif"):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"holds no images.*2 broken \(.*b\.jpg"):
        FolderData("f", tmp_path, 64, skip_broken=True)


@pytest.mark.parametrize("content", [b"", b"this is text", b"\x89PNG\r\n\x1a\n\0\0"])
def test_broken_header_is_found_at_once(tmp_path: Path, content: bytes):
    save(tmp_path / "a.png", noise(4, 4))
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.png cannot be read as an image"):
        FolderData("f", tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_truncated_file_is_named_when_read(tmp_path: Path, suffix: str):
    path = save(tmp_path / f"cut{suffix}", noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    save(tmp_path / "whole.png", noise(64, 64))
    with pytest.raises(InputError, match=rf"cut\{suffix} cannot be read as an image"):
        FolderData("f", tmp_path, 64).batch(torch.tensor([1, 0]))


@pytest.mark.parametrize(
    ("size", "channels", "message"),
    [(0, 3, "size must be at least 1"), (8, 2, "channels must be 1 or 3, not 2")],
)
def test_bad_size_and_channels(tmp_path: Path, size: int, channels: int, message: str):
    with pytest.raises(InputError, match=message):
        FolderData("f", tmp_path, size, channels)
