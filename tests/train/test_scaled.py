from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddim.data.folder import FolderData
from ddim.data.pixels import from_pixels
from ddim.train.scaled import Scaled

IMAGE = 3 * 8 * 8  # bytes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten photos of twice the size, and which of them were decoded."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    decoded: list[int] = []
    inner = FolderData.batch

    def batch(self: FolderData, indices: Tensor) -> Tensor:
        decoded.extend(indices.tolist())
        return inner(self, indices)

    data = FolderData("photos", tmp_path, size=8)
    expected = from_pixels(data.batch(torch.arange(10)))
    monkeypatch.setattr(FolderData, "batch", batch)
    return data, expected, decoded


@pytest.mark.parametrize(
    ("most", "times"), [(2**30, 1), (10 * IMAGE, 1), (6 * IMAGE + 5, 3), (IMAGE - 1, 3)]
)
def test_files_are_decoded_once_as_far_as_the_memory_goes(folder, most, times):
    data, expected, decoded = folder
    scaled = Scaled(data, most)
    for epoch in range(3):
        shuffled = torch.randperm(10, generator=torch.Generator().manual_seed(epoch))
        for indices in shuffled.split(4):
            assert torch.equal(scaled.batch(indices), expected[indices])
    kept = min(10, most // IMAGE)
    assert [decoded.count(i) for i in range(10)] == [1] * kept + [times] * (10 - kept)


def test_an_image_that_comes_twice_in_a_batch(folder):
    data, expected, _ = folder
    scaled, indices = Scaled(data), torch.tensor([3, 3, 0, 3])
    for _ in range(2):
        assert torch.equal(scaled.batch(indices), expected[indices])
