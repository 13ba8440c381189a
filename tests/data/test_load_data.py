from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.base.errors import InputError
from ddim.data.base import ArrayData
from ddim.data.folder import FolderData
from ddim.data.load import load_data

Write = Callable[..., Path]


def save_images(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (200, 10, 90)).save(path)
    return folder


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("test", 4)])
def test_idx_folder(idx_folder: Path, split: str, count: int):
    data = load_data(str(idx_folder), split=split)
    assert (data.name, len(data), data.shape, data.classes) == ("shapes", count, (1, 5, 7), 3)
    assert len(data.checksums) == 2


def test_idx_folder_without_the_split(idx_folder: Path):
    (idx_folder / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"no test split: t10k-images-idx3-ubyte\[\.gz\]"):
        load_data(str(idx_folder), split="test")


def test_idx_folder_without_labels(idx_folder: Path):
    (idx_folder / "train-labels-idx1-ubyte").unlink()
    assert load_data(str(idx_folder)).classes is None


def test_single_idx_file_with_the_labels_beside_it(idx_folder: Path):
    path = idx_folder / "t10k-images-idx3-ubyte.gz"
    data = load_data(str(path))
    assert (data.name, len(data), data.classes) == ("t10k-images-idx3-ubyte", 4, 3)
    with pytest.raises(InputError, match=r"is a single file and has no test split"):
        load_data(str(path), split="test")


def test_single_labels_file(idx_folder: Path):
    path = idx_folder / "t10k-labels-idx1-ubyte"
    with pytest.raises(InputError, match="holds labels where images are expected"):
        load_data(str(path))


def test_other_file(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(InputError, match=r"notes\.txt is not an IDX file"):
        load_data(str(tmp_path / "notes.txt"))


def test_npz(tmp_path: Path):
    np.savez(tmp_path / "few.npz", x=np.zeros((2, 8, 8, 3), np.uint8), y=[1, 0])
    data = load_data(str(tmp_path / "few.npz"), size=8, channels=3)
    assert (data.name, data.shape, data.classes) == ("few", (3, 8, 8), 2)


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_cifar_folder(tmp_path: Path, cifar_records: Callable[[int, int], bytes], below: str):
    folder = tmp_path / "cifar" / below
    folder.mkdir(parents=True)
    (folder / "test_batch.bin").write_bytes(cifar_records(2, 0))
    data = load_data(str(tmp_path / "cifar"), split="test")
    assert (data.name, data.shape, len(data)) == ("cifar", (3, 32, 32), 2)


def test_image_folder_with_defaults(tmp_path: Path):
    data = load_data(str(save_images(tmp_path / "photos", "a.png")))
    assert isinstance(data, FolderData)
    assert (data.name, data.shape) == ("photos", (3, 64, 64))


def test_image_folder_is_resized_and_converted(tmp_path: Path):
    data = load_data(str(save_images(tmp_path, "a.png")), size=5, channels=1)
    assert data.shape == (1, 5, 5)
    assert data.batch(torch.tensor([0])).shape == (1, 1, 5, 5)


def test_image_folder_has_no_test_split_of_its_own(tmp_path: Path):
    save_images(tmp_path, "a.png", "b.png")
    with pytest.raises(InputError, match="no test split: there is no subfolder 'test'"):
        load_data(str(tmp_path), split="test")


def test_image_folder_split_by_subfolders(tmp_path: Path):
    save_images(tmp_path / "set", "train/cat/1.png", "train/dog/1.png", "test/1.png", "val/1.png")
    train = load_data(str(tmp_path / "set"))
    test = load_data(str(tmp_path / "set"), split="test")
    assert (train.name, len(train), train.classes) == ("set", 2, 2)
    assert (test.name, len(test), test.classes) == ("set", 1, None)


def test_image_folder_with_only_the_other_split(tmp_path: Path):
    save_images(tmp_path, "train/1.png", "val/1.png")
    assert len(load_data(str(tmp_path))) == 1
    with pytest.raises(InputError, match=r"no test split: its subfolders are \['train', 'val'\]"):
        load_data(str(tmp_path), split="test")


def test_class_that_is_called_train(tmp_path: Path):
    save_images(tmp_path, "train/1.png", "bus/1.png", "car/1.png")
    data = load_data(str(tmp_path))
    assert (len(data), data.classes) == (3, 3)


def test_empty_folder(tmp_path: Path):
    with pytest.raises(InputError, match="holds no images"):
        load_data(str(tmp_path))


def test_what_was_passed_over_is_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    load_data(str(save_images(tmp_path / "photos", "a.png", "b.tif")))
    assert not caplog.messages
    (tmp_path / "photos/b.heic").touch()
    load_data(str(tmp_path / "photos"), channels=1)
    assert caplog.messages == [
        "photos: 2 images used; 1 of other kinds (.heic) passed over; 2 in colour turned grey"
    ]


def test_what_lies_beside_a_split_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = save_images(tmp_path / "set", "train/1.png", "test/1.png", "extra/1.png", "loose.png")
    load_data(str(folder), split="test", channels=3)
    assert caplog.messages == ["set: 1 image used; ['extra', 'loose.png'] beside them passed over"]


def test_pictures_beside_idx_files_are_said(idx_folder: Path, caplog: pytest.LogCaptureFixture):
    load_data(str(idx_folder))
    assert not caplog.messages
    save_images(idx_folder, "sheet.png")
    load_data(str(idx_folder))
    assert caplog.messages == ["shapes: 6 images used; ['sheet.png'] beside them passed over"]


def test_nothing_is_said_of_what_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    np.savez(tmp_path / "few.npz", x=np.zeros((2, 8, 8), np.uint8), other=[1])
    with pytest.raises(InputError, match="8 x 8"):
        load_data(str(tmp_path / "few.npz"), size=9)
    assert not caplog.messages
    load_data(str(tmp_path / "few.npz"))
    assert caplog.messages == ["few: 2 images used; other arrays ['other'] passed over"]


def test_only_files_of_images_can_be_skipped(tmp_path: Path):
    folder = save_images(tmp_path / "photos", "a.png", "b.png")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:-30])
    assert len(load_data(str(folder), skip_broken=True)) == 1
    np.savez(tmp_path / "few.npz", x=np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(InputError, match="few is no folder of image files"):
        load_data(str(tmp_path / "few.npz"), skip_broken=True)


def test_unknown_name():
    with pytest.raises(InputError, match=r"unknown data 'mnits': did you mean 'mnist'\?.*nor is"):
        load_data("mnits")
    with pytest.raises(InputError, match="unknown data ''"):
        load_data("")


def test_unknown_split():
    with pytest.raises(InputError, match="unknown split 'training': did you mean 'train'"):
        load_data("digits", split="training")


def test_only_folders_change_size_and_channels(idx_folder: Path):
    with pytest.raises(InputError, match="shapes has images of 5 x 7 pixels, not 5 x 5"):
        load_data(str(idx_folder), size=5)
    with pytest.raises(InputError, match="shapes has images with 1 channel, not 3"):
        load_data(str(idx_folder), channels=3)


IMAGES = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "targets", "classes", "message"),
    [
        (IMAGES.float(), None, None, "images must be uint8"),
        (IMAGES[0], None, None, "images must be uint8 with shape"),
        (IMAGES[:0], None, None, "not empty"),
        (IMAGES, torch.tensor([0, 1]), None, "go together"),
        (IMAGES, torch.tensor([0, 1, 1]), 2, "2 images but 3 labels"),
        (IMAGES, torch.tensor([0, 2]), 2, r"labels must lie in 0\.\.1; they span 0\.\.2"),
        (IMAGES, torch.tensor([0.0, 1.0]), 2, "labels must be int64"),
    ],
)
def test_arrays_are_checked(
    images: torch.Tensor, targets: torch.Tensor | None, classes: int | None, message: str
):
    with pytest.raises(InputError, match=f"odd.*{message}"):
        ArrayData("odd", images, targets, classes)


def test_heavy_packages_are_not_imported_with_the_module():
    code = "import sys, ddim.data; print({'PIL', 'sklearn'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
