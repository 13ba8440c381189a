from __future__ import annotations

import gzip
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    """What an IDX file of unsigned bytes contains."""
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.fixture
def write_idx() -> Callable[..., Path]:
    """Write an array as IDX, compressed if the name ends in .gz."""

    def write(path: Path, array: np.ndarray, kind: int = 8) -> Path:
        content = idx_bytes(np.asarray(array, np.uint8), kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path

    return write


@pytest.fixture
def idx_folder(tmp_path: Path, write_idx: Callable[..., Path]) -> Path:
    """A folder of both splits, 6 and 4 images of 5 x 7 pixels in 3 classes."""
    folder = tmp_path / "shapes"
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 6), ("t10k", 4)):
        pixels = rng.integers(0, 256, (count, 5, 7))
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 3)
    return folder


@pytest.fixture
def cifar_records() -> Callable[[int, int], bytes]:
    """Records of CIFAR-10 by number and seed."""

    def make(count: int, seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 10, (count, 1), dtype=np.uint8)
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        return np.hstack([labels, pixels]).tobytes()

    return make


@pytest.fixture
def peak_memory() -> Callable[[Callable[[], None]], int]:
    """The most bytes that a call holds at once, NumPy's among them."""

    def measure(call: Callable[[], None]) -> int:
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure
