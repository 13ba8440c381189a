from __future__ import annotations

import contextlib
import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ddim.base.errors import InputError
from ddim.data.idx import find_idx, find_labels, load_idx, read_idx

Write = Callable[..., Path]
Peak = Callable[[Callable[[], None]], int]
PIXELS = np.arange(2 * 3 * 4).reshape(2, 3, 4)


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_reads_what_was_written(tmp_path: Path, write_idx: Write, name: str):
    array, _ = read_idx(write_idx(tmp_path / name, PIXELS), 3)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, PIXELS)


def test_compression_is_known_by_content_not_by_name(tmp_path: Path, write_idx: Write):
    compressed = write_idx(tmp_path / "a.gz", PIXELS).rename(tmp_path / "a")
    plain = write_idx(tmp_path / "b", PIXELS).rename(tmp_path / "b.gz")
    np.testing.assert_array_equal(read_idx(compressed, 3)[0], read_idx(plain, 3)[0])
    assert read_idx(compressed, 3)[1] == read_idx(plain, 3)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-3], r"truncated: dimensions \(2, 3, 4\) need 40 bytes, 37 found"),
        (lambda c: c + b"12", r"too long: dimensions \(2, 3, 4\) need 40 bytes, 42 found"),
        (lambda c: c[:9], "truncated: 16 bytes of header expected, 9 found"),
        (lambda c: b"\x89PNG" + c[4:], "not an IDX file: it begins with 89 50 4e 47"),
        (lambda _: b"", "not an IDX file: it begins with nothing"),
        (lambda c: c[:2] + b"\x0d" + c[3:], "element type 0x0d: only unsigned bytes"),
        (lambda c: c[:4] + bytes(4) + c[8:], "empty: its dimensions are"),
        (lambda c: c[:4] + b"\xff" * 12 + c[16:], "truncated: dimensions"),
        (lambda c: gzip.compress(c)[:-9], "truncated or damaged gzip file"),
        (lambda c: gzip.compress(c[:-3]), r"truncated: .* need 40 bytes, 37 found"),
        (lambda c: gzip.compress(c + b"1"), "too long: .* need 40 bytes, more found"),
        (lambda c: gzip.compress(c)[:-8] + bytes(8), "truncated or damaged gzip file"),
    ],
)
def test_bad_files_are_named(
    tmp_path: Path, write_idx: Write, change: Callable[[bytes], bytes], message: str
):
    path = write_idx(tmp_path / "some-file", PIXELS)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=f"some-file.*{message}"):
        read_idx(path, 3)


def test_several_gzip_members_are_one_file(tmp_path: Path, write_idx: Write):
    path = write_idx(tmp_path / "a", PIXELS)
    content = path.read_bytes()
    path.write_bytes(gzip.compress(content[:9]) + gzip.compress(content[9:]))
    np.testing.assert_array_equal(read_idx(path, 3)[0], PIXELS)


@pytest.mark.parametrize(
    ("dims", "content", "message"),
    [
        ((2, 28, 28), bytes(80 << 20), "too long: .* need 1584 bytes, more found"),
        ((4_000_000_000, 28, 28), b"", "declares 3136000000016 bytes"),
        ((100_000, 28, 28), bytes(70 << 20), "declares 78400016 bytes"),
        ((200_000, 28, 28), b"random", "ends as one of 5242896 bytes"),
    ],
)
def test_what_a_gzip_file_declares_is_compared_before_it_is_unpacked(
    tmp_path: Path, peak_memory: Peak, dims: tuple[int, ...], content: bytes, message: str
):
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", *dims)
    if content == b"random":
        content = np.random.default_rng(0).bytes(5 << 20)
    (tmp_path / "a.gz").write_bytes(gzip.compress(header + content, 1))
    del content

    def read() -> None:
        with pytest.raises(InputError, match=f"a.gz .*{message}"):
            read_idx(tmp_path / "a.gz", 3)

    assert peak_memory(read) < 10 << 20


def test_missing_file(tmp_path: Path):
    with pytest.raises(InputError, match="nothing-here cannot be read: No such file"):
        read_idx(tmp_path / "nothing-here", 3)


def test_pair_becomes_data(tmp_path: Path, write_idx: Write):
    images = write_idx(tmp_path / "i.gz", PIXELS)
    labels = write_idx(tmp_path / "l", np.array([4, 1]))
    data = load_idx("pair", images, labels)
    assert (data.name, len(data), data.shape, data.classes) == ("pair", 2, (1, 3, 4), 5)
    index = torch.tensor([1, 0, 1])
    assert data.batch(index).dtype == torch.uint8
    np.testing.assert_array_equal(data.batch(index)[:, 0].numpy(), PIXELS[[1, 0, 1]])
    targets = data.labels(index)
    assert targets is not None
    assert targets.dtype == torch.int64
    assert targets.tolist() == [1, 4, 1]
    # Of the uncompressed content, under the name without .gz.
    content = gzip.decompress(images.read_bytes())
    assert data.checksums["i"] == hashlib.sha256(content).hexdigest()
    assert data.checksums.keys() == {"i", "l"}


def test_swapped_files(tmp_path: Path, write_idx: Write):
    images, labels = write_idx(tmp_path / "i", PIXELS), write_idx(tmp_path / "l", np.arange(2))
    with pytest.raises(InputError, match=r"l holds labels where images are expected.*swapped"):
        load_idx("x", labels, images)
    with pytest.raises(InputError, match=r"i holds images where labels are expected.*swapped"):
        load_idx("x", images, images)


def test_other_dimensions(tmp_path: Path, write_idx: Write):
    with pytest.raises(InputError, match=r"an array of 2 dimensions where images are expected$"):
        load_idx("x", write_idx(tmp_path / "i", PIXELS[0]), None)


def test_numbers_of_images_and_labels_differ(tmp_path: Path, write_idx: Write):
    images, labels = write_idx(tmp_path / "i", PIXELS), write_idx(tmp_path / "l", np.arange(3))
    with pytest.raises(InputError, match="i holds 2 images but l holds 3 labels"):
        load_idx("x", images, labels)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images.idx3-ubyte"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_spellings(tmp_path: Path, write_idx: Write, name: str, suffix: str):
    assert find_idx(tmp_path, "train-images-idx3-ubyte") is None
    path = write_idx(tmp_path / (name + suffix), PIXELS)
    assert find_idx(tmp_path, "train-images-idx3-ubyte") == path
    assert find_labels(path) is None
    labels = write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(2))
    assert find_labels(path) == labels


def test_labels_of_a_file_without_images_in_its_name(tmp_path: Path, write_idx: Write):
    assert find_labels(write_idx(tmp_path / "digits.idx", PIXELS)) is None


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_damaged_bytes_are_refused_by_name(tmp_path: Path, write_idx: Write, name: str):
    rng, path = np.random.default_rng(0), write_idx(tmp_path / name, PIXELS)
    whole = path.read_bytes()
    for _ in range(200):
        content = np.frombuffer(whole, np.uint8).copy()
        content[rng.integers(0, len(content), 2)] = rng.integers(0, 256, 2)
        path.write_bytes(content.tobytes())
        with contextlib.suppress(InputError):
            read_idx(path, 3)
