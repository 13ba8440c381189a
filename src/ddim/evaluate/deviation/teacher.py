"""Solver error: how far a sampler ends from the model's own exact solution, from the same noise.

Against real images a sampler's figures mix two errors, the network's and the solver's. The solver's
alone shows where both sides have the same network and the same starting noise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.base.display import shown
from ddim.base.errors import InputError
from ddim.model.condition import Condition
from ddim.model.drawing import generate, pick_batch_size
from ddim.model.model import Model
from ddim.noise.schedule import Schedule
from ddim.samplers.sampler import Sampler, make_tableau
from ddim.samplers.tableau import Tableau

__all__ = [
    "ErrorSummary",
    "SolverErrors",
    "finer_sampler",
    "image_errors",
    "psnr",
    "teacher_errors",
    "teacher_tableau",
]

FINE = ("plms:order=4", "deis:order=3", "unipc:order=3", "dpm-solver-3")
"""What stands for the exact solution in comparisons: the first that is not compared itself."""

PEAK = 2.0
"""The width of [-1, 1], which the signal of PSNR is measured by."""


@shown
@dataclasses.dataclass(frozen=True)
class SolverErrors:
    """The errors of one batch of images.

    Attributes:
        indices: The images.
        rms: By sampler, shape (N,), float64: root mean square over an image's pixels, in units of
            [-1, 1].
    """

    indices: tuple[int, ...]
    rms: Mapping[str, NDArray[np.float64]]


class ErrorSummary:
    """RMS and PSNR over many images, from sums.

    Example:
        >>> summary = ErrorSummary()
        >>> summary.update([0.02, 0.02])
        >>> summary.count, round(summary.rms, 3), round(summary.psnr, 1)
        (2, 0.02, 40.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self._squares = self._decibels = 0.0
        self.largest = 0.0

    def update(self, rms: Sequence[float] | NDArray[np.float64]) -> None:
        """Add the errors of images, shape (N,)."""
        values = np.asarray(rms, dtype=np.float64)
        if not np.isfinite(values).all():
            raise InputError("an error is not finite: the sampler or its teacher has diverged")
        self.count += len(values)
        self._squares += float((values**2).sum())
        self._decibels += math.fsum(psnr(float(value)) for value in values)
        self.largest = max([self.largest, *values.tolist()])

    @property
    def rms(self) -> float:
        """The root of the mean square over all pixels of all images; NaN where there are none."""
        return math.sqrt(self._squares / self.count) if self.count else math.nan

    @property
    def psnr(self) -> float:
        """The mean over images of each one's PSNR, in dB; infinite where one is exact."""
        return self._decibels / self.count if self.count else math.nan


def psnr(rms: float) -> float:
    """Peak signal-to-noise ratio in dB, 20·log₁₀(2/rms), of images in [-1, 1]; ∞ for no error."""
    return 20 * math.log10(PEAK / rms) if rms else math.inf


def image_errors(images: Tensor, exact: Tensor) -> NDArray[np.float64]:
    """RMS over the pixels of each image.

    The images are taken as the sampler leaves them, neither clamped nor rounded: both would hide a
    part of the error.

    Args:
        images: (N, *), N at least 1.
        exact: The same shape.

    Returns:
        (N,), float64.

    Raises:
        InputError: The shapes differ.
    """
    if images.shape != exact.shape or images.ndim < 2:
        raise InputError(
            f"images and their teacher's have one shape (N, *), "
            f"not {tuple(images.shape)} and {tuple(exact.shape)}"
        )
    error = images.double().cpu() - exact.double().cpu()
    return error.square().flatten(1).mean(dim=1).sqrt().numpy()


def teacher_tableau(schedule: Schedule) -> Tableau:
    """The solver that stands for the exact solution: ρAB-DEIS of order 3 through all T nodes.

    On data whose exact solution is known it was the nearest to it of all samplers with one network
    call a node. With the schedule of the shipped models (T = 500), the median RMS to a solution
    with 8 times as many steps was 4e-7 on a Gaussian, 2e-6 on a mixture in the plane and 2e-5 on a
    mixture of 200 digits; that of DDIM through all nodes was 2e-3 each time, of DPM-Solver++(3M)
    4e-5 to 1e-4, and of Heun's method, at twice the calls, 1e-5 to 1e-4.

    On the shipped network Adams' method of order 4 and Heun's, through all nodes too, end within
    6e-5 and 1e-4 of it; DDIM through all nodes ends 2e-3 to 1e-2 away.

    Its last step, from node 1 to the data, is the jump that every sampler makes.
    """
    return make_tableau(schedule, tuple(range(schedule.T, -1, -1)), "deis", order=3)


def finer_sampler(schedule: Schedule, tableaux: Sequence[Tableau]) -> Sampler:
    """A sampler that comes nearer to the exact solution than any of these, to measure them by.

    It has four times their calls, at least 60 and at most T, on quadratic nodes, by Adams' method
    of order 4: what :func:`ddim.calibrate` follows. Where that is one of them already, as it can be
    through all T nodes alone, another of high order takes its place.

    Raises:
        InputError: they are all that there is.
    """
    steps = min(schedule.T, max(60, 4 * max(tableau.calls for tableau in tableaux)))
    taken = [tableau.rows for tableau in tableaux]
    for text in FINE:
        sampler = Sampler.parse(text, steps, "quadratic")
        if sampler.tableau(schedule).rows not in taken:
            return sampler
    raise InputError(f"no sampler is finer than {', '.join(FINE)} through all nodes: leave one out")


def teacher_errors(
    model: Model,
    samplers: Mapping[str, Tableau],
    indices: Sequence[int],
    *,
    seed: int = 0,
    condition: Condition | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    teacher: Tableau | None = None,
) -> Iterator[SolverErrors]:
    """Run samplers and their teacher from the same noise, batch by batch.

    Nothing is kept of a batch once its errors are out. The teacher runs once for all samplers.

    Args:
        model: The model.
        samplers: By name; deterministic ones, with one initial state.
        indices: Which images of the seed.
        seed: Of the noise.
        condition: Of the images, as for :func:`ddim.model.drawing.generate`.
        batch_size: Images in one network call.
        dtype: Of the states.
        teacher: What to measure against; :func:`teacher_tableau` if None.

    Yields:
        The errors of a batch; :class:`ErrorSummary` adds them up.

    Raises:
        InputError: A sampler injects noise, so that it has no one solution; or as for
            :func:`ddim.model.drawing.generate`. At once, before the first step.
    """
    if teacher is None:
        teacher = teacher_tableau(model.schedule)
    for name, tableau in {**samplers, "the teacher": teacher}.items():
        if tableau.stochastic:
            raise InputError(
                f"{name} injects noise, so that no exact solution belongs to its images: "
                "the teacher's error is of deterministic samplers (eta = 0)"
            )
    if not samplers:
        raise InputError("there is no sampler to measure: give at least one")
    size = pick_batch_size(model, batch_size)
    wanted = list(indices)

    given = (condition or Condition()).check(model, len(wanted))

    def run(tableau: Tableau, part: slice) -> Tensor:
        drawn = generate(
            model,
            tableau,
            wanted[part],
            seed=seed,
            condition=given[part],
            batch_size=size,
            dtype=dtype,
        )
        return torch.cat([event.images for event in drawn if event.images is not None])

    # A generator of everything, made for its checks alone: it has not begun.
    generate(model, teacher, wanted, seed=seed, condition=given, batch_size=size)

    def errors() -> Iterator[SolverErrors]:
        for start in range(0, len(wanted), size):
            part = slice(start, start + size)
            exact = run(teacher, part)
            rms = {
                name: image_errors(run(tableau, part), exact) for name, tableau in samplers.items()
            }
            yield SolverErrors(tuple(wanted[part]), rms)

    return errors()
