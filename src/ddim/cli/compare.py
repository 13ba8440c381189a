"""``ddim compare``: the same latents, a row for each sampler (the paper's figure 5)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing, write_bytes
from ddim.cli.files import check_images
from ddim.cli.groups import (
    ConditionOptions,
    Count,
    ModelOptions,
    OutputOptions,
    PictureOptions,
    RunOptions,
    SweepOptions,
)
from ddim.cli.options import numbers, parse, replaced
from ddim.cli.report import print_json, record, table

if TYPE_CHECKING:
    from torch import Tensor

    from ddim.model.condition import Condition
    from ddim.model.model import Model
    from ddim.samplers.sampler import Sampler
    from ddim.samplers.tableau import Tableau

__all__ = ["CompareOptions", "main"]


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Draw the same latents by several samplers, one row each, and measure how they differ.

    A row for every combination of --methods, --steps, --nodes and --eta. RMS is the distance, on
    [-1, 1], to what a finer solver than every row, which is named, draws of the same latents: the
    network's own solution, which deterministic samplers approach the more steps they take.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim compare --steps 5 10 50 --methods ddim dpmpp:order=3",
        "ddim compare --model model/ --steps 10 --nodes uniform quadratic 500-250-100-0",
    )

    n: Count = 12
    """How many images in a row."""
    seed: int = 0
    """Seed of the noise."""
    model: ModelOptions = ModelOptions()
    sweep: SweepOptions = SweepOptions(steps=("5", "10", "20", "50", "100", "500"))
    condition: ConditionOptions = ConditionOptions()
    output: OutputOptions = OutputOptions(output="comparison.png")
    picture: PictureOptions = PictureOptions()
    run: RunOptions = RunOptions()

    def check(self) -> Path:
        """The picture's file, if it is one that can be written.

        Raises:
            InputError: it is not, or other options are out of range.
        """
        output = Path(self.output.output)
        if output.suffix.lower() != ".png":
            raise InputError(f"--output is a .png file, not {output.name}")
        if self.n < 1:
            raise InputError(f"-n must be at least 1, not {self.n}")
        refuse_existing(output, force=self.output.force)
        return output


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`CompareOptions`."""
    options = parse(CompareOptions, "compare", argv)
    output = options.check()
    model = options.model.open(options.run)
    check_images(model)
    samplers = options.sweep.samplers(model)
    condition = options.condition.condition().check(model, options.n, every_class=True)
    options.picture.check(model.shape, options.n, len(samplers))

    from ddim.calibration.calibration import made_for
    from ddim.data.sheet import labelled, png
    from ddim.evaluate.sweep.plan import left_out
    from ddim.model.drawing import pick_batch_size

    size = pick_batch_size(model, options.run.batch_size)
    rows, drawn, judge = _draw(model, samplers, condition, options, size)
    captions = [", ".join(_caption(rows, row)) for row in rows]
    heads = [f"class {label}" for label in condition.labels or ()]
    write_bytes(output, png(labelled(drawn, captions, heads, options.picture.scale)))
    record(
        output,
        "compare",
        replaced(options, batch_size=size, backend=model.runs_on),
        model=model.name,
    )
    counts = numbers(options.sweep.steps, int, "--steps")
    notes = left_out(samplers, options.sweep.methods, counts)
    notes += filter(None, (made_for(model, sampler, condition) for sampler in samplers))
    if options.run.json:
        facts = {"output": str(output), "model": model.name, "batch_size": size}
        facts["backend"] = model.runs_on
        facts["reference"] = None if judge is None else str(judge)
        print_json({**facts, "rows": rows, "notes": notes})
        return 0
    alike = _alike(rows)
    print(table([{k: v for k, v in row.items() if k not in alike} for row in rows]))
    for note in notes:
        print(f"\n{note}")
    if judge is not None:
        print(f"\nRMS is to what {judge} draws of the same latents")
    print(f"\n{output}: {options.n} images of each, from the same latents")
    return 0


def _draw(
    model: Model,
    samplers: Sequence[Sampler],
    condition: Condition,
    options: CompareOptions,
    batch_size: int,
) -> tuple[list[dict[str, object]], list[Tensor], Sampler | None]:
    """What is to be said of each sampler, its images, and what their distance is taken from."""
    import torch

    from ddim.evaluate.deviation.teacher import finer_sampler
    from ddim.evaluate.sweep.plan import eta_of, name_of, nodes_of
    from ddim.model.drawing import collect, generate

    def images(sampler: Sampler, tableau: Tableau) -> Tensor:
        events = generate(
            model,
            tableau,
            range(options.n),
            seed=options.seed,
            condition=condition,
            batch_size=batch_size,
            dtype=torch.promote_types(model.dtype, torch.float32),
        )
        label = "" if options.run.quiet else f"{sampler!s:.60}"
        return collect(model, tableau, events, options.n, batch_size, label)[0]

    tableaux = [model.tableau(sampler) for sampler in samplers]
    followed = any(not tableau.stochastic for tableau in tableaux)
    judge = finer_sampler(model.schedule, tableaux) if followed else None
    rows: list[dict[str, object]] = []
    drawn: list[Tensor] = []
    for sampler, tableau in zip(samplers, tableaux, strict=True):
        start, eta = time.perf_counter(), eta_of(sampler)
        drawn.append(images(sampler, tableau))
        rows.append(
            {
                # Calibrated samplers bring their own method.
                "method": tableau.method if sampler.brings_nodes else name_of(sampler),
                "nodes": nodes_of(sampler),
                "eta": "" if eta is None else eta,
                "steps": sampler.steps,
                "network calls": tableau.calls,
                "seconds": round(time.perf_counter() - start, 2),
            }
        )
    if judge is not None:
        exact = images(judge, model.tableau(judge))
        for row, found in zip(rows, drawn, strict=True):
            rms = (found - exact).double().square().mean().sqrt().item()
            row["RMS"] = float(f"{rms:.3g}")  # a fine row is less than 0.0001 away
    return rows, drawn, judge


def _alike(rows: Sequence[dict[str, object]]) -> set[str]:
    """Columns that tell no row from another."""
    return {key for key in ("nodes", "eta") if len({row[key] for row in rows}) == 1}


def _caption(rows: Sequence[dict[str, object]], row: dict[str, object]) -> list[str]:
    alike = _alike(rows)
    parts = [str(row["method"])]
    if "nodes" not in alike and row["nodes"] != "calibrated":
        parts.append(str(row["nodes"]))
    if "eta" not in alike and row["eta"] != "":
        parts.append(f"η = {row['eta']}".replace("sigma-hat", "σ̂"))
    return [*parts, f"{row['network calls']} calls"]
