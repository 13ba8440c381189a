"""``ddim bench``: how fast a model is on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing, write_bytes
from ddim.cli.groups import (
    Count,
    DeviceOptions,
    ForceOptions,
    NamedModelOptions,
    NetworkOptions,
    ReportOptions,
    Switch,
    unset,
)
from ddim.cli.options import listed, parse
from ddim.cli.report import print_json, record
from ddim.evaluate.speed.plan import Plan

__all__ = ["BenchOptions", "main"]


@dataclasses.dataclass(frozen=True)
class MeasuredModel(NamedModelOptions):
    """Which network."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = "mnist"
    """Shipped model, model folder, training run, checkpoint of any known kind, FILE.py:NAME."""


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """Time a model on this machine, by every back end, and diffusers with the same weights.

    From noise to images in [0, 1] by DDIM, η = 0. All contestants run in this process, in a new
    random order every round; ratios are medians over rounds, with quartiles. With mnist on two slow
    cores a run takes some five minutes, on fast ones half of it, beside other programs longer.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim bench mnist --output speeds.md",
        "ddim bench model/ -n 16 --steps 10 --parts images,one --json",
    )

    n: Count = 64
    """How many images are drawn at a time, and are in a batch of training."""
    steps: int = 4
    """Steps; the time goes with them, and the ratios hardly."""
    rounds: int = 7
    """Rounds that are counted, after two that are not."""
    parts: Annotated[tuple[str, ...], unset("all but start", "PART ...")] = ()
    """images: all cores; one: one image; threads: one thread; busy: beside a busy process; dtype:
    bfloat16; training: steps of fit; start: fresh processes."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16, in a table and in training: auto where the processor has instructions for it."""
    quick: Switch = False
    """At most 8 images, 2 steps and 2 rounds, to see that it runs."""
    model: MeasuredModel = dataclasses.field(default_factory=MeasuredModel)
    output: Annotated[str | None, unset("none", "FILE.md")] = None
    """Write the tables into this Markdown file as well."""
    force: ForceOptions = ForceOptions()
    device: DeviceOptions = DeviceOptions()
    report: ReportOptions = ReportOptions()

    def plan(self) -> Plan:
        """What is to be measured.

        Raises:
            InputError: as :class:`~ddim.evaluate.speed.plan.Plan`.
        """
        parts = tuple(listed(self.parts)) or None
        return Plan(self.n, self.steps, self.rounds, parts, self.dtype, self.quick)

    def check_output(self) -> None:
        """Refuse an output that cannot be written.

        Raises:
            InputError: it is of another kind.
            FileExistsError: it is there already.
        """
        if self.output is not None:
            if Path(self.output).suffix.lower() != ".md":
                raise InputError(f"--output is a .md file, not {self.output}")
            refuse_existing(Path(self.output), force=self.force.force)


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`BenchOptions`."""
    options = parse(BenchOptions, "bench", argv)
    plan = options.plan()
    options.check_output()
    where = NetworkOptions(
        device=options.device.device, threads=options.device.threads, backend="torch"
    )
    model = options.model.open(where)

    from ddim.checkpoints.hub import pinned
    from ddim.evaluate.speed.measure import measure
    from ddim.train.speed import training_table

    quiet = options.report.quiet
    report = measure(model, plan, pinned(options.model.model), training_table, quiet=quiet)
    if options.output is not None:
        write_bytes(Path(options.output), report.markdown().encode())
        record(Path(options.output), "bench", options, model=model.name)
    if options.report.json:
        print_json(report.to_json())
    else:
        print(report.text())
    return 0
