"""What each saved step costs: samplers of one model, measured cell by cell, resumable.

A cell is a sampler; it is measured for every seed on the same latents as all others, image i of a
seed being the same noise in each. Its statistics are saved as they grow, so that a sweep that is
killed at any moment goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddim.errors import InputError, RunError
from ddim.evaluate.cells import Cell
from ddim.evaluate.comparison import Comparison, Summary, compare, summarise
from ddim.evaluate.features import Extractor
from ddim.evaluate.statistics import Statistics
from ddim.evaluate.teacher import ErrorSummary, image_errors, teacher_tableau
from ddim.files import read_json, replacing, write_json
from ddim.generate import generate
from ddim.pipeline import Pipeline
from ddim.tableau import Tableau

__all__ = ["Result", "Sweep"]

SAVE_SECONDS = 20.0
STRIP = 10


@dataclasses.dataclass(frozen=True)
class Result:
    """What a cell measured.

    Attributes:
        cell: which.
        calls: network calls for one image.
        summary: over the seeds.
        seeds: each seed's own figures.
        seconds: of generation for one image, metrics not included.
        rms: RMS to the model's own full-length solution on [-1, 1]; None where the sampler draws
            noise or no teacher was asked for.
        psnr: the same in dB.
        strip: the first images, (STRIP, C, H, W).
    """

    cell: Cell
    calls: int
    summary: Summary
    seeds: tuple[Comparison, ...]
    seconds: float
    rms: float | None
    psnr: float | None
    strip: Tensor

    @property
    def fd(self) -> float:
        """The Fréchet distance, a mean over the seeds."""
        return self.summary.figures["fd"].mean


class Sweep:
    """Cells × seeds of one model in one folder.

    Args:
        pipeline: the model.
        cells: as :func:`plan_cells` returns them.
        folder: where everything is kept. What is there already is gone on with.
        extractor: what images are measured by.
        reference: statistics of real images.
        n: images of each cell and seed.
        seeds: of the noise.
        floor: what as many real images measure, if known.
        teacher: on how many of the first images solver error is measured; 0 for none.
        tile: images in one network call.

    Raises:
        InputError: numbers out of range, a reference that was measured otherwise, or a folder that
            was begun with another model, N, tile or extractor.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        cells: Sequence[Cell],
        folder: Path,
        extractor: Extractor,
        reference: Statistics,
        *,
        n: int,
        seeds: Sequence[int] = (0,),
        floor: Comparison | None = None,
        teacher: int = 0,
        tile: int = 8,
    ) -> None:
        if n < 2:
            raise InputError(f"a distance needs at least 2 images, not {n}")
        if not seeds or len(set(seeds)) != len(seeds):
            raise InputError(f"seeds must be different numbers, at least one: {list(seeds)}")
        if teacher < 0:
            raise InputError(f"the teacher's images must not be fewer than 0: {teacher}")
        self.pipeline, self.cells, self.folder = pipeline, list(cells), Path(folder)
        self.extractor, self.reference, self.floor = extractor, reference, floor
        self.n, self.seeds, self.tile = n, list(seeds), tile
        self.teacher = min(teacher, n)
        self.labels = None
        if pipeline.classes is not None:
            self.labels = [i % pipeline.classes for i in range(n)]
        self.tableaux = {cell: cell.tableau(pipeline) for cell in self.cells}
        difference = extractor.identity.difference(reference.identity)
        if difference is not None:
            raise InputError(f"the reference was not measured as the samples will be, {difference}")
        self._check_folder()

    def begin(self) -> None:
        """Make the folder's record; after it nothing but this sweep goes on there."""
        write_json(self.folder / "sweep.json", self._facts())

    def _facts(self) -> dict[str, Any]:
        return {
            "identity": self.pipeline.identity,
            "n": self.n,
            "tile": self.tile,
            "threads": torch.get_num_threads(),
            "device": self.pipeline.device.type,
            "dtype": str(next(self.pipeline.net.parameters()).dtype).removeprefix("torch."),
            "extractor": dataclasses.asdict(self.extractor.identity),
        }

    def _check_folder(self) -> None:
        path = self.folder / "sweep.json"
        if path.exists():
            before = read_json(path)
            for key, value in self._facts().items():
                if before.get(key) != value:
                    raise InputError(
                        f"{path} was begun with {key} = {before.get(key)}, not {value}: give "
                        "another --output, or --force to begin anew"
                    )

    # -- work -----------------------------------------------------------------------------------

    def work(self) -> int:
        """Images times network calls that are left to do."""
        total = sum(
            self.tableaux[cell].calls * (self.n - self._statistics(cell, seed).count)
            for cell in self.cells
            for seed in self.seeds
        )
        if self._teaching() and not self._teacher_path().exists():
            total += self.teacher * teacher_tableau(self.pipeline.schedule).calls
        return total

    def run(self) -> Iterator[tuple[Cell | None, int]]:
        """Do it. Yields the cell at work (None for the teacher) and the calls that were done."""
        if self._teaching() and not self._teacher_path().exists():
            yield from self._teach()
        for cell in self.cells:
            for seed in self.seeds:
                for done in self._measure(cell, seed):
                    yield cell, done * self.tableaux[cell].calls

    def _measure(self, cell: Cell, seed: int) -> Iterator[int]:
        statistics = self._statistics(cell, seed)
        if statistics.count == self.n:
            return
        path, tableau = self._path(cell, seed), self.tableaux[cell]
        seconds = self._seconds(cell, seed)
        kept = self._first(cell) if seed == self.seeds[0] else None
        saved = started = time.perf_counter()
        for images, indices in self._draw(tableau, seed, range(statistics.count, self.n)):
            seconds += time.perf_counter() - started
            if kept is not None and indices[0] == len(kept) < max(self.teacher, STRIP):
                kept = torch.cat([kept, images.cpu()])
            if not bool(images.isfinite().all()):
                raise RunError(f"{cell.key} draws images that are not finite: leave it out")
            shown = images.clamp(-1, 1)
            statistics.add(*self.extractor(shown), indices, tuple(images.shape[1:]))
            now = time.perf_counter()
            if now - saved > SAVE_SECONDS or statistics.count == self.n:
                if kept is not None:
                    with replacing(self._first_path(cell)) as temporary:
                        save_file({"images": kept}, temporary)
                write_json(
                    path.with_suffix(".json"), {"seconds": seconds, "count": statistics.count}
                )
                statistics.save(path)
                saved = now
            yield len(indices)
            started = time.perf_counter()

    def _draw(
        self, tableau: Tableau, seed: int, wanted: Sequence[int]
    ) -> Iterator[tuple[Tensor, list[int]]]:
        labels = None if self.labels is None else [self.labels[i] for i in wanted]
        events = generate(self.pipeline, tableau, wanted, seed=seed, labels=labels, tile=self.tile)
        for event in events:
            if event.images is not None:
                yield event.images, list(event.indices)

    def _teach(self) -> Iterator[tuple[None, int]]:
        tableau = teacher_tableau(self.pipeline.schedule)
        parts: list[Tensor] = []
        for images, indices in self._draw(tableau, self.seeds[0], range(self.teacher)):
            parts.append(images.cpu())
            yield None, len(indices) * tableau.calls
        with replacing(self._teacher_path()) as temporary:
            save_file({"images": torch.cat(parts)}, temporary)

    # -- results --------------------------------------------------------------------------------

    def results(self) -> list[Result]:
        """Of every cell whose seeds are all measured."""
        return [self._result(cell) for cell in self.cells if self._done(cell)]

    def _done(self, cell: Cell) -> bool:
        return all(self._statistics(cell, seed).count == self.n for seed in self.seeds)

    def _result(self, cell: Cell) -> Result:
        seeds = tuple(compare(self._statistics(cell, seed), self.reference) for seed in self.seeds)
        summary = summarise(seeds, self.floor)
        first = self._first(cell)
        seconds = sum(self._seconds(cell, s) for s in self.seeds) / (self.n * len(self.seeds))
        errors = ErrorSummary()
        if (
            self._teaching()
            and not self.tableaux[cell].stochastic
            and self._teacher_path().exists()
        ):
            exact = load_file(self._teacher_path())["images"]
            errors.update(image_errors(first[: self.teacher], exact))
        return Result(
            cell,
            self.tableaux[cell].calls,
            summary,
            seeds,
            seconds,
            errors.rms if errors.count else None,
            errors.psnr if errors.count else None,
            first[:STRIP],
        )

    # -- files ----------------------------------------------------------------------------------

    def _cell(self, cell: Cell) -> Path:
        name = cell.key
        if cell.nodes == "calibrated" or cell.method == "analytic":
            # A model can be calibrated anew: the rows then differ where the name does not.
            rows = repr(self.tableaux[cell].rows)
            name += f"-{hashlib.sha256(rows.encode()).hexdigest()[:8]}"
        return self.folder / "cells" / name

    def _path(self, cell: Cell, seed: int) -> Path:
        return self._cell(cell) / f"seed-{seed}.safetensors"

    def _first_path(self, cell: Cell) -> Path:
        return self._cell(cell) / "first.safetensors"

    def _teacher_path(self) -> Path:
        return self.folder / f"teacher-{self.seeds[0]}-{self.teacher}.safetensors"

    def _teaching(self) -> bool:
        return bool(self.teacher) and any(not t.stochastic for t in self.tableaux.values())

    def _statistics(self, cell: Cell, seed: int) -> Statistics:
        path = self._path(cell, seed)
        if not path.exists():
            return Statistics(self.extractor.identity, f"{cell.key}, seed {seed}")
        return Statistics.load(path, self.extractor)

    def _seconds(self, cell: Cell, seed: int) -> float:
        """Of the images that are in the statistics; an estimate where a kill came between files."""
        path = self._path(cell, seed)
        if not path.exists():
            return 0.0
        facts: dict[str, Any] = read_json(path.with_suffix(".json"))
        return facts["seconds"] / facts["count"] * self._statistics(cell, seed).count

    def _first(self, cell: Cell) -> Tensor:
        path = self._first_path(cell)
        if not path.exists():
            return torch.zeros(0, *self.pipeline.shape)
        try:
            return load_file(path)["images"]
        except (SafetensorError, KeyError) as error:
            raise InputError(f"{path} cannot be read: {error}") from None
