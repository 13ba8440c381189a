"""Measuring images as they come: from a sampler, from a data set, or as the package ships them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ddim.backends.exchange import over_ranks
from ddim.backends.workers import side_by_side
from ddim.base.errors import InputError, quoted
from ddim.base.ranks import here
from ddim.base.records import parse_json
from ddim.checkpoints.tensors import read_safetensors
from ddim.data.base import ImageData
from ddim.data.pixels import from_pixels
from ddim.evaluate.distances.frechet import FeatureStatistics
from ddim.evaluate.features.extractor import Extractor, Seen, lenet_extractor
from ddim.evaluate.features.lenet import LENET_FOLDER, lenet_config
from ddim.evaluate.features.statistics import KEEP, Statistics

__all__ = ["collect", "collect_data", "shipped_statistics", "source_of"]


def collect(
    extractor: Extractor,
    batches: Iterable[tuple[Sequence[int], Tensor]],
    data: str,
    *,
    keep: int = KEEP,
    source: str = "",
) -> Statistics:
    """Measure images as they come; none is held longer than its batch.

    Args:
        extractor: What they are measured by.
        batches: (indices, images), images of shape (N, C, H, W) in [-1, 1]. Image i of a seed or
            of a set has index i.
        data: What they are, for people and for records.
        keep: See :class:`Statistics`.
        source: See :class:`Statistics`.

    Raises:
        InputError: what :class:`Extractor` and :meth:`Statistics.add` refuse.
    """
    statistics = Statistics(extractor.identity, data, keep=keep, source=source)
    for indices, images in batches:
        statistics.add(*extractor(images), indices, images.shape[1:])
    return statistics


def collect_data(
    extractor: Extractor,
    images: ImageData,
    indices: Sequence[int] | None = None,
    *,
    data: str | None = None,
    keep: int = KEEP,
    batch: int = 500,
    watch: Callable[[int], object] | None = None,
) -> Statistics:
    """Measure a data set, or the images of it at `indices`.

    Several processes (:mod:`ddim.base.ranks`) divide the work among them.

    Args:
        extractor: What they are measured by.
        images: As :func:`ddim.data.load.load_data` returns them.
        indices: Which; all if None.
        data: What they are called; the data's own name if None.
        keep: See :class:`Statistics`.
        batch: How many are decoded at a time.
        watch: Called with the number of images after each batch.

    Raises:
        InputError: `batch` is not positive, or as for :func:`collect`.
    """
    if batch < 1:
        raise InputError(f"batch must be at least 1, not {batch}")
    wanted = range(len(images)) if indices is None else indices

    starts, ranks = range(0, len(wanted), batch), here()

    def measured(number: int) -> Iterator[tuple[list[int], Seen]]:
        part = [*wanted[starts[number] : starts[number] + batch]]
        yield part, extractor(from_pixels(images.batch(torch.tensor(part))))

    run = side_by_side
    if ranks.count > 1:
        run = functools.partial(over_ranks, ranks=ranks, device=torch.device("cpu"))
    found = Statistics(
        extractor.identity, data or images.name, keep=keep, source=source_of(images, indices)
    )
    for part, features in run(measured, len(starts), 0, ends=lambda _: True):
        found.add(*features, part, images.shape)
        if watch is not None:
            watch(len(part))
    return found


def source_of(images: ImageData, indices: Sequence[int] | None = None) -> str:
    """SHA-256 of the files' checksums, the images' shape and which of them; empty without files."""
    if not images.checksums:
        return ""
    about = [images.shape, sorted(images.checksums.values()), indices and [*indices]]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def shipped_statistics(split: str = "train") -> Statistics:
    """The shipped moments of real digits, of MNIST's ``train`` or ``test`` images.

    No features are kept in them: there is a Fréchet distance and a χ² to be had, but neither KID
    nor precision and recall, for which :func:`collect_data` measures the images themselves.

    Raises:
        InputError: There is no such split, or the file is not of the shipped classifier.
    """
    facts = lenet_config()
    if split not in ("train", "test"):
        raise InputError(
            f"the shipped statistics are of 'train' and 'test', not of {quoted(split)}"
        )
    identity = lenet_extractor().identity
    tensors, metadata = read_safetensors(LENET_FOLDER / "statistics.safetensors")
    recorded = parse_json(metadata.get("statistics", ""), "statistics.safetensors")
    mean, cov = (tensors[f"{split}.{name}"].numpy() for name in ("mean", "cov"))
    if recorded.get("extractor_sha256") != identity.sha256:
        raise InputError("the shipped statistics are stale: train the classifier again")
    count = recorded["count"][split]
    statistics = Statistics(identity, f"mnist {split}", keep=0)
    statistics.moments = FeatureStatistics.from_moments(count, mean, cov * (count - 1))
    shares = np.array(facts[split]["class_shares"])
    statistics.class_counts = np.rint(shares * count).astype(np.int64)
    statistics.shape = (1, 28, 28)
    return statistics
