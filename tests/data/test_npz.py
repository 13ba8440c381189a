from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddim.base.errors import InputError
from ddim.data.npz import load_npz

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
        ({"x": GREY, "y": [0, 1, -1, 2]}, "labels must be integers.*negative values"),
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


def test_member_that_is_no_array(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("x", "text")
    with pytest.raises(InputError, match=r"set\.npz: images must be uint8"):
        load_npz(tmp_path / "set.npz")
