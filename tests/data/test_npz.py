from __future__ import annotations

import contextlib
import hashlib
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddim.base.errors import InputError
from ddim.data.npz import load_npz

Peak = Callable[[Callable[[], None]], int]
GREY = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
RGB = np.arange(4 * 5 * 6 * 3, dtype=np.int64).reshape(4, 5, 6, 3).astype(np.uint8)


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("key", ["images", "x", "arr_0"])
@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (GREY, (1, 5, 6)),
        (GREY[..., None], (1, 5, 6)),
        (GREY[:, None], (1, 5, 6)),
        (RGB, (3, 5, 6)),
        (RGB.transpose(0, 3, 1, 2), (3, 5, 6)),
    ],
)
def test_layouts(tmp_path: Path, key: str, array: np.ndarray, shape: tuple[int, ...]):
    path = write(tmp_path / "set.npz", **{key: array})
    data = load_npz(path)
    assert (data.name, len(data), data.shape, data.classes) == ("set", 4, shape, None)
    expected = RGB.transpose(0, 3, 1, 2) if shape[0] == 3 else GREY[:, None]
    np.testing.assert_array_equal(data.batch(torch.arange(4)).numpy(), expected)
    assert data.labels(torch.arange(4)) is None
    assert data.checksums == {"set.npz": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize("key", ["labels", "y"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, ">i8"])
def test_labels(tmp_path: Path, key: str, dtype: Any):
    labels = np.array([2, 0, 1, 6], dtype)
    data = load_npz(write(tmp_path / "set.npz", images=GREY, **{key: labels}))
    assert data.classes == 7
    assert data.targets is not None
    assert data.targets.dtype == torch.int64
    assert data.targets.tolist() == [2, 0, 1, 6]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": GREY}, "has none of the arrays images, x, arr_0"),
        ({"images": GREY, "x": GREY}, "ambiguous: keep one of its arrays images and x"),
        ({"x": GREY, "y": [0] * 4, "labels": [0] * 4}, "keep one of its arrays labels and y"),
        ({"x": GREY / 255}, r"must be uint8 with shape \(N, H, W\).*not float64"),
        ({"x": GREY.astype(np.int64)}, "must be uint8.*not int64"),
        ({"x": GREY[0]}, r"must be uint8.*shape \(5, 6\)"),
        ({"x": GREY[:0]}, "must be uint8"),
        ({"x": RGB[..., :2]}, r"must be uint8.*shape \(4, 5, 6, 2\)"),
        ({"x": RGB[:, :3]}, r"shape \(4, 3, 6, 3\) is ambiguous"),
        ({"x": GREY, "y": [0, 1]}, r"labels must be integers from 0 with shape \(4,\)"),
        ({"x": GREY, "y": [0.0] * 4}, "labels must be integers.*not float64"),
        ({"x": GREY, "y": [0, 1, -1, 2]}, "labels must be integers from 0 to .* they span -1 to 2"),
        ({"x": np.array([{}, None])}, "cannot be read as plain arrays"),
    ],
)
def test_bad_arrays_are_named(tmp_path: Path, arrays: dict[str, Any], message: str):
    with pytest.raises(InputError, match=rf"set\.npz.*{message}"):
        load_npz(write(tmp_path / "set.npz", **arrays))


def test_truncated(tmp_path: Path):
    path = write(tmp_path / "set.npz", x=GREY)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"set\.npz is not an \.npz archive, or is truncated"):
        load_npz(path)


def test_damaged(tmp_path: Path):
    path = write(tmp_path / "set.npz", x=GREY)
    content = bytearray(path.read_bytes())
    content[content.index(GREY.tobytes()) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"set\.npz cannot be read as plain arrays: Bad CRC"):
        load_npz(path)


def header(shape: str, descr: str = "'|u1'") -> bytes:
    """The beginning of a member: what NumPy writes before an array."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text", "cannot be read as plain arrays: .*magic"),
        (header("(2, 3, 3)"), r"shape '?\(2, 3, 3\).* needs 91 bytes.* holds 73"),
        (header("(1000000, 1000, 1000)"), "needs 1e.12 bytes"),
        (header("(99999999999999999999, 9, 9)"), "needs 8.1e.21 bytes"),
        (header("(-2, -3, 3)") + bytes(18), "it is damaged"),
        (header("(2, 3, 3)") + bytes(19), "holds 92: it is damaged"),
        (header("(2, 3, 3)", "'O'") + bytes(144), "pickled"),
        (header("-" * 5000 + "1"), "cannot be read as plain arrays"),
        (header("(" * 5000), "cannot be read as plain arrays"),
        (header("(2, 3, 3)", "[" * 5000), "cannot be read as plain arrays"),
        (b"\x93NUMPY\x03\0" + bytes(9), r"version \(3, 0\)"),
    ],
)
def test_members_that_are_not_what_they_say(tmp_path: Path, content: bytes, message: str):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(InputError, match=rf"set\.npz.*{message}"):
        load_npz(tmp_path / "set.npz")


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "message"),
    [
        ("images", np.uint8, (1_200_000, 8, 8), r"declares \d+ bytes, which \d+ compressed"),
        ("images", np.float32, (60, 500, 500), "must be uint8"),
        ("labels", np.int64, (2_000_000,), r"labels must be integers from 0 with shape \(4,\)"),
    ],
)
def test_headers_are_read_before_arrays_are_unpacked(
    tmp_path: Path, peak_memory: Peak, name: str, dtype: Any, shape: tuple[int, ...], message: str
):
    arrays = {"images": GREY, name: np.zeros(shape, dtype)}
    np.savez_compressed(tmp_path / "set.npz", **arrays)

    def load() -> None:
        with pytest.raises(InputError, match=message):
            load_npz(tmp_path / "set.npz")

    assert peak_memory(load) < 10 << 20


def test_other_compression_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", header("(2, 3, 3)") + bytes(18))
    with pytest.raises(InputError, match="compressed in a way that NumPy does not write"):
        load_npz(tmp_path / "set.npz")


def test_other_arrays_are_said_to_be_passed_over(tmp_path: Path):
    data = load_npz(write(tmp_path / "set.npz", x=GREY, masks=GREY, ids=[1, 2]))
    assert data.notes == ("other arrays ['ids', 'masks'] passed over",)
    assert load_npz(write(tmp_path / "set.npz", x=GREY)).notes == ()


def test_arrays_in_fortran_order(tmp_path: Path):
    data = load_npz(write(tmp_path / "set.npz", x=np.asfortranarray(GREY)))
    np.testing.assert_array_equal(data.images[:, 0].numpy(), GREY)


def test_labels_beyond_any_number_of_classes(tmp_path: Path):
    labels = np.array([0, 1, 2, 2**63], np.uint64)
    with pytest.raises(InputError, match="labels must be integers from 0 to 2147483647; they span"):
        load_npz(write(tmp_path / "set.npz", x=GREY, y=labels))


def test_damaged_bytes_are_refused_by_name(tmp_path: Path):
    rng, path = np.random.default_rng(0), tmp_path / "set.npz"
    whole = write(path, images=GREY, labels=[0, 1, 2, 3]).read_bytes()
    for _ in range(300):
        content = np.frombuffer(whole, np.uint8).copy()
        content[rng.integers(0, len(content), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(content.tobytes())
        with contextlib.suppress(InputError):
            load_npz(path)
