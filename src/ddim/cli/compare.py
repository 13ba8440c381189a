"""``ddim compare``: the same latents, a row for each sampler (the paper's figure 5)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing, write_bytes
from ddim.base.progress import bar
from ddim.cli.options import listed, numbers, parse
from ddim.cli.report import print_json, record, table
from ddim.cli.sampler import RunOptions, SamplerOptions, make_sampler, open_model

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CompareOptions", "main"]


@dataclasses.dataclass(frozen=True)
class CompareOptions(RunOptions):
    """Draw the same latents by several samplers, one row each, and measure how they differ.

    A row for every one of --methods with every one of --steps (a number that T is less than is
    taken for T). RMS is the difference from the first row with the most steps of a deterministic
    sampler, on [-1, 1]: from the same latents deterministic samplers draw the same images, the
    better the more steps they take.
    """

    model: str = "mnist"
    """A shipped model's name, a model folder, a training run or its checkpoint."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 12
    """How many images in a row."""
    methods: tuple[str, ...] = ("ddim",)
    """Samplers: ddim, ddpm, dpmpp, unipc, deis, plms, heun and so on; `METHOD:KEY=VALUE` sets an
    option, as in dpmpp:order=3."""
    steps: tuple[str, ...] = ("5", "10", "20", "50", "100", "500")
    """Numbers of steps, 5,10,20 or 5 10 20."""
    nodes: str = "uniform"
    """Where the steps stop: uniform, trailing, quadratic, log-snr or calibrated."""
    seed: int = 0
    """Seed of the noise."""
    labels: tuple[int, ...] = ()
    """Classes, repeated in this order; all of them in turn if none is given."""
    output: str = "comparison.png"
    """The picture."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`CompareOptions`."""
    options = parse(CompareOptions, "compare", argv)
    output = Path(options.output)
    if output.suffix.lower() != ".png":
        raise InputError(f"--output is a .png file, not {output.name}")
    if options.n < 1:
        raise InputError(f"-n must be at least 1, not {options.n}")
    counts, methods = numbers(options.steps, int, "--steps"), listed(options.methods)
    if not methods or not counts:
        raise InputError("--methods and --steps need at least one each")
    if options.nodes[:1].isdigit():
        raise InputError("--nodes is the name of a family here: lists have their own length")
    refuse_existing(output, force=options.force)

    import torch

    from ddim.model.drawing import generate, pick_batch_size

    model = open_model(options.model, options)
    batch_size = pick_batch_size(model, options.batch_size)
    T = model.schedule.T
    labels = None
    if model.classes is not None:
        cycle = options.labels or tuple(range(model.classes))
        labels = [cycle[i % len(cycle)] for i in range(options.n)]
    elif options.labels:
        raise InputError(f"{model.name} has no classes: --labels means nothing to it")
    plan = []
    for text in methods:
        method, *chosen = text.split(":")
        for steps in dict.fromkeys(min(s, T) for s in counts):
            sampler = SamplerOptions(
                method=method, steps=steps, nodes=options.nodes, option=tuple(chosen)
            )
            tableau = make_sampler(sampler, model, steps)[1]
            # Calibrated nodes bring their own method.
            name = tableau.method if options.nodes == "calibrated" else text
            plan.append((name, steps, tableau))
    rows: list[dict[str, object]] = []
    drawn: list[Tensor] = []
    for text, steps, tableau in plan:
        start = time.perf_counter()
        events = generate(
            model,
            tableau,
            range(options.n),
            seed=options.seed,
            labels=labels,
            batch_size=batch_size,
        )
        total = -(-options.n // batch_size) * len(tableau.rows)
        bars = bar(events, total, f"{text}, {steps}", quiet=options.quiet)
        drawn.append(torch.cat([e.images.cpu() for e in bars if e.images is not None]))
        rows.append(
            {
                "method": text,
                "steps": steps,
                "network calls": tableau.calls,
                "seconds": round(time.perf_counter() - start, 2),
            }
        )
    fixed = [i for i, (_, _, tableau) in enumerate(plan) if not tableau.stochastic]
    if fixed:
        best = max(fixed, key=lambda i: (plan[i][1], -i))
        for row, images in zip(rows, drawn, strict=True):
            row["RMS"] = round((images - drawn[best]).square().mean().sqrt().item(), 4)
    captions = [f"{row['method']}, {row['network calls']} calls" for row in rows]
    write_bytes(output, _picture(drawn, captions))
    record(output, "compare", options.resolved(batch_size=batch_size), model=model.name)
    if options.json:
        print_json(
            {"output": str(output), "model": model.name, "batch_size": batch_size, "rows": rows}
        )
    else:
        print(table(rows))
        print(f"\n{output}: {options.n} images of each, from the same latents")
    return 0


def _picture(rows: Sequence[Tensor], captions: Sequence[str]) -> bytes:
    """The rows under each other, what they are to the left, as a PNG."""
    import io

    from PIL import Image, ImageDraw, ImageFont

    from ddim.data import pixels as images

    strips = [images.picture(images.grid(row, len(row))).convert("RGB") for row in rows]
    # Small images are shown twice as large.
    scale = 2 if rows[0].shape[-1] <= 32 else 1
    size = (strips[0].width * scale, strips[0].height * scale)
    strips = [strip.resize(size, Image.Resampling.NEAREST) for strip in strips]
    font = ImageFont.load_default(size=15)
    margin, gap = 12, 6
    left = round(max(font.getlength(text) for text in captions)) + 2 * margin
    height = size[1] + gap
    canvas = Image.new("RGB", (left + size[0] + margin, 2 * margin + len(rows) * height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (strip, text) in enumerate(zip(strips, captions, strict=True)):
        y = margin + i * height
        canvas.paste(strip, (left, y))
        draw.text((left - margin, y + size[1] / 2), text, fill="black", font=font, anchor="rm")
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
