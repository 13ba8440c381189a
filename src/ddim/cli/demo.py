"""``ddim demo``: the experiment that everything starts from."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing
from ddim.cli.files import check_images
from ddim.cli.groups import Count, ModelOptions, OutputOptions, PictureOptions, RunOptions, Switch
from ddim.cli.options import parse, replaced
from ddim.cli.report import print_json, record, table

if TYPE_CHECKING:
    from torch import Tensor

    from ddim.model.condition import Condition
    from ddim.model.model import Model
    from ddim.samplers.sampler import Sampler
    from ddim.samplers.tableau import Tableau

__all__ = ["DemoOptions", "main"]

CALIBRATED = 10
"""The number of calls whose calibration is shown."""


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """Draw the same latents with DDPM in all T steps and with DDIM in 50, 20 and 10.

    One network, one set of starting noise; the grids side by side in one picture, with the method,
    the network calls and the seconds under each. Where the model is calibrated for 10 calls, the
    nodes and the method that `ddim calibrate` found are drawn too.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim demo",
        "ddim demo --model mnist-cond -n 100 --steps 100 25 --no-ddpm --output few.png",
    )

    n: Count = 64
    """How many images in each grid."""
    steps: tuple[int, ...] = (50, 20, 10)
    """Steps of DDIM, one grid each."""
    seed: int = 0
    """Seed of the noise."""
    ddpm: Switch = True
    """Leave out the DDPM grid, which takes most of the time."""
    model: ModelOptions = ModelOptions()
    output: OutputOptions = OutputOptions(output="demo.png")
    picture: PictureOptions = PictureOptions()
    run: RunOptions = RunOptions()

    def check(self) -> Path:
        """The picture, if it is one that can be drawn.

        Raises:
            InputError: it is not.
        """
        output = Path(self.output.output)
        if output.suffix.lower() != ".png":
            raise InputError(f"--output is a .png file, not {output.name}")
        if self.n < 1:
            raise InputError(f"-n must be at least 1, not {self.n}")
        if not (self.ddpm or self.steps):
            raise InputError("nothing is left to draw: give --steps, or DDPM")
        refuse_existing(output, force=self.output.force)
        return output

    def samplers(self, model: Model) -> Iterator[Sampler]:
        """What is drawn by, in order.

        Raises:
            InputError: as :class:`ddim.Sampler`, or a stale calibration.
        """
        from ddim.checkpoints.calibration import find_calibration
        from ddim.samplers.sampler import Sampler

        if self.ddpm:
            yield Sampler("ddpm", model.schedule.T)
        for steps in self.steps:
            yield Sampler("ddim", steps)
        known = find_calibration(model.calibration, model.identity)
        if known is not None and CALIBRATED in known.samplers:
            yield Sampler("calibrated", CALIBRATED)


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`DemoOptions`."""
    options = parse(DemoOptions, "demo", argv)
    output = options.check()
    model = options.model.open(options.run)
    check_images(model)

    from ddim.base.files import write_bytes
    from ddim.data import pixels
    from ddim.data.sheet import captioned, png
    from ddim.model.condition import Condition
    from ddim.model.drawing import pick_batch_size

    condition = Condition().check(model, options.n, every_class=True)
    size = pick_batch_size(model, options.run.batch_size)
    resolved = replaced(options, batch_size=size, backend=model.runs_on)
    samplers = list(options.samplers(model))
    across = math.ceil(math.sqrt(options.n))
    options.picture.check(model.shape, across * len(samplers), -(-options.n // across))
    tableaux = [model.tableau(sampler) for sampler in samplers]
    rows: list[dict[str, object]] = []
    grids: list[Tensor] = []
    for sampler, tableau in zip(samplers, tableaux, strict=True):
        name = sampler.method.upper() if sampler.method != "calibrated" else sampler.method
        start = time.perf_counter()
        images = _draw(model, tableau, condition, resolved, name)
        seconds = time.perf_counter() - start
        grids.append(pixels.grid(images))
        rows.append(
            {
                "method": name,
                "network calls": tableau.calls,
                "seconds": round(seconds, 2),
                "images/s": round(options.n / seconds, 2),
            }
        )
    captions = [
        (f"{row['method']}, {row['network calls']} network calls", f"{row['seconds']:.1f} s")
        for row in rows
    ]
    write_bytes(output, png(captioned(grids, captions, options.picture.scale)))
    record(output, "demo", resolved, model=model.name)
    _tell(resolved, model, rows)
    return 0


def _draw(
    model: Model, tableau: Tableau, condition: Condition, options: DemoOptions, name: str
) -> Tensor:
    import torch

    from ddim.model.drawing import collect, generate, pick_batch_size

    size = pick_batch_size(model, options.run.batch_size)
    drawn = generate(
        model,
        tableau,
        range(options.n),
        seed=options.seed,
        condition=condition,
        batch_size=size,
        dtype=torch.promote_types(model.dtype, torch.float32),
    )
    label = "" if options.run.quiet else f"{name} {len(tableau.rows):>4} steps"
    return collect(model, tableau, drawn, options.n, size, label)[0]


def _tell(options: DemoOptions, model: Model, rows: Sequence[dict[str, object]]) -> None:
    import torch

    output = options.output.output
    if options.run.json:
        facts = {"output": output, "model": model.name, "images": options.n}
        how = {"batch_size": options.run.batch_size, "backend": options.run.backend}
        how["dtype"] = options.model.dtype
        print_json({**facts, **how, "threads": torch.get_num_threads(), "runs": rows})
        return
    print(table(rows))
    dtype = "" if options.model.dtype == "float32" else f", in {options.model.dtype}"
    print(f"\n{output}: {options.n} images of each, from the same latents{dtype}")
