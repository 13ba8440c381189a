"""What is kept of a set of images: sums that merge, a bounded choice of features, and a record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddim.base.errors import InputError, quoted
from ddim.base.records import in_file, parse_json, record
from ddim.checkpoints.tensors import metadata_of, read_safetensors, write_safetensors
from ddim.evaluate.distances.frechet import FeatureStatistics
from ddim.evaluate.features.extractor import Extractor, Identity
from ddim.evaluate.features.published import read_published

__all__ = ["KEEP", "Statistics"]

KEEP = 10_000
"""How many images' features are kept for KID, precision and recall, unless told otherwise."""

_FORMAT = "ddim statistics 1"
_DTYPES = (torch.float64, torch.float32, torch.int64, torch.uint64)


@dataclasses.dataclass(frozen=True)
class _Facts:
    """The JSON that stands beside the arrays."""

    count: int
    data: str
    keep: int
    shape: tuple[int, ...] | None
    name: str
    preprocessing: str
    width: int
    classes: int = 0
    sha256: str = ""
    source: str = ""


def _facts(path: Path, metadata: Mapping[str, str]) -> _Facts:
    if metadata.get("format") != _FORMAT:
        raise InputError(f"{path} holds no statistics of images")
    with in_file(f"{path} cannot be read as statistics of images"):
        facts = record(_Facts, parse_json(metadata.get("statistics", ""), "its record"))
        if facts.count < 0:
            raise InputError(f"count {facts.count} is negative")
    return facts


class Statistics:
    """Features of images that arrive in batches, in memory that does not grow with their number.

    The count, the mean, the covariance and the class counts are of all images, in float64 sums.
    KID and precision/recall need the features themselves. They are kept of at most `keep` images,
    those whose indices hash lowest: a random choice, which is the same whatever the order, the
    batches and the parts that are merged. 10,000 of them take 2.6 MB with 64 features and 82 MB
    with 2,048.

    Args:
        identity: Of the extractor that the features are from.
        data: What the images are, for people and for records.
        keep: How many images' features to keep; 0 for none.
        source: A digest of the files that the images came from, which tells one set from another
            of its name; empty where there is none.

    Attributes:
        identity: As given.
        data: As given.
        keep: As given.
        source: As given.
        moments: The count, the mean and the covariance.
        class_counts: (K,), int64: how many images have each class as their most probable one.
        shape: (C, H, W) of the images; None before the first.
        counted: Whether the count is known: published moments leave it open.

    Raises:
        InputError: `keep` is negative.
    """

    def __init__(
        self, identity: Identity, data: str, *, keep: int = KEEP, source: str = ""
    ) -> None:
        if keep < 0:
            raise InputError(f"keep must be at least 0, not {keep}")
        self.identity, self.data, self.keep, self.source = identity, data, keep, source
        self.moments = FeatureStatistics(identity.width)
        self.class_counts: NDArray[np.int64] = np.zeros(identity.classes, dtype=np.int64)
        self.shape: tuple[int, ...] | None = None
        self.counted = True
        self._indices = np.zeros(0, dtype=np.uint64)
        self._features = np.zeros((0, identity.width), dtype=np.float32)

    @property
    def count(self) -> int:
        """The number of images, N."""
        return self.moments.count

    @property
    def about(self) -> str:
        """What the images are, and how many, for people."""
        number = f"{self.count:,} images" if self.counted else "a number of images that is not said"
        return f"{self.data}, {number}"

    @property
    def kept(self) -> int:
        """How many images' features are kept."""
        return len(self._indices)

    def features(self, count: int | None = None) -> NDArray[np.float32]:
        """Features (count, D) of a random choice of the images; of all that are kept if None.

        Raises:
            InputError: More are asked for than are kept.
        """
        count = self.kept if count is None else count
        if not 0 <= count <= self.kept:
            raise InputError(
                f"{self.data}: the features of {self.kept} images are kept, not of {count}"
            )
        return self._features[:count]

    def add(
        self,
        features: NDArray[np.float32],
        probabilities: ArrayLike | None,
        indices: Sequence[int],
        shape: Sequence[int],
    ) -> None:
        """Add images.

        Args:
            features: (N, D), as an extractor returns them.
            probabilities: (N, K), float, or None where there are no classes.
            indices: Which images they are: N numbers from 0 to 2⁶⁴ - 1, each given once.
            shape: (C, H, W) of the images.

        Raises:
            InputError: The lengths differ, an index came twice, or the images have another shape
                than those before.
        """
        if len(features) != len(indices):
            raise InputError(f"{len(features)} rows of features but {len(indices)} indices")
        self._same_shape(tuple(shape))
        keys = np.array(list(indices), dtype=np.uint64)
        self._choose(keys, np.asarray(features, dtype=np.float32))
        self.moments.update(features)
        if probabilities is not None:
            classes = np.asarray(probabilities).argmax(axis=1)
            self.class_counts += np.bincount(classes, minlength=self.identity.classes)

    def merge(self, other: Statistics) -> None:
        """Add all that another has seen: a part of the same images, measured alike.

        Raises:
            InputError: It has another extractor, data, choice size or image shape, or images in
                common with these.
        """
        self.check_like(other)
        if (self.data, self.keep, self.source) != (other.data, other.keep, other.source):
            raise InputError(
                f"cannot merge {quoted(other.data)} with {other.keep} features kept into "
                f"{quoted(self.data)} with {self.keep}: they are not parts of one set"
            )
        if other.shape is not None:
            self._same_shape(other.shape)
        self._choose(other._indices, other._features)
        self.moments.merge(other.moments)
        self.class_counts += other.class_counts

    def check_like(self, other: Statistics) -> None:
        """Refuse statistics that were not measured in the same way.

        Raises:
            InputError: The extractors, their preprocessing or the images' shapes differ.
        """
        difference = self.identity.difference(other.identity)
        if difference is None and len({self.shape, other.shape} - {None}) == 2:
            difference = f"image shape {self.shape} on one side and {other.shape} on the other"
        if difference is not None:
            raise InputError(
                f"{quoted(self.data)} and {quoted(other.data)} were not measured alike, "
                f"{difference}: measure both again in one way"
            )

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all, that :meth:`load` reads."""
        facts = {
            "count": self.count,
            "data": self.data,
            "keep": self.keep,
            "source": self.source,
            "shape": self.shape,
            **dataclasses.asdict(self.identity),
        }
        tensors = {
            "mean": self.moments.mean if self.count else np.zeros(self.identity.width),
            "scatter": self.moments.scatter,
            "class_counts": self.class_counts,
            "indices": self._indices,
            "features": self._features,
        }
        metadata = {"format": _FORMAT, "statistics": json.dumps(facts)}
        write_safetensors(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: Path | str, like: Extractor | None = None) -> Statistics:
        """Read what :meth:`save` wrote, or published statistics of Inception features.

        Args:
            path: The file; an ``.npz`` with ``mu`` and ``sigma`` as FID programs publish them is
                taken for the published Inception's, where `like` is that.
            like: The extractor that it is to be compared with; checked now rather than after
                hours of sampling.

        Raises:
            InputError: There is no such file, it holds something else, or it is stale: of another
                extractor than `like`, of other weights, or of another preprocessing.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"there is no file {path} with statistics of reference images")
        if path.suffix.lower() == ".npz":
            mean, cov = read_published(path)
            return cls._published(path, mean, cov, like)
        tensors, metadata = read_safetensors(path)
        facts = _facts(path, metadata)
        with in_file(f"{path} cannot be read as statistics of images"):
            arrays = {k: v.numpy().copy() for k, v in tensors.items() if v.dtype in _DTYPES}
            statistics = cls._from_file(facts, arrays)
        if like is not None:
            difference = statistics.identity.difference(like.identity)
            if difference is not None:
                raise InputError(f"{path} is stale, {difference}: measure the images again")
        return statistics

    @staticmethod
    def count_in(path: Path | str) -> int:
        """N of a file that :meth:`save` wrote, without reading the arrays.

        Raises:
            InputError: It holds something else, or is damaged.
        """
        metadata = metadata_of(Path(path))
        if metadata is None:
            raise InputError(f"{path} cannot be read as statistics of images: it is damaged")
        return _facts(Path(path), metadata).count

    @classmethod
    def _published(
        cls, path: Path, mean: NDArray, cov: NDArray, like: Extractor | None
    ) -> Statistics:
        """Moments whose file says neither the extractor nor the number of images.

        The covariance is taken as it is; of the number nothing is computed but the notes.
        """
        if like is None or like.identity.distance != "FID":
            measured = "no extractor" if like is None else like.identity.name
            raise InputError(
                f"{path} holds mu and sigma of {len(mean)} features, as FID programs publish them "
                f"for Inception: they cannot be compared with {measured}"
                + ("" if like is None else f" of {like.identity.width} features")
                + "; measure with the published Inception, or the real images themselves"
            )
        if len(mean) != like.identity.width:
            raise InputError(
                f"{path} has {len(mean)} features, where Inception has {like.identity.width}"
            )
        made = cls(like.identity, f"{path.name}, as published", keep=0)
        made.counted, count = False, len(mean) + 1
        with in_file(path):
            made.moments = FeatureStatistics.from_moments(count, mean, cov * (count - 1))
        return made

    @classmethod
    def _from_file(cls, facts: _Facts, tensors: dict[str, NDArray]) -> Statistics:
        kinds = dict.fromkeys(("mean", "scatter"), np.float64)
        kinds |= {"class_counts": np.int64, "indices": np.uint64, "features": np.float32}
        for name, kind in kinds.items():
            if name not in tensors or tensors[name].dtype != kind:
                raise InputError(f"{name} is missing, or no array of {np.dtype(kind)}")
        # Before anything of that width is made.
        width, kept = facts.width, tensors["indices"].size
        shapes = [tensors[name].shape for name in kinds]
        if shapes != [(width,), (width, width), (facts.classes,), (kept,), (kept, width)]:
            raise InputError("the arrays do not fit the record")
        names = [field.name for field in dataclasses.fields(Identity)]
        identity = Identity(**{name: getattr(facts, name) for name in names})
        made = cls(identity, facts.data, keep=facts.keep, source=facts.source)
        made.class_counts, made.shape = tensors["class_counts"], facts.shape
        made._indices, made._features = tensors["indices"], tensors["features"]
        made.moments = FeatureStatistics.from_moments(
            facts.count, tensors["mean"], tensors["scatter"]
        )
        return made

    def _same_shape(self, shape: tuple[int, ...]) -> None:
        if self.shape not in (None, shape):
            raise InputError(
                f"{self.data}: images of {self.shape} and of {shape} in one set: "
                "bring them to one size first"
            )
        self.shape = shape

    def _choose(self, indices: NDArray[np.uint64], features: NDArray[np.float32]) -> None:
        every = np.concatenate([self._indices, indices])
        hashed = _hash(every)
        # The hash is one to one, so that equal ones are one image.
        order = np.argsort(hashed)
        twice = np.flatnonzero(np.diff(hashed[order]) == 0)
        if len(twice):
            raise InputError(f"{self.data}: image {every[order[twice[0]]]} was added twice")
        order = order[: self.keep]
        self._indices = every[order]
        self._features = np.concatenate([self._features, features])[order]


def _hash(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea, Flood 2014), a bijection of 64-bit numbers."""
    z = keys + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
