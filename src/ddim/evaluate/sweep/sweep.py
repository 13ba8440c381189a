"""What each saved step costs: samplers of one model, measured one by one, resumable.

A sampler is measured for every seed on the same latents as all others, image i of a
seed being the same noise in each. Its statistics are saved as they grow, so that a sweep that is
killed at any moment is resumed where it was.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim.base.errors import InputError, quoted
from ddim.base.files import read_json, write_json
from ddim.base.ranks import here
from ddim.evaluate.deviation.teacher import ErrorSummary, image_errors, teacher_tableau
from ddim.evaluate.distances.comparison import Comparison, check_reference, compare, summarise
from ddim.evaluate.features.extractor import Extractor, Seen
from ddim.evaluate.features.statistics import Statistics
from ddim.evaluate.sweep.kept import CellFiles, load_images, save_images
from ddim.evaluate.sweep.plan import folder_name, rank
from ddim.evaluate.sweep.result import STRIP, Result
from ddim.model.condition import Condition
from ddim.model.drawing import Drawn, generate
from ddim.model.model import Model
from ddim.samplers.sampler import Sampler
from ddim.samplers.tableau import Tableau

__all__ = ["Sweep"]

SAVE_SECONDS = 20.0


class Sweep:
    """Samplers × seeds of one model in one folder.

    Args:
        model: the model.
        samplers: as :func:`~ddim.evaluate.sweep.plan.plan_samplers` returns them.
        folder: where everything is kept. What is there already is resumed.
        extractor: what images are measured by.
        reference: statistics of real images.
        n: images of each sampler and seed.
        seeds: of the noise.
        floor: what as many real images measure, if known.
        teacher: on how many of the first images solver error is measured; 0 for none.
        batch_size: images in one network call.
        anew: begin anew: what is in the folder goes when it begins.

    Raises:
        InputError: numbers out of range, a reference that was measured otherwise, or a folder that
            was begun with another model, clipping, reference, N, batch_size, back end or extractor.
    """

    def __init__(
        self,
        model: Model,
        samplers: Sequence[Sampler],
        folder: Path,
        extractor: Extractor,
        reference: Statistics,
        *,
        n: int,
        seeds: Sequence[int] = (0,),
        floor: Comparison | None = None,
        teacher: int = 0,
        batch_size: int = 8,
        anew: bool = False,
    ) -> None:
        if n < 2:
            raise InputError(f"a distance needs at least 2 images, not {n}")
        if not seeds or len(set(seeds)) != len(seeds):
            raise InputError(
                f"seeds must be different numbers, at least one: {quoted(list(seeds))}"
            )
        if teacher < 0:
            raise InputError(f"the teacher's images must not be fewer than 0: {teacher}")
        self.model, self.samplers, self.folder = model, list(samplers), Path(folder)
        self.extractor, self.reference, self.floor = extractor, reference, floor
        self.n, self.seeds, self.batch_size = n, list(seeds), batch_size
        self.teacher = min(teacher, n)
        self.condition = Condition().check(model, n, every_class=True)
        self.tableaux = {sampler: model.tableau(sampler) for sampler in self.samplers}
        self._files = {
            sampler: CellFiles(sampler, self._folder(sampler, tableau), extractor)
            for sampler, tableau in self.tableaux.items()
        }
        self._teacher = teacher_tableau(model.schedule)
        self._compared: dict[tuple[Path, int], Comparison] = {}
        self._anew = anew
        difference = extractor.identity.difference(reference.identity)
        if difference is not None:
            raise InputError(f"the reference was not measured as the samples will be, {difference}")
        if not anew:
            self._check_folder()

    def begin(self) -> None:
        """Make the folder's record; after it the folder is of this sweep alone.

        Raises:
            InputError: a reference that nothing can be compared with; or several processes that do
                not see the same folder.
        """
        ranks = here()
        check_reference(self.reference)
        if self._anew and ranks.first:
            shutil.rmtree(self.folder / "cells", ignore_errors=True)
            for path in self.folder.glob("teacher-*.safetensors"):
                path.unlink()
        self._anew = False
        write_json(self.folder / "sweep.json", self._facts())
        for files in self._files.values():
            files.begin()
        ranks.wait()  # the first has removed what was there
        ranks.agree({f"the work that {self.folder} leaves": self.work()})

    def _facts(self) -> dict[str, Any]:
        return {
            "identity": self.model.identity,
            "reference": self.reference.data,
            "clipping": dataclasses.asdict(self.model.clipping),
            "n": self.n,
            "batch_size": self.batch_size,
            "backend": self.model.runs_on,
            "device": self.model.device.type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
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
        total = self.teacher * self._teacher.calls if self._must_teach() else 0
        for sampler, tableau in self.tableaux.items():
            total += tableau.calls * len(self._missing(sampler))
            total += tableau.calls * sum(self.n - self._count(sampler, seed) for seed in self.seeds)
        return total

    def run(self) -> Iterator[tuple[Sampler | None, int]]:
        """Do it. Yields the sampler at work (None for the teacher) and the calls that were done."""
        if self._must_teach():
            yield from self._teach()
        for sampler in self.samplers:
            calls = self.tableaux[sampler].calls
            for done in self._complete_first(sampler):
                yield sampler, done * calls
            for seed in self.seeds:
                for done in self._measure(sampler, seed):
                    yield sampler, done * calls

    def _measure(self, sampler: Sampler, seed: int) -> Iterator[int]:
        files = self._files[sampler]
        statistics, seconds = files.statistics(seed), files.seconds(seed)
        if statistics.count == self.n:
            return
        kept = self._first(sampler) if seed == self.seeds[0] else None
        drawn = self._draw(self.tableaux[sampler], seed, range(statistics.count, self.n))
        saved = started = time.perf_counter()
        # Each of several processes measures one of so many batches.
        while group := list(itertools.islice(drawn, here().count)):
            seconds += time.perf_counter() - started
            for event in group:
                event.check_finite(f"what {sampler}, which may be left out, draws of seed {seed}")
            for event, features in zip(group, self._features(group), strict=True):
                images, indices = event.outputs[0], event.indices
                if kept is not None and indices[0] == len(kept) < self._wanted(sampler):
                    kept = torch.cat([kept, images.cpu()])
                statistics.add(*features, indices, tuple(images.shape[1:]))
            now = time.perf_counter()
            if now - saved > SAVE_SECONDS or statistics.count == self.n:
                if kept is not None:
                    files.save_first(seed, kept)
                files.save(seed, statistics, seconds)
                saved = now
            yield sum(len(event.indices) for event in group)
            started = time.perf_counter()

    def _features(self, group: Sequence[Drawn]) -> list[Seen]:
        ranks = here()
        own = [self.extractor(group[i].outputs[0].clamp(-1, 1)) for i in ranks.own(len(group))]
        return [features for part in ranks.gather(own) for features in part]

    def _wanted(self, sampler: Sampler) -> int:
        """How many of the first images are looked at: for the strip, and by the teacher."""
        shown = min(STRIP, self.n)
        return shown if self.tableaux[sampler].stochastic else max(shown, self.teacher)

    def _missing(self, sampler: Sampler) -> range:
        """First images that were measured but not kept: a larger teacher was asked for since."""
        return range(len(self._first(sampler)), min(self._wanted(sampler), self._count(sampler)))

    def _complete_first(self, sampler: Sampler) -> Iterator[int]:
        kept, missing = self._first(sampler), self._missing(sampler)
        if not missing:
            return
        for event in self._draw(self.tableaux[sampler], self.seeds[0], missing):
            kept = torch.cat([kept, event.outputs[0].cpu()])
            yield len(event.indices)
        self._files[sampler].save_first(self.seeds[0], kept)

    def _draw(self, tableau: Tableau, seed: int, wanted: Sequence[int]) -> Iterator[Drawn]:
        events = generate(
            self.model,
            tableau,
            wanted,
            seed=seed,
            condition=self.condition[list(wanted)],
            batch_size=self.batch_size,
        )
        return (event for event in events if event.outputs)

    def _teach(self) -> Iterator[tuple[None, int]]:
        parts: list[Tensor] = []
        for event in self._draw(self._teacher, self.seeds[0], range(self.teacher)):
            parts.append(event.outputs[0].cpu())
            yield None, len(event.indices) * self._teacher.calls
        save_images(self._teacher_path(self.seeds[0]), torch.cat(parts))

    def _must_teach(self) -> bool:
        follows = any(not tableau.stochastic for tableau in self.tableaux.values())
        there = self._teacher_path(self.seeds[0]).exists() and not self._anew
        return bool(self.teacher) and follows and not there

    # -- results --------------------------------------------------------------------------------

    def results(self) -> list[Result]:
        """Of every sampler of the folder; of this sweep's those whose seeds are all measured.

        Whatever seeds of one are there are counted. They are in order: DDIM first, then by method,
        nodes, η and steps.
        """
        found = [
            self._result(files, tableau, seeds)
            for files, tableau in (*self._own(), *self._earlier())
            if (seeds := files.seeds(self.n)) and set(self._due(files.sampler)) <= set(seeds)
        ]
        return sorted(found, key=lambda result: rank(result.sampler))

    def _own(self) -> Iterator[tuple[CellFiles, Tableau]]:
        for sampler, tableau in self.tableaux.items():
            yield self._files[sampler], tableau

    def _earlier(self) -> Iterator[tuple[CellFiles, Tableau]]:
        """What other commands left here, of samplers that are still the same."""
        for folder in (self.folder / "cells").glob("*"):
            files = CellFiles.found(folder, self.extractor)
            if files is None or files.sampler in self.tableaux:
                continue
            try:
                tableau = self.model.tableau(files.sampler)
            except InputError:
                continue  # of a calibration that is gone
            if self._folder(files.sampler, tableau) == folder:
                yield files, tableau

    def _due(self, sampler: Sampler) -> list[int]:
        return self.seeds if sampler in self.tableaux else []

    def _result(self, files: CellFiles, tableau: Tableau, seeds: list[int]) -> Result:
        figures = tuple(self._comparison(files, seed) for seed in seeds)
        kept = ((seed, files.first(seed)) for seed in (self.seeds[0], *seeds))
        nothing = (self.seeds[0], torch.zeros(0, *self.model.shape))
        shown, first = next(((s, x) for s, x in kept if x is not None), nothing)
        path, errors = self._teacher_path(shown), ErrorSummary()
        if not tableau.stochastic and 0 < self.teacher <= len(first) and path.exists():
            errors.update(image_errors(first[: self.teacher], load_images(path)))
        return Result(
            files.sampler,
            tableau.calls,
            summarise(figures, self.floor),
            figures,
            sum(map(files.seconds, seeds)) / (self.n * len(seeds)),
            errors.rms if errors.count else None,
            errors.psnr if errors.count else None,
            first[:STRIP],
        )

    def _comparison(self, files: CellFiles, seed: int) -> Comparison:
        """Once for each: the reports are written after every sampler."""
        key = (files.folder, seed)
        if key not in self._compared:
            self._compared[key] = compare(files.statistics(seed), self.reference)
        return self._compared[key]

    # -- files ----------------------------------------------------------------------------------

    def _folder(self, sampler: Sampler, tableau: Tableau) -> Path:
        name = folder_name(sampler)
        if sampler.entry.needs is not None or sampler.checksum is not None:
            # A model can be calibrated anew, and a file of the user's be changed: the rows then
            # differ where the name does not.
            name += f"-{tableau.digest[:8]}"
        return self.folder / "cells" / name

    def _teacher_path(self, seed: int) -> Path:
        return self.folder / f"teacher-{seed}-{self.teacher}.safetensors"

    def _count(self, sampler: Sampler, seed: int | None = None) -> int:
        seed = self.seeds[0] if seed is None else seed
        return 0 if self._anew else self._files[sampler].count(seed)

    def _first(self, sampler: Sampler) -> Tensor:
        kept = None if self._anew else self._files[sampler].first(self.seeds[0])
        return torch.zeros(0, *self.model.shape) if kept is None else kept
