"""Bits per dimension of a model on real images, both figures of them, image by image."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ddim.base.errors import InputError
from ddim.base.files import read_json, write_json
from ddim.base.records import checked, in_file
from ddim.data.base import ImageData, labels_fit
from ddim.data.pixels import from_pixels
from ddim.evaluate.likelihood.bound import elbo
from ddim.evaluate.likelihood.ode import NODES, ode_bits
from ddim.model.agreement import agree_on
from ddim.model.condition import Condition
from ddim.model.memory import enough_memory
from ddim.model.model import Model
from ddim.noise.nodes import make_nodes

__all__ = ["BitsPerDimension", "Estimate", "image_calls"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over images, and the standard error of it."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


def image_calls(model: Model) -> int:
    """Network calls that both figures of one image take."""
    T = model.schedule.T
    nodes = min(NODES, T) - int(model.schedule.alpha[-1] == 0)
    return T + 3 * (nodes - 1) + 2 * nodes


class BitsPerDimension:
    """The bits per dimension of real images, kept in a file as they are measured; nothing clips.

    ``elbo`` is the variational bound of DDPM's T steps with the posterior variance
    (:func:`~ddim.evaluate.likelihood.bound.elbo`), ``ode`` the density of the deterministic path
    (:func:`~ddim.evaluate.likelihood.ode.ode_bits`). They are of different models, and
    not compared.

    Args:
        model: the model. A class-conditional one is told each image's class.
        data: real images it was not trained on.
        count: how many of them, in an order that seed 0 shuffles.
        path: the file; a measurement that was interrupted goes on from it.
        batch_size: images in one network call.
        anew: begin anew, whatever is in the file.

    Raises:
        InputError: more images than there are, images of no known class, a schedule too short for
            the path, or a file of another model or other data.
    """

    def __init__(
        self,
        model: Model,
        data: ImageData,
        count: int,
        path: Path,
        *,
        batch_size: int = 8,
        anew: bool = False,
    ) -> None:
        if not 2 <= count <= len(data):
            raise InputError(f"bits of {count} images: {data.name} has 2 to {len(data)} for that")
        if model.schedule.T - int(model.schedule.alpha[-1] == 0) < 4:
            raise InputError("bits per dimension need a schedule of at least 4 steps with α > 0")
        if model.classes is not None and not labels_fit(data, model.classes):
            raise InputError(f"{data.name} has no labels for the {model.classes} classes")
        self.model, self.data, self.count, self.batch_size = model, data, count, batch_size
        self.chosen = np.random.default_rng(0).permutation(len(data))[:count]
        self.path = Path(path)
        self._about = {
            "model": model.identity,
            "data": sorted(data.checksums.values()) or _digest(data),
            "images": [len(data), *data.shape],
            "dtype": str(model.dtype).removeprefix("torch."),
            "batch_size": batch_size,
            "backend": model.runs_on,
        }
        self._values: dict[str, list[float]] = {"elbo": [], "ode": []}
        if self.path.exists() and not anew:
            self._read()

    def _read(self) -> None:
        kept = read_json(self.path)
        for key, value in self._about.items():
            if kept.get(key) != value:
                raise InputError(f"{self.path} is of another {key}: give another --output")
        with in_file(self.path):
            self._values = {n: checked(n, kept.get(n), list[float]) for n in self._values}

    @property
    def left(self) -> int:
        """Images that are still to be measured."""
        return max(0, self.count - len(self._values["elbo"]))

    def run(self) -> Iterator[int]:
        """Measure what is left. Yields the images done, batch by batch."""
        schedule = self.model.schedule
        every, network = make_nodes(schedule, "uniform", schedule.T), self.model.predictor()
        starts = range(len(self._values["elbo"]), self.count, self.batch_size)
        agree_on(self.model, real_images=self._about, first_image_to_measure=starts.start)

        def measured(number: int) -> tuple[list[float], list[float]]:
            first = starts[number]
            indices = range(first, min(first + self.batch_size, self.count))
            wanted = torch.from_numpy(self.chosen[first : indices.stop])
            x0 = from_pixels(self.data.batch(wanted)).to(self.model.device)
            labels = None if self.model.classes is None else self.data.labels(wanted)
            denoiser = self.model.denoiser(Condition(labels, clip=False), network=network)
            with enough_memory(self.batch_size):
                bound = elbo(denoiser, schedule, every, x0, indices=indices).total
                density = ode_bits(denoiser, schedule, x0, indices=indices)
            return bound.tolist(), density.tolist()

        for bound, density in self.model.each(measured, len(starts)):
            self._values["elbo"] += bound
            self._values["ode"] += density
            write_json(self.path, {**self._about, **self._values})
            yield len(bound)

    def figures(self) -> dict[str, Estimate]:
        """``elbo`` and ``ode`` of the images, in bits per dimension; once all are measured."""
        return {name: _estimate(values[: self.count]) for name, values in self._values.items()}

    def __str__(self) -> str:
        found = self.figures()
        return (
            f"{found['elbo']} by the variational bound, {found['ode']} by the density of the "
            f"deterministic path (± standard error of {self.count:,} test images)"
        )


def _digest(data: ImageData) -> str:
    """SHA-256 of all images and labels, for data that no file stands for."""
    digest = hashlib.sha256()
    for part in torch.arange(len(data)).split(1000):
        labels = data.labels(part)
        digest.update(data.batch(part).numpy().tobytes())
        digest.update(b"" if labels is None else labels.numpy().tobytes())
    return digest.hexdigest()


def _estimate(values: Sequence[float]) -> Estimate:
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values)))
