"""The files of one sampler of a sweep, written so that a kill at any moment loses little."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor

from ddim.base.errors import InputError
from ddim.base.files import read_json, write_json
from ddim.base.records import checked, in_file, record
from ddim.checkpoints.tensors import read_safetensors, write_safetensors
from ddim.evaluate.features.extractor import Extractor
from ddim.evaluate.features.statistics import Statistics
from ddim.evaluate.sweep.plan import folder_name
from ddim.samplers.sampler import Sampler

__all__ = ["CellFiles", "load_images", "save_images"]

CELL = "cell.json"


def load_images(path: Path) -> Tensor:
    """Images (N, C, H, W) that :func:`save_images` wrote.

    Raises:
        InputError: the file is damaged.
    """
    try:
        images = read_safetensors(path)[0]["images"]
        if images.ndim != 4 or not images.is_floating_point():
            raise InputError(f"images has shape {tuple(images.shape)}, in {images.dtype}")
    except (InputError, KeyError) as error:
        raise InputError(f"{path} cannot be read, remove it: {error}") from None
    return images.clone()  # the file may be replaced while they are in use


def save_images(path: Path, images: Tensor) -> None:
    """Write a tensor of images, whole or not at all."""
    write_safetensors(path, {"images": images}, {})


@dataclasses.dataclass(frozen=True)
class _Taken:
    """How long images took, beside their statistics."""

    seconds: float
    count: int


@dataclasses.dataclass(frozen=True)
class CellFiles:
    """What is kept of a sampler: the statistics of each seed, and its first images.

    Attributes:
        sampler: which.
        folder: its own.
        extractor: what images are measured by.
    """

    sampler: Sampler
    folder: Path
    extractor: Extractor

    @classmethod
    def found(cls, folder: Path, extractor: Extractor) -> CellFiles | None:
        """Those of a folder that a sweep left; None if it is not one."""
        path = folder / CELL
        if not path.exists():
            return None
        kept = read_json(path)
        with in_file(f"{path} is no record of a sampler"):
            spelled = checked("sampler", kept.get("sampler"), str)
        if ".py:" in spelled:
            return None  # a file that somebody names runs nothing: the command must name it
        try:
            return cls(Sampler.parse(spelled), folder, extractor)
        except InputError:
            return None  # of a method of a package that is gone

    def begin(self) -> None:
        """Record which sampler it is."""
        if not (self.folder / CELL).exists():
            write_json(self.folder / CELL, {"sampler": str(self.sampler)})

    def _path(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}.safetensors"

    def statistics(self, seed: int) -> Statistics:
        """What has been measured so far."""
        path = self._path(seed)
        if not path.exists():
            return Statistics(self.extractor.identity, f"{folder_name(self.sampler)}, seed {seed}")
        return Statistics.load(path, self.extractor)

    def count(self, seed: int) -> int:
        """How many images the statistics are of."""
        path = self._path(seed)
        return Statistics.count_in(path) if path.exists() else 0

    def seconds(self, seed: int) -> float:
        """Of the images that are in the statistics; an estimate where a kill came between files."""
        count = self.count(seed)
        if count == 0:
            return 0.0
        path = self._path(seed).with_suffix(".json")
        values = read_json(path)
        with in_file(path):
            taken = record(_Taken, values)
            if taken.count < 1:
                raise InputError(f"count must be at least 1, not {taken.count}")
        return taken.seconds / taken.count * count

    def save(self, seed: int, statistics: Statistics, seconds: float) -> None:
        """Keep the statistics, and the seconds that it took to draw their images."""
        path = self._path(seed)
        write_json(path.with_suffix(".json"), {"seconds": seconds, "count": statistics.count})
        statistics.save(path)

    def seeds(self, n: int) -> list[int]:
        """Seeds of which all n images are measured."""
        names = [path.stem.removeprefix("seed-") for path in self.folder.glob("seed-*.safetensors")]
        numbers = sorted(int(name) for name in names if name.isdigit())
        return [seed for seed in numbers if self.count(seed) == n]

    def first(self, seed: int) -> Tensor | None:
        """The first images of a seed; None if none were kept."""
        path = self._first(seed)
        return load_images(path) if path.exists() else None

    def save_first(self, seed: int, images: Tensor) -> None:
        """Keep the first images of a seed."""
        save_images(self._first(seed), images)

    def _first(self, seed: int) -> Path:
        return self.folder / f"first-{seed}.safetensors"
