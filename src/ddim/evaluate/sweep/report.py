"""A sweep for people and programs: tables, CSV, JSON, and one HTML file that opens offline."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ddim.base.plots import line_style
from ddim.data import pixels as images
from ddim.evaluate.distances.comparison import Spread
from ddim.evaluate.sweep.plan import SIGMA_HAT, eta_of, name_of, nodes_of
from ddim.evaluate.sweep.result import Result
from ddim.samplers.sampler import Sampler

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["csv_text", "html_report", "markdown", "pareto", "plot", "rows", "table_one"]

Row = dict[str, object]


def pareto(
    results: Sequence[Result], cost: Callable[[Result], float] = lambda result: result.calls
) -> set[Sampler]:
    """The samplers that no other beats at once in cost (network calls) and in Fréchet distance."""
    front = set()
    for one in results:
        beaten = any(
            (cost(other), other.fd) != (cost(one), one.fd)
            and cost(other) <= cost(one)
            and other.fd <= one.fd
            for other in results
        )
        if not beaten:
            front.add(one.sampler)
    return front


def rows(results: Sequence[Result]) -> list[Row]:
    """A row of plain values for each sampler; figures that there are not are empty."""
    front = pareto(results)
    found = []
    for one in results:
        eta = eta_of(one.sampler)
        row: Row = {
            "method": name_of(one.sampler),
            "nodes": nodes_of(one.sampler),
            "eta": "" if eta is None else eta,
            "steps": one.sampler.steps,
            "calls": one.calls,
            "N": one.summary.count,
            "seeds": one.summary.seeds,
            **_figures(one.summary.distance, one.summary.figures),
        }
        row["teacher RMS"] = "" if one.rms is None else one.rms
        row["PSNR dB"] = "" if one.psnr is None or math.isinf(one.psnr) else one.psnr
        row["ms an image"] = one.seconds * 1000
        row["front"] = "*" if one.sampler in front else ""
        found.append(row)
    return found


FIGURES = ("fd", "kid", "precision", "recall", "chi2")


def _figures(distance: str, figures: Mapping[str, Spread]) -> Row:
    row: Row = {}
    for name, label in zip(FIGURES, (distance, "KID", *FIGURES[2:]), strict=True):
        spread = figures.get(name)
        row[label] = "" if spread is None else spread.mean
        row[f"{label} sd"] = "" if spread is None or spread.sd is None else spread.sd
    return row


def with_floor(results: Sequence[Result]) -> list[Row]:
    """The rows, and last what as many real images measure, if that is known."""
    table = rows(results)
    floor = results[0].summary.floor
    if floor is not None:
        values = {name: getattr(floor, name) for name in FIGURES}
        figures = {k: Spread(v, None) for k, v in values.items() if v is not None}
        blank: Row = dict.fromkeys(table[0], "")
        known = {"method": "real test images", "N": floor.count}
        table.append({**blank, **known, **_figures(floor.distance, figures)})
    return table


def shown(row: Mapping[str, object]) -> dict[str, str]:
    """A row as people read it: mean ± sd in one column, four digits; empty columns stay."""
    texts: dict[str, str] = {}
    for key, value in row.items():
        if key.endswith(" sd"):
            continue
        sd = row.get(f"{key} sd")
        spread = isinstance(value, float) and Spread(value, sd if isinstance(sd, float) else None)
        texts[key] = str(spread or value)
        if key == "teacher RMS" and value != "":
            texts[key] = f"{value:.1g}"  # the few images that end as something else decide it
    return texts


def compact(results: Sequence[Result]) -> list[dict[str, str]]:
    """The rows as people read them, the floor last, without columns that are empty throughout."""
    texts = [shown(row) for row in with_floor(results)]
    kept = [key for key in texts[0] if any(text[key] for text in texts)]
    return [{key: text[key] for key in kept} for text in texts]


def table_one(results: Sequence[Result]) -> list[dict[str, str]]:
    """The paper's Table 1: DDIM by η (rows) and S (columns), for each family of nodes."""
    ddim = {
        (nodes_of(r.sampler), eta_of(r.sampler), r.sampler.steps): r
        for r in results
        if name_of(r.sampler) == "ddim"
    }
    counts = sorted({steps for *_, steps in ddim if steps is not None})
    found: list[dict[str, str]] = []
    for nodes, eta in dict.fromkeys((nodes, eta) for nodes, eta, _ in ddim):
        row = {"nodes": nodes, "eta": "σ̂" if eta == SIGMA_HAT else f"{eta:g}"}
        for steps in counts:
            match = ddim.get((nodes, eta, steps))
            row[f"S={steps}"] = "" if match is None else str(match.summary.figures["fd"])
        found.append(row)
    return found


def markdown(table: Sequence[Mapping[str, str]]) -> str:
    """A table in Markdown."""
    columns = list(table[0])
    lines = [columns, ["---"] * len(columns), *([row[c] for c in columns] for row in table)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def csv_text(results: Sequence[Result]) -> str:
    """All figures, unrounded; the last row is the floor, if it is known."""
    table = with_floor(results)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue()


def plot(figure: Figure, results: Sequence[Result]) -> None:
    """Quality against network calls and against seconds, the Pareto front marked."""
    from matplotlib.ticker import LogLocator, NullFormatter

    distance = results[0].summary.distance
    floor = results[0].summary.floor
    left, right = figure.subplots(1, 2, sharey=True)
    lines: dict[str, list[Result]] = {}
    for one in results:
        lines.setdefault(_line(one.sampler), []).append(one)
    labels = ("network calls for an image", "time for an image, milliseconds")
    for axes, label in zip((left, right), labels, strict=True):

        def cost(result: Result, calls: bool = axes is left) -> float:
            return result.calls if calls else 1000 * result.seconds

        front = pareto(results, cost)
        for number, (name, line) in enumerate(lines.items()):
            line = sorted(line, key=lambda r: r.calls)
            x = [cost(r) for r in line]
            sds = [r.summary.figures["fd"].sd or 0.0 for r in line]
            how = line_style(number)
            axes.errorbar(x, [r.fd for r in line], sds, capsize=2, label=name, **how)
            best = [(a, r.fd) for a, r in zip(x, line, strict=True) if r.sampler in front]
            if best:
                axes.plot(*zip(*best, strict=True), "ko", ms=12, mfc="none")
        if floor is not None:
            axes.axhline(floor.fd, color="grey", lw=2.5, alpha=0.6, label="real test images")
        axes.set(xscale="log", yscale="log", xlabel=label)
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 20 * low else range(1, 10)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="both", labelsize=8)
        axes.grid(alpha=0.3, which="both")
    left.set_ylabel(f"{distance}, lower is better")
    left.set_title("ringed: no other is cheaper and better at once", fontsize=9)
    # Beside the axes, where no data lie.
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=8)


def _line(sampler: Sampler) -> str:
    """What samplers are called that differ in their steps alone."""
    method, nodes, eta = name_of(sampler), nodes_of(sampler), eta_of(sampler)
    name = method if method == nodes else f"{method}, {nodes}"
    return name + ("" if eta is None else f", η = {'σ̂' if eta == SIGMA_HAT else f'{eta:g}'}")


def strip_png(result: Result) -> bytes:
    """The first images of a sampler side by side."""
    picture = images.picture(images.grid(result.strip.clamp(-1, 1), len(result.strip)))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


TERMS = {
    "method": "The sampler, as --method takes it.",
    "nodes": "Where its steps stop between noise and data.",
    "eta": "DDIM's noise: 0 draws none, 1 as much as DDPM, σ̂ the larger variance of DDPM.",
    "steps": "Steps from noise to data.",
    "calls": "How often the network is called for an image: what drawing it costs.",
    "N": "Images of each seed.",
    "seeds": "Sets of noise; with several, figures are mean ± standard deviation over them.",
    "KID": "Kernel distance between features of these and of real images; 0 is equal.",
    "precision": "Share of these images that lie among real ones: how good they are.",
    "recall": "Share of real images that lie among these: how many kinds there are.",
    "chi2": "χ² of the numbers of images a class against those of real images; smaller is better.",
    "teacher RMS": "Distance on [-1, 1] to the network's own solution from the same latents.",
    "PSNR dB": "The same in decibels; more is better.",
    "ms an image": "Milliseconds of drawing for an image on this machine.",
    "front": "* where no other sampler is cheaper in calls and better at once.",
}
"""What the columns are, for those who read the page."""


def _terms(distance: str) -> dict[str, str]:
    what = "Fréchet distance between features of these and of real images; smaller is better."
    return {**TERMS, distance: what}


def html_report(
    title: str,
    facts: Mapping[str, object],
    results: Sequence[Result],
    plotted: bytes | None,
    notes: Sequence[str],
) -> str:
    """One file with everything in it: a script that sorts its tables, no link to the outside.

    Args:
        title: of the page.
        facts: what is to be known of the run, a line each.
        results: of the samplers.
        plotted: a PNG of :func:`plot`, if there is one.
        notes: what must be known to read the figures.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ddim.evaluate.sweep", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        title=title,
        facts=facts,
        distance=results[0].summary.distance,
        terms=_terms(results[0].summary.distance),
        by_eta=table_one(results),
        plotted=plotted and _address(plotted),
        samplers=compact(results),
        floor=results[0].summary.floor,
        notes=notes,
        strips=[
            (f"{_line(result.sampler)}, {result.calls} calls", _address(strip_png(result)))
            for result in results
        ],
    )


def _address(png: bytes) -> str:
    """A picture as an address that holds all of it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
