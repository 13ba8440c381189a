"""What the shipped classifier makes of generated digits: the acceptance measurement."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ddim.base.errors import InputError, RunError
from ddim.base.records import parse_json
from ddim.checkpoints.tensors import read_safetensors
from ddim.evaluate.distances.frechet import FeatureStatistics, frechet_distance
from ddim.evaluate.features.lenet import LENET_FOLDER, extract, lenet_config, load_lenet

__all__ = ["CONFIDENCE", "DigitReport", "class_shares", "confident_share", "report_digits"]

CONFIDENCE = 0.9


@dataclass(frozen=True)
class DigitReport:
    """How much a set of images looks like handwritten digits to the shipped classifier.

    The Fréchet distance is between the features of this classifier. It is called LeNet-FD, never
    FID, because figures from other networks cannot be compared with it. It is positive even for
    real images, and the more so the fewer they are: 0.06 for the 10,000 real test images, which is
    `floor`, about 0.13 for a random 2,000 of them and 0.24 for 1,000.

    No figure stands alone. The classifier knows nothing but digits, and takes pure noise for an 8
    with more than 0.9 probability; the class shares and the distance (above 100) give it away.

    Attributes:
        count: The number of images, N.
        confident_share: The share of them whose most probable class has probability 0.9 or more.
        relative_share: That share divided by the one of the real test images.
        class_shares: The share of them that is classified as each digit, 0 to 9.
        lenet_fd: The Fréchet distance of their features to those of the real training images.
        floor: The Fréchet distance of the real test images to the real training images.
    """

    count: int
    confident_share: float
    relative_share: float
    class_shares: tuple[float, ...]
    lenet_fd: float
    floor: float


def report_digits(images: Tensor, *, batch: int = 500) -> DigitReport:
    """Measure generated digits against real ones.

    Args:
        images: (N, 1, 28, 28) in [-1, 1], N at least 2, on any device.
        batch: How many images go through the classifier at a time.

    Raises:
        InputError: The images have another shape or type, lie outside [-1, 1], are not finite, or
            are fewer than two; or `batch` is not positive.
        RunError: The shipped statistics are not those of the shipped classifier.

    Example:
        >>> report = report_digits(torch.zeros(4, 1, 28, 28))
        >>> report.count, sum(report.class_shares), report.lenet_fd > 100 * report.floor
        (4, 1.0, True)
    """
    if len(images) < 2:
        raise InputError(f"a covariance needs at least 2 images, not {len(images)}")
    if not images.is_floating_point():
        raise InputError(f"images must be floating point in [-1, 1], not {images.dtype}")
    # Written so that a NaN fails it too. Rounding to half precision is let through.
    if not images.abs().max() <= 1.001:
        raise InputError(
            "images must be finite and lie in [-1, 1], "
            f"not in [{images.min():.4g}, {images.max():.4g}]: clamp them first"
        )
    features, probabilities = extract(load_lenet().to(images.device), images, batch=batch)
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(features.numpy())
    real = _reference()
    share = confident_share(probabilities)
    return DigitReport(
        count=len(images),
        confident_share=share,
        relative_share=share / lenet_config()["test"]["confident_share"],
        class_shares=class_shares(probabilities),
        lenet_fd=frechet_distance(
            statistics.mean, statistics.cov, real["train.mean"], real["train.cov"]
        ),
        floor=_floor(),
    )


def confident_share(probabilities: Tensor) -> float:
    """The share of the rows (N, 10) whose largest probability is 0.9 or more."""
    return (probabilities.amax(dim=1) >= CONFIDENCE).double().mean().item()


def class_shares(probabilities: Tensor) -> tuple[float, ...]:
    """The share of the rows (N, 10) in which each of the ten classes is the most probable."""
    counts = torch.bincount(probabilities.argmax(dim=1), minlength=probabilities.shape[1])
    return tuple((counts.double() / len(probabilities)).tolist())


@cache
def _reference() -> dict[str, np.ndarray]:
    """The moments of the real images, after a check that they belong to the classifier."""
    weights = hashlib.sha256((LENET_FOLDER / "model.safetensors").read_bytes()).hexdigest()
    tensors, metadata = read_safetensors(LENET_FOLDER / "statistics.safetensors")
    recorded = parse_json(metadata.get("statistics", ""), "statistics.safetensors")
    if recorded.get("extractor_sha256") != weights:
        raise RunError(
            "statistics.safetensors was not made with model.safetensors: "
            "train the classifier again, which writes both"
        )
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@cache
def _floor() -> float:
    real = _reference()
    return frechet_distance(
        real["test.mean"], real["test.cov"], real["train.mean"], real["train.cov"]
    )
