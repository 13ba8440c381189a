"""Samplers side by side: the same latents, each drawn live, each with its own clock."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddim.backends.workers import worker_count
from ddim.model.condition import Condition
from ddim.model.drawing import Drawn, batches, generate, pick_batch_size
from ddim.model.memory import enough_memory
from ddim.model.model import Model
from ddim.model.rollout import Rollout
from ddim.noise.draws import Noise
from ddim.samplers.sampler import Sampler
from ddim.samplers.tableau import Tableau
from ddim.web.asked import RaceAsked, sampler_of
from ddim.web.channel import Channel
from ddim.web.jobs import Job
from ddim.web.pictures import images_of
from ddim.web.ways import Origin, sample_ways

__all__ = ["prepare_race"]

EVERY = 0.1
"""Seconds between two frames, of whichever lanes."""
SHARE = 0.03
"""Of the time, what frames may take."""


def prepare_race(model: Model, origin: Origin, asked: RaceAsked) -> Job:
    """The race that is asked for.

    Raises:
        InputError: beyond the limits, samplers or labels that the model cannot take.
    """
    asked.check(model)
    lanes = [Lane(*sampler_of(model, text)) for text in asked.lanes]
    condition = Condition(asked.labels).check(model, asked.images, every_class=True)
    return lambda out: _race(model, origin, asked, lanes, condition, out)


@dataclasses.dataclass
class Lane:
    """A sampler, and how far its images are.

    Attributes:
        sampler: which.
        tableau: its rows.
        clocks: seconds by worker.
        done: steps that each batch has taken.
        x0: what is predicted of each batch.
        ends: the last step of each batch.
        said: when its last frame was sent.
    """

    sampler: Sampler
    tableau: Tableau
    clocks: dict[int, float] = dataclasses.field(default_factory=dict)
    done: dict[int, int] = dataclasses.field(default_factory=dict)
    x0: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    ends: dict[int, Drawn] = dataclasses.field(default_factory=dict)
    said: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it has been at work."""
        return max(self.clocks.values(), default=0.0)

    def calls(self, steps: int) -> int:
        """Network calls for one image in the first so many steps."""
        return len({i for row in self.tableau.rows[:steps] for i in row.needs})


class Turn(NamedTuple):
    """A step of a lane on one of the batches, by a worker, and how long it took."""

    lane: int
    batch: int
    worker: int
    seconds: float
    drawn: Drawn


def _race(
    model: Model,
    origin: Origin,
    asked: RaceAsked,
    lanes: list[Lane],
    condition: Condition,
    out: Channel,
) -> None:
    size = pick_batch_size(model, asked.batch_size)
    for lane in lanes:  # for its checks alone: nothing has begun
        generate(
            model,
            lane.tableau,
            range(asked.images),
            seed=asked.seed,
            condition=condition,
            batch_size=size,
        )
    out.send("start", {"lanes": [_facts(lane) for lane in lanes], "batch_size": size})
    count, begun = -(-asked.images // size), time.perf_counter()
    frames = Frames(lanes, count, out)
    turns = _turns(model, lanes, asked, condition, size)
    with contextlib.closing(turns):
        for turn in turns:
            out.check()
            lane = lanes[turn.lane]
            _note(lane, turn)
            if len(lane.ends) == count:
                out.drop(str(turn.lane))
                out.send("lane", _result(model, origin, asked, lane, turn.lane))
            else:
                frames.offer(turn.lane)
    out.send("done", {"seconds": round(time.perf_counter() - begun, 4)})


def _facts(lane: Lane) -> dict[str, Any]:
    return {
        "sampler": str(lane.sampler),
        "steps": len(lane.tableau.rows),
        "calls": lane.tableau.calls,
        "stochastic": lane.tableau.stochastic,
    }


def _note(lane: Lane, turn: Turn) -> None:
    """Take down what a turn has done."""
    step = turn.drawn.step
    lane.clocks[turn.worker] = lane.clocks.get(turn.worker, 0.0) + turn.seconds
    lane.done[turn.batch] = step.index + 1
    if step.prediction is not None:
        lane.x0[turn.batch] = step.prediction.x0[: len(turn.drawn.indices)]
    if turn.drawn.outputs:
        lane.ends[turn.batch] = turn.drawn.bare()


def _result(
    model: Model, origin: Origin, asked: RaceAsked, lane: Lane, number: int
) -> dict[str, Any]:
    ends = [lane.ends[batch] for batch in sorted(lane.ends)]
    for end in ends:
        end.check_finite(f"what {model.name} draws by {lane.sampler}")
    ways = sample_ways(
        origin,
        model,
        lane.sampler,
        seed=asked.seed,
        images=asked.images,
        labels=asked.labels,
        batch_size=asked.batch_size,
    )
    return {
        "lane": number,
        "calls": lane.tableau.calls,
        "seconds": round(lane.seconds, 4),
        "images": images_of(torch.cat([end.outputs[0] for end in ends])),
        "ways": ways,
    }


class Frames:
    """Frames of lanes that run: some ten a second, and fewer where each costs more.

    Args:
        lanes: of which.
        count: batches of each.
        out: where they go.
    """

    def __init__(self, lanes: Sequence[Lane], count: int, out: Channel) -> None:
        self._lanes, self._count, self._out = lanes, count, out
        self._every = EVERY

    def offer(self, number: int) -> None:
        """Send the frame of a lane, if it is time for one."""
        lane, now = self._lanes[number], time.perf_counter()
        running = sum(len(each.ends) < self._count for each in self._lanes)
        if now - lane.said < self._every * running or len(lane.x0) < self._count:
            return
        lane.said, steps, begun = now, min(lane.done.values()), time.thread_time()
        data = {
            "lane": number,
            "step": steps,
            "calls": lane.calls(steps),
            "total": len(lane.tableau.rows),
            "seconds": round(lane.seconds, 4),
            "images": images_of(torch.cat([lane.x0[batch] for batch in sorted(lane.x0)])),
        }
        self._out.frame(str(number), "frame", data)
        self._every = max(EVERY, (time.thread_time() - begun) / SHARE)


def _turns(
    model: Model, lanes: Sequence[Lane], asked: RaceAsked, condition: Condition, size: int
) -> Generator[Turn, None, None]:
    """The lanes' steps in turn; batches side by side as :func:`ddim.generate` has them."""
    parts, network = list(batches(asked.images, size)), model.predictor()
    workers = max(1, min(worker_count(model.device, model.workers), len(parts)))

    def steps(lane: Lane, number: int) -> Iterator[Drawn]:
        positions, count = parts[number]
        rollout = Rollout(model, lane.tableau, condition[[0]], torch.float32)
        denoiser = model.denoiser(condition[positions], network=network)
        noise = Noise(asked.seed, positions, model.shape, model.device)
        begun = rollout.begin(positions, None, None)
        with enough_memory(size):
            for step, outputs, sound in rollout.steps(denoiser, begun, noise):
                ends = tuple(output[:count] for output in outputs)
                yield Drawn(tuple(positions[:count]), step, ends, sound[:count])

    def work(worker: int) -> Iterator[Turn]:
        running = {
            (lane, batch): steps(lanes[lane], batch)
            for lane in range(len(lanes))
            for batch in range(worker, len(parts), workers)
        }
        while running:
            for (lane, batch), drawing in list(running.items()):
                begun = time.perf_counter()
                drawn = next(drawing)
                yield Turn(lane, batch, worker, time.perf_counter() - begun, drawn)
                if drawn.outputs:
                    del running[lane, batch]

    return model.side_by_side(work, workers, ends=lambda turn: False)
