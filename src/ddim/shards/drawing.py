"""Drawing a set of images shard by shard, beside any number of other processes that do the same."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddim.base.errors import InputError, quoted
from ddim.base.ranks import apart, here
from ddim.data.manifest import Manifest
from ddim.data.pixels import to_pixels
from ddim.data.shard_files import measure
from ddim.model.condition import Condition
from ddim.model.drawing import generate
from ddim.model.inputs import whole
from ddim.model.model import Model
from ddim.noise.draws import Noise
from ddim.samplers.sampler import Sampler
from ddim.shards.claims import LEASE, Claims
from ddim.shards.plan import Job, plan
from ddim.shards.progress import Progress

__all__ = ["CLAIMS", "Drawing", "ShardEvent", "Share", "draw"]

CLAIMS = ".claims"
_LOOK = 1.0
"""Seconds between two looks at shards that others are at work on."""


@dataclasses.dataclass(frozen=True)
class Share:
    """Which shards of a set are one process's: every ``count``-th from ``index`` on.

    Raises:
        InputError: an index that is not below the count.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InputError(
                f"a share is i/N with i from 0 to N - 1, not {self.index}/{self.count}"
            )

    @classmethod
    def parse(cls, text: str) -> Share:
        """A share written i/N.

        Raises:
            InputError: it is none.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise InputError(f"a share is written i/N, such as 0/8, not {quoted(text)}")
        return cls(int(match[1]), int(match[2]))


@dataclasses.dataclass(frozen=True)
class ShardEvent:
    """What happened while a set was drawn.

    Attributes:
        shard: which is being drawn.
        images: how many of it are drawn since the last time.
        done: whether it is finished.
        seconds: what writing it took, where it is finished.
    """

    shard: int
    images: int
    done: bool = False
    seconds: float = 0.0


def draw(
    model: Model,
    folder: Path | str,
    n: int,
    method: str | Sampler = "ddim",
    *,
    steps: int | None = None,
    seed: int = 0,
    condition: Condition | Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    shard_size: int = 1000,
    shard_format: str = "npz",
    share: Share | None = None,
    lease: float = LEASE,
) -> Drawing:
    """Draw a set of images into a folder, or what is left of it, as the result is gone through.

    Image i is that of :func:`ddim.sample` with the same seed. Any number of processes may be at
    work on the folder, on any machines that see it; each takes the shards that are left. Where one
    was killed, whoever is there draws its shard. Called again with a larger ``n``, it adds to the
    set.

    Args:
        model: the model.
        folder: the set's; made if need be.
        n: how many images the set has.
        method: a sampler, as for :func:`ddim.sample`.
        steps: S.
        seed: of the noise.
        condition: labels are repeated in turn over the whole set; tensors have n rows, so that a
            set with them does not grow.
        batch_size: images in one network call.
        shard_size: images in a shard.
        shard_format: ``npz`` or ``safetensors`` (uint8 images of shape (N, H, W, C), and labels),
            ``tar`` (as WebDataset reads it) or ``png`` (a folder a shard).
        share: only every N-th shard, for processes that do not see each other's folder.
        lease: seconds after which another machine that is silent is taken for dead.

    Raises:
        InputError: numbers out of range; another set in the folder; processes of one job that were
            given different things.
        RunError: images that are not finite.
        OSError: the folder cannot be written to.

    Example:
        >>> import ddim, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for told in draw(ddim.load("mnist"), folder, 4, steps=1, shard_size=2):
        ...         print(told.shard, told.images, told.done)
        0 1 False
        0 1 False
        0 0 True
        1 1 False
        1 1 False
        1 0 True
    """
    sampler, n = Sampler.parse(method, steps), whole("n", n, 1)
    size, seed = whole("the shard size", shard_size, 1), whole("the seed", seed)
    Noise(seed, [0], model.shape)
    given, share, ranks = Condition.of(condition), share or Share(), here()
    wanted, job = plan(model, n, sampler, seed, given, batch_size, size, shard_format)
    ranks.agree({**wanted.made_by, "n": n, "shard_size": size, "share": share})
    progress = Progress(Path(folder), wanted) if ranks.first else None
    ranks.wait()
    with apart():
        progress = progress or Progress(Path(folder), wanted)
    todo = [k for k in progress.manifest.missing() if k % share.count == share.index]
    # Each process begins with shards of its own, and ends with those that are left.
    turns = [todo[(ranks.rank + i) % ranks.count :: ranks.count] for i in range(ranks.count)]
    return Drawing(job, progress, [number for turn in turns for number in turn], lease)


class Drawing:
    """A share of a set that is being drawn; going through it draws, and yields what happens."""

    def __init__(self, job: Job, progress: Progress, todo: list[int], lease: float) -> None:
        self._job, self._progress, self._todo, self._lease = job, progress, todo, lease

    @property
    def manifest(self) -> Manifest:
        """Of the set, as far as it is known to have come."""
        return self._progress.manifest

    @property
    def images(self) -> int:
        """How many are not drawn yet of this share, by this process or by others."""
        numbers, shards = self._todo, self.manifest.shards
        drawn = [shards[k].count if k in shards else 0 for k in numbers]
        return sum(len(self.manifest.images(k)) for k in numbers) - sum(drawn)

    def __iter__(self) -> Iterator[ShardEvent]:
        with apart():
            yield from self._work()
            self._progress.fold()

    def _work(self) -> Iterator[ShardEvent]:
        progress, todo = self._progress, self._todo
        with Claims(progress.folder / CLAIMS, self._lease) as claims:
            while todo:
                moved = False
                for number in list(todo):
                    if progress.finished(number) is None:
                        if not claims.take(number):
                            continue
                        try:
                            if progress.finished(number) is None:
                                yield from _draw_shard(self._job, progress, number)
                        finally:
                            claims.release(number)
                    todo.remove(number)
                    moved = True
                if todo and not moved:
                    time.sleep(min(_LOOK, self._lease / 8))
            claims.sweep()


def _draw_shard(job: Job, progress: Progress, number: int) -> Iterator[ShardEvent]:
    progress.sweep(number)
    images = progress.manifest.images(number)
    before = _before(progress, number)
    parts: list[np.ndarray] = [] if before is None else [before]
    kept = 0 if before is None else len(before)
    start = range(images.start + kept, images.stop)
    condition = job.rows(images)
    labels = None if condition.labels is None else np.asarray(condition.labels, dtype=np.int64)

    def save() -> None:
        pixels = np.concatenate(parts)
        progress.write(number, pixels, None if labels is None else labels[: len(pixels)])

    try:
        for pixels in _batches(job, start):
            parts.append(pixels)
            yield ShardEvent(number, len(pixels))
    except (KeyboardInterrupt, GeneratorExit):
        if sum(map(len, parts)) > kept:  # what is drawn is kept, and not drawn again
            save()
        raise
    begun = time.perf_counter()
    save()
    yield ShardEvent(number, 0, True, time.perf_counter() - begun)


def _batches(job: Job, images: range) -> Iterator[np.ndarray]:
    """The pixels of images, batch by batch, uint8 of shape (N, H, W, C)."""
    model = job.model
    what = f"what {model.name} draws by {job.sampler}"
    steps = generate(
        model,
        job.tableau,
        images,
        seed=job.seed,
        condition=job.rows(images),
        batch_size=job.batch_size,
        dtype=torch.promote_types(model.dtype, torch.float32),
    )
    with contextlib.closing(steps):
        for event in steps:
            if event.images is not None:
                event.check_finite(what)
                yield to_pixels(event.images.cpu()).permute(0, 2, 3, 1).numpy()


def _before(progress: Progress, number: int) -> np.ndarray | None:
    """What a shard had when the set was smaller, uint8 of shape (N, H, W, C)."""
    shard, path = progress.begun(number), progress.path(number)
    if shard is None:
        return None
    try:
        if measure(path) != (shard.bytes, shard.sha256):
            return None
        pixels = progress.format.open(path).images(range(shard.count))
    except (OSError, InputError):
        return None  # drawn again
    return pixels.permute(0, 2, 3, 1).numpy()
