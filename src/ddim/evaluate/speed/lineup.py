"""Who takes part: every back end and every opponent that is installed and can run the model."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from torch import Tensor

from ddim.base.errors import InputError, RunError
from ddim.base.progress import meter
from ddim.evaluate.speed.contestants import (
    Diffusers,
    Ours,
    back_ends,
    halved,
    open_diffusers,
    threads,
)
from ddim.evaluate.speed.plan import Plan
from ddim.evaluate.speed.race import SIZES, best_batch_size
from ddim.model.model import Model

if TYPE_CHECKING:
    from tqdm import tqdm

    from ddim.base.lines import LineMeter

__all__ = ["Lineup", "Opponent", "SetUp", "line_up", "nothing_kept"]


@dataclasses.dataclass(frozen=True)
class SetUp:
    """What a back end takes before it draws its first batch as fast as its others, in seconds.

    Attributes:
        first: on a machine that has never run this network.
        again: in another process, with what the first one kept; None where it was not measured.
    """

    first: float
    again: float | None


@dataclasses.dataclass(frozen=True)
class Opponent:
    """Another program, with the batch sizes at which it is fastest.

    Attributes:
        contestant: with all threads and with one.
        batch_size: with all threads.
        single: with one thread.
        half: the same in bfloat16, where that is measured.
    """

    contestant: Diffusers
    batch_size: int
    single: int
    half: Diffusers | None


@dataclasses.dataclass(frozen=True)
class Lineup:
    """The contestants.

    Attributes:
        threads: how many CPU threads all of them are given, where it is not one.
        ours: a back end each, plain torch first.
        single: the same for one thread, where that is measured.
        halves: the same in bfloat16, where that is measured.
        opponents: other programs.
        set_ups: of the back ends but plain torch, by name.
        notes: who is left out, and why.
    """

    threads: int
    ours: Sequence[Ours]
    single: Sequence[Ours]
    halves: Sequence[Ours]
    opponents: Sequence[Opponent]
    set_ups: dict[str, SetUp]
    notes: Sequence[str]


def line_up(
    model: Model, noise: Tensor, count: int, plan: Plan, *, half: bool, quiet: bool = True
) -> Lineup:
    """Prepare every contestant, so that none of them compiles anything later.

    Args:
        model: the model in float32.
        noise: shape (N, C, *).
        count: CPU threads.
        plan: what is measured.
        half: whether bfloat16 is.
        quiet: show no progress bar.
    """
    names = back_ends(model.device)
    alone = plan.has("threads") and count > 1
    total = len(names) * (1 + half + alone) + 1
    halves, single = list[Ours](), list[Ours]()
    with meter(quiet=quiet, total=total, desc="preparing", unit="contestant") as shown:
        desk = _Desk(noise, shown)
        with threads(count):
            ours = desk.admit(model, names, again=not plan.quick)
            if half:
                able = [one.name for one in ours]
                halves = desk.admit(halved(model), able, ", bfloat16")
        if alone:
            with threads(1):
                single = desk.admit(model, [one.name for one in ours])
        opponents = _opponents(model, noise, count, plan, desk.notes, half=half)
        shown.update()
    single = single if alone else ours if plan.has("threads") else []
    return Lineup(count, ours, single, halves, opponents, desk.set_ups, desk.notes)


class _Desk:
    """Where back ends come in, get ready, or are turned away with a note."""

    def __init__(self, noise: Tensor, shown: tqdm | LineMeter) -> None:
        self.noise, self.shown = noise, shown
        self.set_ups: dict[str, SetUp] = {}
        self.notes: list[str] = []

    def admit(
        self, model: Model, names: Sequence[str], suffix: str = "", *, again: bool | None = None
    ) -> list[Ours]:
        """Those back ends that can run the model.

        Args:
            model: the model.
            names: the back ends.
            suffix: what tables write behind their names.
            again: keep the seconds of the first start, and if true those of another; None keeps
                nothing.
        """
        ready = []
        for name in names:
            try:
                made, first = _timed(model, name, name + suffix, self.noise)
                ready.append(made)
                if again is not None and name != "torch":
                    second = _timed(model, name, name, self.noise)[1] if again else None
                    self.set_ups[name] = SetUp(first, second)
            except (InputError, RunError) as error:
                self.notes.append(f"without {name}{suffix}: {error}")
            self.shown.update()
        return ready


def _timed(model: Model, back_end: str, name: str, noise: Tensor) -> tuple[Ours, float]:
    """A back end, and the seconds by which its first batch of one step was slower than another."""
    start = time.perf_counter()
    made = Ours(model.with_backend(back_end), name)
    size = made.batch_size
    made.draw(noise[:size], 1, size)
    middle = time.perf_counter()
    made.draw(noise[:size], 1, size)
    end = time.perf_counter()
    return made, max(0.0, (middle - start) - (end - middle))


def _opponents(
    model: Model, noise: Tensor, count: int, plan: Plan, notes: list[str], *, half: bool
) -> list[Opponent]:
    try:
        made = open_diffusers(model)
    except InputError as error:
        notes.append(f"without an opponent, diffusers: {error}")
        return []
    size = single = best_batch_size(made, noise, count, plan)
    if plan.has("threads", "busy") and count > 1:
        single = best_batch_size(made, noise[: plan.few], 1, plan)
    best = f"diffusers draws {len(noise)} images fastest in batches of {size}"
    if plan.has("threads", "busy"):
        best += f", with one thread {plan.few} in batches of {single}"
    notes.append(f"{best}: found beforehand, among {', '.join(map(str, SIZES))}")
    if model.schedule.T % plan.steps:
        notes.append(
            f"T = {model.schedule.T} is no multiple of {plan.steps} steps: diffusers rounds its "
            "nodes in another way, so that its images are slightly others"
        )
    return [Opponent(made, size, single, Diffusers(made.pipeline, half=True) if half else None)]


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Let back ends keep what they compile in a folder that is empty at first and goes again."""
    with (
        tempfile.TemporaryDirectory(prefix="ddim-bench-") as folder,
        mock.patch("platformdirs.user_cache_path", return_value=Path(folder)),
    ):
        yield
