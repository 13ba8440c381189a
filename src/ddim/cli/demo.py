"""``ddim demo``: the experiment that everything starts from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing
from ddim.base.progress import bar
from ddim.cli.options import parse
from ddim.cli.report import print_json, record, table

if TYPE_CHECKING:
    from torch import Tensor

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

    model: str = "mnist"
    """A shipped model's name, a model folder, a training run or its checkpoint."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 64
    """How many images in each grid."""
    steps: tuple[int, ...] = (50, 20, 10)
    """Steps of DDIM, one grid each."""
    seed: int = 0
    """Seed of the noise."""
    ddpm: bool = True
    """Draw the DDPM grid, which takes most of the time."""
    output: str = "demo.png"
    """The picture."""
    batch_size: int | None = None
    """Images in one network call."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads."""
    force: bool = False
    """Write over what is there."""
    json: bool = False
    """Print a JSON document instead of a table."""
    quiet: bool = False
    """No progress bars."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`DemoOptions`."""
    options = parse(DemoOptions, "demo", argv)
    output = Path(options.output)
    if output.suffix.lower() != ".png":
        raise InputError(f"--output is a .png file, not {output.name}")
    if options.n < 1:
        raise InputError(f"-n must be at least 1, not {options.n}")
    refuse_existing(output, force=options.force)

    import torch

    from ddim.base.device import pick_device, set_threads
    from ddim.base.files import write_bytes
    from ddim.data import pixels as images
    from ddim.model.drawing import generate, pick_batch_size
    from ddim.model.opening import load
    from ddim.model.sampler import calibration_of, make_sampler
    from ddim.noise.nodes import uniform
    from ddim.samplers.sampler import make_tableau

    set_threads(options.threads)
    model = load(options.model, device=pick_device(options.device))
    batch_size = pick_batch_size(model, options.batch_size)
    labels = None
    if model.classes is not None:
        labels = [i % model.classes for i in range(options.n)]
    plan = [("ddpm", model.schedule.T)] * options.ddpm + [("ddim", s) for s in options.steps]
    tableaux = [
        make_tableau(model.schedule, uniform(model.schedule, steps), method)
        for method, steps in plan
    ]
    there = model.calibration is not None and model.calibration.exists()
    if there and CALIBRATED in calibration_of(model).samplers:
        tableaux.append(make_sampler(model, "calibrated", CALIBRATED)[1])
    rows: list[dict[str, object]] = []
    grids: list[Tensor] = []
    for tableau in tableaux:
        name = "calibrated" if "calibrated" in tableau.method else tableau.method.upper()
        label = f"{name} {len(tableau.rows):>4} steps"
        start = time.perf_counter()
        drawn = generate(
            model,
            tableau,
            range(options.n),
            seed=options.seed,
            labels=labels,
            batch_size=batch_size,
        )
        total = -(-options.n // batch_size) * len(tableau.rows)
        steps = bar(drawn, total, label, quiet=options.quiet)
        parts = [event.images.cpu() for event in steps if event.images is not None]
        seconds = time.perf_counter() - start
        grids.append(images.grid(torch.cat(parts)))
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
    write_bytes(output, _picture(grids, captions))
    resolved = dataclasses.replace(
        options, batch_size=batch_size, force=False, quiet=False, json=False
    )
    record(output, "demo", resolved, model=model.name)
    if options.json:
        facts = {
            "output": str(output),
            "model": model.name,
            "images": options.n,
            "batch_size": batch_size,
        }
        print_json({**facts, "threads": torch.get_num_threads(), "runs": rows})
    else:
        print(table(rows))
        print(f"\n{output}: {options.n} images of each, from the same latents")
    return 0


def _picture(grids: Sequence[Tensor], captions: Sequence[tuple[str, str]]) -> bytes:
    """The grids side by side, two lines of text under each, as a PNG."""
    import io

    from PIL import Image, ImageDraw, ImageFont

    from ddim.data import pixels as images

    shown = [images.picture(grid).convert("RGB") for grid in grids]
    width = max(240, shown[0].width)
    scale = width / shown[0].width
    shown = [p.resize((width, round(p.height * scale)), Image.Resampling.NEAREST) for p in shown]
    margin, text = 16, 52
    canvas = Image.new(
        "RGB",
        (margin + len(shown) * (width + margin), shown[0].height + 2 * margin + text),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=15)
    for i, (grid, (first, second)) in enumerate(zip(shown, captions, strict=True)):
        x = margin + i * (width + margin)
        canvas.paste(grid, (x, margin))
        y = margin + grid.height + 8
        draw.text((x + width / 2, y), first, fill="black", font=font, anchor="ma")
        draw.text((x + width / 2, y + 21), second, fill="dimgray", font=font, anchor="ma")
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
