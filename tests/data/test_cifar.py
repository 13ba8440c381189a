from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ddim.base.errors import InputError
from ddim.data import cifar
from ddim.data.cifar import find_cifar, load_cifar

Records = Callable[[int, int], bytes]
FILES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


@pytest.fixture
def contents(cifar_records: Records) -> dict[str, bytes]:
    return {name: cifar_records(i + 1, i) for i, name in enumerate(FILES)}


def write_folder(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        # Not in the order of reading, and with a file that is not of interest.
        for name, content in [*reversed(contents.items()), ("readme.html", b"hello")]:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_folder(tmp_path: Path, contents: dict[str, bytes]):
    data = load_cifar("c", write_folder(tmp_path / "c", contents), "train")
    assert (len(data), data.shape, data.classes) == (15, (3, 32, 32), 10)
    # The first record of the second file comes after the only one of the first.
    record = np.frombuffer(contents["data_batch_2.bin"], np.uint8)[:3073]
    index = torch.tensor([1])
    np.testing.assert_array_equal(data.batch(index).numpy().ravel(), record[1:])
    targets = data.labels(index)
    assert targets is not None
    assert targets.tolist() == [record[0]]
    assert data.checksums == {n: hashlib.sha256(contents[n]).hexdigest() for n in FILES[:5]}


@pytest.mark.parametrize("split", ["train", "test"])
def test_archive_gives_what_the_folder_gives(
    tmp_path: Path, contents: dict[str, bytes], split: str
):
    folder = load_cifar("c", write_folder(tmp_path / "c", contents), split)
    archive = load_cifar("c", write_archive(tmp_path / "c.tar.gz", contents), split)
    assert torch.equal(folder.images, archive.images)
    assert folder.checksums == archive.checksums


def test_find(tmp_path: Path, contents: dict[str, bytes]):
    assert find_cifar(tmp_path / "absent") is None
    archive = write_archive(tmp_path / "cifar-10-binary.tar.gz", contents)
    assert find_cifar(tmp_path) == archive
    folder = write_folder(tmp_path / "cifar-10-batches-bin", contents)
    assert find_cifar(tmp_path) == folder
    assert find_cifar(folder) == folder


def test_missing_batches(tmp_path: Path, contents: dict[str, bytes]):
    del contents["data_batch_2.bin"], contents["data_batch_4.bin"]
    lacks = "lacks data_batch_2.bin, data_batch_4.bin"
    with pytest.raises(InputError, match=lacks):
        load_cifar("c", write_folder(tmp_path / "c", contents), "train")
    with pytest.raises(InputError, match=lacks):
        load_cifar("c", write_archive(tmp_path / "c.tar.gz", contents), "train")


@pytest.mark.parametrize("content", [b"", bytes(3072), bytes(3074), bytes(2 * 3073 - 1)])
def test_size_that_is_no_number_of_records(tmp_path: Path, content: bytes):
    folder = write_folder(tmp_path / "c", {"test_batch.bin": content})
    with pytest.raises(InputError, match=rf"test_batch.bin holds {len(content)} bytes.*of 3073"):
        load_cifar("c", folder, "test")


def test_label_above_nine(tmp_path: Path):
    folder = write_folder(tmp_path / "c", {"test_batch.bin": b"\x0a" + bytes(3072)})
    with pytest.raises(InputError, match=r"test_batch.bin has a label 10: CIFAR-10's lie in 0..9"):
        load_cifar("c", folder, "test")


@pytest.mark.parametrize("kept", [0, 5, 0.5, -4])
def test_damaged_archive(tmp_path: Path, contents: dict[str, bytes], kept: float):
    path = write_archive(tmp_path / "c.tar.gz", contents)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(InputError, match=r"c\.tar\.gz"):
        load_cifar("c", path, "train")


def test_archive_of_more_than_cifar(
    tmp_path: Path, peak_memory: Callable[..., int], monkeypatch: pytest.MonkeyPatch
):
    """A batch, a name or the padding that goes on is refused before it is there."""
    monkeypatch.setattr(cifar, "_ARCHIVE", 8 << 20)  # of 185 MB
    zeros = gzip.compress(bytes(32 << 20), 1)
    long = tarfile.TarInfo("data_batch_1.bin")
    long.size = 512 << 20
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 512 << 20
    for header in (long.tobuf(), name.tobuf(), bytes(1024)):
        path = tmp_path / "c.tar.gz"
        path.write_bytes(gzip.compress(header) + zeros)

        def load(path: Path = path) -> None:
            with pytest.raises(InputError, match=r"c\.tar\.gz (holds more than|lacks data_batch)"):
                load_cifar("c", path, "train")

        assert peak_memory(load) < 24 << 20


def test_full_batches_are_not_too_long(tmp_path: Path, contents: dict[str, bytes]):
    """The published archive has six."""
    full = bytes(10_000 * 3073)
    path = write_archive(tmp_path / "c.tar.gz", dict.fromkeys(contents, full))
    assert len(load_cifar("c", path, "test")) == 10_000
