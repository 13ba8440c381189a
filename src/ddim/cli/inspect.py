"""``ddim inspect``: what a sampler will do, in numbers, before it does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing, write_bytes
from ddim.cli.options import parse
from ddim.cli.report import print_json, record, table
from ddim.cli.sampler import SamplerOptions, make_sampler

if TYPE_CHECKING:
    from ddim.model.model import Model
    from ddim.noise.nodes import Nodes
    from ddim.noise.schedule import Schedule
    from ddim.samplers.tableau import Tableau

__all__ = ["InspectOptions", "main"]


@dataclasses.dataclass(frozen=True)
class InspectOptions(SamplerOptions):
    """Print a noise schedule at its nodes, and the sampler's table of numbers.

    The schedule is a model's (--model), or one described by --schedule and its options.
    """

    model: str | None = None
    """A model whose schedule to take."""
    schedule: Literal["linear", "scaled-linear", "cosine", "sigmoid", "flow"] = "linear"
    """Noise schedule, without --model."""
    T: int = 1000
    """Number of noising steps, without --model."""
    beta_start: float = 1e-4
    """First β of a linear schedule."""
    beta_end: float = 0.02
    """Last β of a linear schedule."""
    scaled: bool = False
    """Multiply both β of a linear schedule by 1000/T."""
    zero_snr: bool = False
    """Rescale to zero terminal signal-to-noise ratio."""
    output: str | None = None
    """Plot the schedule and the nodes into this .png file."""
    force: bool = False
    """Write over what is there."""
    json: bool = False
    """Print a JSON document."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`InspectOptions`."""
    options = parse(InspectOptions, "inspect", argv)
    if options.output is not None:
        if Path(options.output).suffix.lower() != ".png":
            raise InputError(f"--output is a .png file, not {options.output}")
        refuse_existing(Path(options.output), force=options.force)

    from ddim.noise.schedule import Schedule

    source = _source(options)
    schedule = source if isinstance(source, Schedule) else source.schedule
    nodes, tableau = make_sampler(options, source, 10)
    rows = [_node(schedule, k) for k in nodes]
    if options.json:
        print_json(
            {
                "schedule": dict(schedule.spec),
                "nodes": list(nodes),
                "levels": rows,
                "tableau": _tableau(tableau),
            }
        )
    else:
        print(schedule)
        print(f"{len(nodes) - 1} steps, {len(nodes)} nodes, {tableau.calls} network calls\n")
        print(table(rows))
        print(f"\n{tableau}")
    if options.output is not None:
        write_bytes(Path(options.output), _plot(schedule, nodes))
        resolved = dataclasses.replace(options, force=False, json=False)
        record(Path(options.output), "inspect", resolved)
    return 0


def _source(options: InspectOptions) -> Model | Schedule:
    from ddim.noise.schedule import Schedule

    if options.model is not None:
        from ddim.model.opening import load

        model = load(options.model)
        for field in dataclasses.fields(InspectOptions):
            own = field.name in ("schedule", "T", "beta_start", "beta_end", "scaled")
            if own and getattr(options, field.name) != field.default:
                flag = field.name.replace("_", "-")
                raise InputError(f"--{flag} is of a schedule without --model, which has its own")
        if not options.zero_snr:
            return model
        schedule = model.schedule
    else:
        spec: dict[str, object] = {"kind": options.schedule, "T": options.T}
        if options.schedule in ("linear", "scaled-linear"):
            spec |= {"beta_start": options.beta_start, "beta_end": options.beta_end}
        if options.scaled and options.schedule != "linear":
            raise InputError(f"--scaled is for the linear schedule, not for {options.schedule}")
        if options.scaled:
            spec["scaled"] = True
        schedule = Schedule.from_spec(spec)
    return schedule.rescaled_to_zero_snr() if options.zero_snr else schedule


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

    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'ddim[plot]'") from None

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    k = range(schedule.T + 1)
    left.plot(k, schedule.alpha, label="α (signal)", color="tab:blue")
    left.plot(k, schedule.sigma, label="σ (noise)", color="tab:orange")
    left.plot(nodes, schedule.alpha[list(nodes)], "o", ms=4, color="tab:blue")
    left.plot(nodes, schedule.sigma[list(nodes)], "o", ms=4, color="tab:orange")
    left.set(xlabel="node k", title=f"{len(nodes) - 1} steps")
    left.legend()
    inner = [i for i in nodes if i > 0 and schedule.alpha[i] > 0]
    last = schedule.T if schedule.alpha[-1] > 0 else schedule.T - 1
    right.plot(range(1, last + 1), schedule.lam[1 : last + 1], color="tab:green")
    right.plot(inner, schedule.lam[inner], "o", ms=4, color="tab:green")
    right.set(xlabel="node k", title="λ = log(α/σ)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
