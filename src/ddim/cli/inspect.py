"""``ddim inspect``: what a sampler will do, in numbers, before it does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing, write_bytes
from ddim.base.plots import line_style
from ddim.cli.files import make_figure
from ddim.cli.groups import ForceOptions, SamplerOptions, Switch, unset
from ddim.cli.options import flat, parse
from ddim.cli.report import print_json, record, table

if TYPE_CHECKING:
    from ddim.model.model import Model
    from ddim.noise.nodes import Nodes
    from ddim.noise.schedule import Schedule
    from ddim.samplers.sampler import Sampler
    from ddim.samplers.tableau import Tableau

__all__ = ["FewSteps", "InspectOptions", "ScheduleOptions", "main"]

STEPS = 10
"""Steps where neither a number nor a list of nodes is given; T where T is smaller."""


@dataclasses.dataclass(frozen=True)
class ScheduleOptions:
    """Which noise schedule, without --model."""

    schedule: Literal["linear", "scaled-linear", "cosine", "sigmoid", "flow"] = "linear"
    """Noise schedule."""
    T: int = 1000
    """Number of noising steps."""
    beta_start: float = 1e-4
    """First β of a linear schedule."""
    beta_end: float = 0.02
    """Last β of a linear schedule."""
    scaled: Switch = False
    """Multiply both β of a linear schedule by 1000/T."""

    def make_schedule(self) -> Schedule:
        """What they say.

        Raises:
            InputError: numbers out of range, or --scaled for another schedule.
        """
        from ddim.noise.schedule import Schedule

        spec: dict[str, object] = {"kind": self.schedule, "T": self.T}
        if self.schedule in ("linear", "scaled-linear"):
            spec |= {"beta_start": self.beta_start, "beta_end": self.beta_end}
        if self.scaled and self.schedule != "linear":
            raise InputError(f"--scaled is for the linear schedule, not for {self.schedule}")
        return Schedule.from_spec(spec | ({"scaled": True} if self.scaled else {}))


@dataclasses.dataclass(frozen=True)
class FewSteps(SamplerOptions):
    """Method, steps and nodes."""

    steps: Annotated[int | None, unset(str(STEPS), "INT")] = None


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """Print a noise schedule at its nodes, and the sampler's table of numbers.

    The schedule is a model's (--model), or one described by --schedule and its options.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim inspect --method dpmpp:order=3 --steps 5",
        "ddim inspect --model mnist --method calibrated --steps 10 --output schedule.png",
    )

    model: Annotated[str | None, unset("none", "MODEL")] = None
    """A model whose schedule, and calibration, to take: as for the other verbs."""
    schedule: ScheduleOptions = ScheduleOptions()
    zero_snr: Switch = False
    """Rescale the schedule to zero terminal signal-to-noise ratio."""
    sampler: FewSteps = FewSteps()
    output: Annotated[str | None, unset("none", "PNG")] = None
    """Plot the schedule and the nodes into this .png file."""
    force: ForceOptions = ForceOptions()
    json: Switch = False
    """Print one JSON document instead of text."""

    def check(self) -> None:
        """Refuse an output that cannot be written, and two schedules.

        Raises:
            InputError: either.
        """
        if self.model is not None:
            for key, value in flat(self.schedule).items():
                if value != getattr(ScheduleOptions, key):
                    flag = key.replace("_", "-")
                    raise InputError(
                        f"--{flag} is of a schedule without --model, which has its own"
                    )
        if self.output is not None:
            if Path(self.output).suffix.lower() != ".png":
                raise InputError(f"--output is a .png file, not {self.output}")
            refuse_existing(Path(self.output), force=self.force.force)

    def source(self) -> Model | Schedule:
        """What there is to be seen; a schedule alone where it is not the model's own any more.

        Raises:
            InputError: as :func:`ddim.load`, or a schedule that cannot be rescaled.
        """
        if self.model is None:
            schedule = self.schedule.make_schedule()
        else:
            from ddim.model.opening import load

            model = load(self.model)
            if not self.zero_snr:
                return model
            schedule = model.schedule
        return schedule.rescaled_to_zero_snr() if self.zero_snr else schedule


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`InspectOptions`."""
    options = parse(InspectOptions, "inspect", argv)
    options.check()
    sampler = options.sampler.sampler()
    schedule, nodes, tableau = _resolved(options.source(), sampler)
    if options.output is not None:
        write_bytes(Path(options.output), _plot(schedule, nodes))
        record(Path(options.output), "inspect", options)
    _tell(options, schedule, nodes, tableau)
    return 0


def _resolved(source: Model | Schedule, sampler: Sampler) -> tuple[Schedule, Nodes, Tableau]:
    """The nodes and the rows on a model, or on a schedule alone."""
    from ddim.noise.schedule import Schedule

    schedule = source if isinstance(source, Schedule) else source.schedule
    if sampler.steps is None:
        sampler = sampler.replace(steps=min(STEPS, schedule.T))
    if isinstance(source, Schedule):
        return schedule, sampler.place(schedule), sampler.tableau(schedule)
    return schedule, source.resolve(sampler).place(schedule), source.tableau(sampler)


def _tell(options: InspectOptions, schedule: Schedule, nodes: Nodes, tableau: Tableau) -> None:
    levels = [_node(schedule, k) for k in nodes]
    if options.json:
        spec, rows = dict(schedule.spec), _tableau(tableau)
        print_json({"schedule": spec, "nodes": list(nodes), "levels": levels, "tableau": rows})
        return
    print(schedule)
    print(f"{len(nodes) - 1} steps, {len(nodes)} nodes, {tableau.calls} network calls\n")
    print(table(levels))
    print(f"\n{tableau}")


def _node(schedule: Schedule, k: int) -> dict[str, object]:
    return {
        "k": k,
        "t": k - 1 if k else "-",
        "alpha_bar": float(schedule.alpha_bar[k]),
        "alpha": float(schedule.alpha[k]),
        "sigma": float(schedule.sigma[k]),
        "rho": _finite(float(schedule.rho[k])),
        "lambda": _finite(float(schedule.lam[k])),
    }


def _finite(value: float) -> float | str:
    """JSON has no infinity."""
    return value if abs(value) < float("inf") else ("inf" if value > 0 else "-inf")


def _tableau(tableau: Tableau) -> dict[str, object]:
    rows = [
        {
            "k": row.k,
            "states": [list(term) for term in row.states],
            "x0": [list(term) for term in row.x0],
            "eps": [list(term) for term in row.eps],
            "noise": row.noise,
        }
        for row in tableau.rows
    ]
    options = dict(tableau.options)
    return {"method": tableau.method, "options": options, "calls": tableau.calls, "rows": rows}


def _plot(schedule: Schedule, nodes: Nodes) -> bytes:
    import io

    figure = make_figure(10, 4)
    left, right = figure.subplots(1, 2)
    k = range(schedule.T + 1)
    marks = list(nodes)
    for number, (values, label) in enumerate(
        ((schedule.alpha, "α, signal"), (schedule.sigma, "σ, noise"))
    ):
        how = line_style(number)
        left.plot(k, values, color=how["color"], ls=how["linestyle"])
        left.plot(marks, values[marks], color=how["color"], ls="", marker=how["marker"], ms=5)
        # One entry for the line and its marks.
        left.plot([], [], **how, label=label)
    left.set(xlabel="node k", ylabel="scale", title=f"{len(nodes) - 1} steps: the marks")
    left.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    inner = [i for i in nodes if i > 0 and schedule.alpha[i] > 0]
    last = schedule.T if schedule.alpha[-1] > 0 else schedule.T - 1
    right.plot(range(1, last + 1), schedule.lam[1 : last + 1], color="black")
    right.plot(inner, schedule.lam[inner], "D", ms=5, color="black")
    right.set(xlabel="node k", ylabel="λ", title="λ = log(α/σ), half the log-SNR")
    right.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
