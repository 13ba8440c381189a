from __future__ import annotations

import dataclasses
import hashlib
import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.base.errors import InputError, RunError
from ddim.data import named
from ddim.data.load import load_data
from ddim.data.names import DATASETS

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data"
STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")


@pytest.fixture
def small_mnist(
    tmp_path: Path, write_idx: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Three images in a folder, which for the time of the test are MNIST's."""
    folder = tmp_path / "small"
    arrays = (np.arange(3 * 28 * 28).reshape(3, 28, 28) % 251, np.arange(3))
    sums = {}
    for stem, array in zip(STEMS, arrays, strict=True):
        content = write_idx(folder / stem, array).read_bytes()
        sums[stem] = hashlib.sha256(content).hexdigest()
    changed = dataclasses.replace(named._IDX_SETS["mnist"], sha256=sums)
    monkeypatch.setitem(named._IDX_SETS, "mnist", changed)
    return folder


def no_fetch(*_: object, **__: object) -> None:
    raise AssertionError("nothing should be downloaded")


def test_names():
    assert DATASETS == ("mnist", "fashion-mnist", "cifar10", "celeba", "digits")


@pytest.mark.parametrize("split", ["train", "test"])
def test_real_mnist(split: str, monkeypatch: pytest.MonkeyPatch):
    if not (SHARED / "mnist").is_dir():
        pytest.skip("MNIST is not on this machine")
    monkeypatch.setattr(named, "fetch", no_fetch)
    data = load_data("mnist", split=split, size=28, channels=1, root=SHARED)
    assert data.name == "mnist"
    assert len(data) == {"train": 60_000, "test": 10_000}[split]
    assert (data.shape, data.classes) == ((1, 28, 28), 10)
    published = named._IDX_SETS["mnist"].sha256
    assert len(data.checksums) == 2
    assert all(published[name] == found for name, found in data.checksums.items())
    targets = data.labels(torch.arange(3))
    assert targets is not None
    assert targets.tolist() == {"train": [5, 0, 4], "test": [7, 2, 1]}[split]


def test_real_fashion_mnist():
    if not (SHARED / "fashion-mnist").is_dir():
        pytest.skip("Fashion-MNIST is not on this machine")
    data = load_data("fashion", split="test", root=SHARED, download=False)
    assert (data.name, len(data)) == ("fashion-mnist", 10_000)


@pytest.mark.parametrize("below", ["", "mnist"])
def test_found_in_the_root_or_below_it(
    tmp_path: Path, small_mnist: Path, below: str, monkeypatch: pytest.MonkeyPatch
):
    root = tmp_path / "root"
    root.mkdir()
    small_mnist.rename(root / below if below else tmp_path / "other")
    monkeypatch.setattr(named, "fetch", no_fetch)
    data = load_data("mnist", root=root if below else tmp_path / "other")
    assert len(data) == 3


def test_root_from_the_environment(small_mnist: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDIM_DATA", str(small_mnist))
    assert len(load_data("mnist", download=False)) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="every system has a place of its own")
def test_root_in_the_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DDIM_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert named.data_root() == tmp_path / ".cache" / "ddim" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert named.data_root() == tmp_path / "caches" / "ddim" / "data"
    monkeypatch.setenv("DDIM_DATA", "~/sets")
    assert named.data_root() == tmp_path / "sets"


def test_changed_file_is_refused(small_mnist: Path):
    path = small_mnist / STEMS[1]
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(InputError, match=rf"{STEMS[1]} is not the {STEMS[1]} of mnist.*SHA-256"):
        load_data("mnist", root=small_mnist)


def test_only_missing_files_are_downloaded(
    tmp_path: Path, small_mnist: Path, monkeypatch: pytest.MonkeyPatch
):
    content = (small_mnist / STEMS[1]).read_bytes()
    (small_mnist / STEMS[1]).unlink()
    calls = []

    def fetch(urls: list[str], dest: Path, checksum: str, *, of_uncompressed: bool) -> None:
        calls.append((urls, dest, checksum, of_uncompressed))
        dest.parent.mkdir()
        dest.write_bytes(content)

    monkeypatch.setattr(named, "fetch", fetch)
    assert len(load_data("mnist", root=small_mnist)) == 3
    mirrors = (
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    )
    urls = [f"{mirror}{STEMS[1]}.gz" for mirror in mirrors]
    dest = small_mnist / "mnist" / f"{STEMS[1]}.gz"
    assert calls == [(urls, dest, hashlib.sha256(content).hexdigest(), True)]


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_missing_and_not_to_be_downloaded(tmp_path: Path, name: str):
    with pytest.raises(InputError, match=rf"{name} is not on this machine: put its file at .*gz"):
        load_data(name, root=tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # Port 9, 'discard', where nobody listens.
    monkeypatch.setattr(named, "_CIFAR_URL", "http://127.0.0.1:9/c.tar.gz")
    with pytest.raises(RunError, match=r"cannot download cifar-10-binary\.tar\.gz \(http"):
        load_data("cifar10", root=tmp_path)


@pytest.fixture
def small_cifar(
    tmp_path: Path, cifar_records: Callable[[int, int], bytes], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An archive of two test images in a data folder, for the time of the test the published."""
    folder = tmp_path / "cifar10"
    folder.mkdir()
    archive = folder / "cifar-10-binary.tar.gz"
    content = cifar_records(2, 0)
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(named, "_CIFAR_CHECKSUM", sha256)
    monkeypatch.setattr(named, "_CIFAR_COUNT", {"test": 2})
    return archive


def test_cifar10_from_the_archive(tmp_path: Path, small_cifar: Path):
    data = load_data("cifar10", split="test", root=tmp_path, download=False)
    assert (data.name, len(data), data.shape, data.classes) == ("cifar10", 2, (3, 32, 32), 10)


def test_cifar10_with_a_changed_archive(tmp_path: Path, small_cifar: Path):
    small_cifar.write_bytes(small_cifar.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"tar\.gz is not the published archive \(sha256 "):
        load_data("cifar10", split="test", root=tmp_path)


def test_cifar10_with_records_missing(
    tmp_path: Path, small_cifar: Path, cifar_records: Callable[[int, int], bytes]
):
    (small_cifar.parent / "test_batch.bin").write_bytes(cifar_records(1, 0))
    with pytest.raises(InputError, match="holds 1 test images where CIFAR-10 has 2"):
        load_data("cifar10", split="test", root=tmp_path)


def test_cifar10_is_downloaded(tmp_path: Path, small_cifar: Path, monkeypatch: pytest.MonkeyPatch):
    content = small_cifar.read_bytes()
    small_cifar.unlink()

    def fetch(urls: list[str], dest: Path, checksum: str, *, of_uncompressed: bool) -> None:
        assert urls == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]
        assert (checksum, of_uncompressed) == (named._CIFAR_CHECKSUM, False)
        dest.write_bytes(content)

    monkeypatch.setattr(named, "fetch", fetch)
    assert len(load_data("cifar10", split="test", root=tmp_path)) == 2


def test_digits():
    pytest.importorskip("sklearn")
    train, test = load_data("digits"), load_data("digits", split="test")
    assert (len(train), len(test)) == (1500, 297)
    assert (train.shape, train.classes) == ((1, 8, 8), 10)
    pixels = train.batch(torch.arange(1500))
    # Of 17 levels, evenly spread.
    assert pixels.unique().tolist() == [round(v * 255 / 16) for v in range(17)]
    targets = train.labels(torch.arange(5))
    assert targets is not None
    assert targets.tolist() == [0, 1, 2, 3, 4]


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install 'ddim\[data\]'"):
        load_data("digits")


def test_celeba_is_cut_as_in_the_papers_and_split_as_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for number in (1, 162_770, 162_771, 182_637, 182_638, 202_599):
        pixels = np.zeros((218, 178, 3), np.uint8)
        pixels[57:185, 25:153] = number % 251  # 128 x 128 around column 89, row 121
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")
    Image.fromarray(pixels).save(folder / "cover.png")
    train = load_data("celeba", root=tmp_path, size=16)
    assert caplog.messages[0] == "celeba: 2 of its 162770 train images are there"
    test = load_data("celeba", split="test", root=tmp_path)
    assert [path.stem for path in train.files] == ["000001", "162770"]
    assert [path.stem for path in test.files] == ["182638", "202599"]
    assert (train.name, train.shape, test.shape) == ("celeba", (3, 16, 16), (3, 64, 64))
    for data, first in ((train, 1), (test, 182_638)):
        assert data.batch(torch.tensor([0])).unique().tolist() == [first % 251]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"CelebA must be fetched by hand: .* into .*empty/celeba"):
        load_data("celeba", root=tmp_path / "empty")
