"""The files that ``ddim evaluate`` leaves in its folder."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddim.base.errors import InputError
from ddim.base.files import write_bytes, write_json
from ddim.cli.files import make_figure
from ddim.cli.options import flat
from ddim.cli.report import SILENT

if TYPE_CHECKING:
    from ddim.evaluate.sweep.result import Result
    from ddim.evaluate.sweep.sweep import Sweep

__all__ = ["BITS", "sweep_facts", "write_sweep"]

BITS = "bits per dimension"
"""What they are called among the facts."""


def sweep_facts(options: object, sweep: Sweep) -> dict[str, object]:
    """What was measured, of what, where and by which command.

    Args:
        options: the verb's, all of which have defaults.
        sweep: what they led to.
    """
    import torch

    from ddim import __version__

    model = sweep.model
    dtype = str(model.dtype).removeprefix("torch.")
    words, plain = ["ddim", "evaluate"], flat(type(options)())
    for name, value in flat(options).items():
        if name in (*SILENT, "dry_run") or value == plain[name]:
            continue
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += ["-n" if name == "n" else f"--{name.replace('_', '-')}", shown]
    return {
        "command": shlex.join(words),
        "model": f"{model.name} ({model.identity[:12]})",
        "parameters": f"{sum(p.numel() for p in model.net.parameters()):,}",
        "schedule": str(model.schedule),
        "images a sampler and seed": f"{sweep.n:,}",
        "seeds": ", ".join(map(str, sweep.seeds)),
        "reference": sweep.reference.about,
        "features": f"{sweep.extractor.identity.name}, {sweep.extractor.identity.width} numbers",
        "run on": f"{model.device.type}, by {model.runs_on}, batches of {sweep.batch_size}, "
        f"network in {dtype}, ddim {__version__}, torch {torch.__version__}",
    }


def _gathered(notes: Iterable[str]) -> list[str]:
    """Notes of the form 'what: it', each 'it' once, with how many it is said of."""
    said: dict[str, list[str]] = {}
    for note in dict.fromkeys(notes):
        what, colon, text = note.partition(": ")
        said.setdefault(text if colon else note, []).append(what)
    return [
        f"{names[0]}: {text}" if len(names) == 1 else f"{len(names)} sets of images: {text}"
        for text, names in said.items()
    ]


def write_sweep(
    output: Path,
    sweep: Sweep,
    facts: dict[str, object],
    notes: Sequence[str],
    bits: dict[str, dict[str, float]] | None,
) -> dict[str, Any]:
    """Write the tables, the plot and the page of what is measured; returns the JSON."""
    from ddim.evaluate.sweep import report

    results = sweep.results()
    if not results:
        return {"facts": facts, "bits": bits, "rows": [], "notes": list(notes), "plot": None}
    every = [*notes, *_gathered(note for r in results for note in r.summary.notes)]
    try:
        plotted = _plot(results)
    except InputError as error:  # no matplotlib
        plotted = None
        every.append(f"There is no plot: {error}.")
    floor = results[0].summary.floor
    document = {
        "facts": facts,
        "distance": results[0].summary.distance,
        "floor": None if floor is None else dataclasses.asdict(floor),
        "bits": bits,
        "rows": [
            {**row, "seeds": [dataclasses.asdict(one) for one in result.seeds]}
            for row, result in zip(report.rows(results), results, strict=True)
        ],
        "notes": every,
        "plot": None if plotted is None else "quality.png",
    }
    write_json(output / "results.json", json.loads(json.dumps(document)))
    write_bytes(output / "results.csv", report.csv_text(results).encode())
    one = report.table_one(results)
    text = (report.markdown(one) + "\n" if one else "") + report.markdown(report.compact(results))
    if bits is not None:
        text += f"\n{BITS}: {facts[BITS]}\n"
    write_bytes(output / "results.md", text.encode())
    picture = output / "quality.png"
    if plotted is None:
        picture.unlink(missing_ok=True)  # it would be of other samplers than the tables
    else:
        write_bytes(picture, plotted)
    page = report.html_report(f"Samplers of {sweep.model.name}", facts, results, plotted, every)
    write_bytes(output / "report.html", page.encode())
    return document


def _plot(results: Sequence[Result]) -> bytes:
    """Quality against cost, as a PNG.

    Raises:
        InputError: matplotlib is not installed.
    """
    import numpy as np

    from ddim.evaluate.sweep import report

    figure, buffer = make_figure(11, 5), io.BytesIO()
    # The ticks of a logarithmic axis around a single point divide by its length, 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        report.plot(figure, results)
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
