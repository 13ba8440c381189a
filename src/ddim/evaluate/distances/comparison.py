"""All the figures of a set of samples against real images, and their spread over seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics as stdlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddim.base.display import shown
from ddim.base.errors import InputError
from ddim.evaluate.distances.frechet import FeatureStatistics, frechet_distance
from ddim.evaluate.distances.metrics import class_chi2, kid, precision_recall
from ddim.evaluate.features.statistics import Statistics

__all__ = ["Comparison", "Spread", "Summary", "check_reference", "compare", "summarise"]

FIGURES = ("fd", "kid", "precision", "recall", "chi2")


@shown
@dataclasses.dataclass(frozen=True)
class Comparison:
    """What one set of images measures against the reference.

    Attributes:
        distance: What `fd` is called: LeNet-FD, FID, or the user's extractor's name with -FD.
        count: N, the number of images.
        reference_count: The number of reference images.
        fd: The squared Fréchet distance of the features.
        kept: How many features a side KID, precision and recall are taken from.
        kid: The unbiased kernel distance; None where too few features are kept.
        precision: k = 3; None where it was not measured.
        recall: k = 3; None where it was not measured.
        chi2: χ² of the class histograms; None without classes.
        chi2_dof: Its degrees of freedom.
        notes: What must be known to read the figures, a sentence each.
    """

    distance: str
    count: int
    reference_count: int
    fd: float
    kept: int
    kid: float | None
    precision: float | None
    recall: float | None
    chi2: float | None
    chi2_dof: int | None
    notes: tuple[str, ...] = ()


class Spread(NamedTuple):
    """A mean over seeds and the standard deviation (divided by seeds - 1); None for one seed."""

    mean: float
    sd: float | None

    def __str__(self) -> str:
        """Four digits of the mean and two of the deviation, 3847 ± 160."""
        mean = _rounded(self.mean, 4)
        return mean if self.sd is None else f"{mean} ± {_rounded(self.sd, 2)}"


def _rounded(value: float, digits: int) -> str:
    return f"{float(f'{value:.{digits}g}'):g}"


@shown
@dataclasses.dataclass(frozen=True)
class Summary:
    """The figures of several seeds beside what real images measure.

    Attributes:
        distance: What ``figures["fd"]`` is called.
        count: N of every seed, and of the floor.
        seeds: How many there are.
        figures: By name: fd, kid, precision, recall, chi2, those that there are.
        floor: The same of real images that are not the reference; None if none were given.
        notes: Of all seeds, each once.
    """

    distance: str
    count: int
    seeds: int
    figures: dict[str, Spread]
    floor: Comparison | None
    notes: tuple[str, ...]


def compare(samples: Statistics, reference: Statistics, k: int = 3) -> Comparison:
    """Every figure that the two sets of statistics have in common.

    Args:
        samples: Of the images to judge, at least 2.
        reference: Of real images, at least 2.
        k: The neighbour that sets the radius for precision and recall.

    Raises:
        InputError: They were not measured alike, one has fewer than 2 images, or all reference
            images have the same features.
    """
    samples.check_like(reference)
    _at_least_two(samples)
    check_reference(reference)
    kept = min(samples.kept, reference.kept)
    notes = [note for side in (samples, reference) for note in _degenerate(side)]
    kernel = precision = recall = chi2 = dof = None
    if kept > k:
        # The choice is ordered by a hash, so that the first of it are a random choice too.
        x, y = samples.features(kept), reference.features(kept)
        kernel = kid(x, y)
        precision, recall = precision_recall(y, x, k)
    else:
        notes.append(f"KID, precision and recall need the features of {k + 1} images: {kept} kept")
    if samples.identity.classes:
        chi2, dof, _ = class_chi2(samples.class_counts, reference.class_counts)
    distance = frechet_distance(*_gaussian(samples.moments), *_gaussian(reference.moments))
    return Comparison(
        samples.identity.distance,
        samples.count,
        reference.count,
        distance,
        kept,
        kernel,
        precision,
        recall,
        chi2,
        dof,
        tuple(notes),
    )


def check_reference(reference: Statistics) -> None:
    """Refuse real images that nothing can be compared with.

    Raises:
        InputError: There are fewer than 2, or all have the same features.
    """
    _at_least_two(reference)
    if not np.any(reference.moments.cov.diagonal()):
        raise InputError(
            f"{reference.data}: {reference.identity.name} has the same features for every one of "
            f"the {reference.count} images, so that there is nothing to compare"
        )


def _at_least_two(side: Statistics) -> None:
    if side.count < 2:
        raise InputError(f"{side.data}: a covariance needs at least 2 images, not {side.count}")


def summarise(comparisons: Sequence[Comparison], floor: Comparison | None = None) -> Summary:
    """Means and standard deviations over seeds, beside the floor.

    The expectation of a Fréchet distance, of precision and of recall depends on the number of
    images, so that figures of unequal numbers are refused.

    Args:
        comparisons: One for each seed, all against the same reference.
        floor: Of as many real images, not those of the reference.

    Raises:
        InputError: There are none, or they differ in extractor or in a number of images.
    """
    if not comparisons:
        raise InputError("there is nothing to summarise: give at least one comparison")
    every = [*comparisons, *([] if floor is None else [floor])]
    for field in ("distance", "count", "reference_count", "kept"):
        values = sorted({getattr(one, field) for one in every})
        if len(values) > 1:
            label = "extractors" if field == "distance" else f"{field} of images"
            raise InputError(
                f"only like figures are put together: {label.replace('_', ' ')} "
                f"{', '.join(map(str, values))} were given; measure equally many of each"
            )
    figures = {}
    for name in FIGURES:
        values = [getattr(one, name) for one in comparisons]
        if None not in values:
            sd = stdlib.stdev(values) if len(values) > 1 else None
            figures[name] = Spread(math.fsum(values) / len(values), sd)
    notes = tuple(dict.fromkeys(note for one in every for note in one.notes))
    first = comparisons[0]
    return Summary(first.distance, first.count, len(comparisons), figures, floor, notes)


def _gaussian(moments: FeatureStatistics) -> tuple[np.ndarray, np.ndarray]:
    return moments.mean, moments.cov


def _degenerate(side: Statistics) -> list[str]:
    notes = []
    width = side.identity.width
    if side.count <= width:
        notes.append(
            f"{side.data}: the covariance of {side.count} images in {width} dimensions is singular "
            f"(rank {side.count - 1} at most); it was used as it is, nothing was added to it, and "
            f"the Fréchet distance is the more biased upwards: take more than {width} images"
        )
    constant = int((side.moments.cov.diagonal() == 0).sum())
    if constant:
        notes.append(
            f"{side.data}: {constant} of {width} features are the same for every image; they count "
            "through their means alone"
        )
    return notes
