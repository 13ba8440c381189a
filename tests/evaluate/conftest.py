from pathlib import Path

import pytest
import torch

from ddim.data.load import load_data
from ddim.data.pixels import from_pixels

MNIST = Path(__file__).resolve().parents[2].parent / "shared/data/mnist"


@pytest.fixture(scope="session")
def digits():
    """The real test digits, (10000, 1, 28, 28) in [-1, 1], and their classes."""
    if not MNIST.is_dir():
        pytest.skip(f"the MNIST files are not in {MNIST}")
    data = load_data(str(MNIST), split="test")
    every = torch.arange(len(data))
    return from_pixels(data.batch(every)), data.labels(every)
