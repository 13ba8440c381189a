"""``ddim decode``: latents back to images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing
from ddim.cli.files import write_images
from ddim.cli.options import parse
from ddim.cli.report import print_json, record
from ddim.cli.sampler import RunOptions, open_model

__all__ = ["DecodeOptions", "main"]


@dataclasses.dataclass(frozen=True)
class DecodeOptions(RunOptions):
    """Turn latents that `ddim encode` wrote back into images.

    The nodes, the codec and the precision are those of the file; another model than the one that
    encoded is refused. --output decides what is written: NAME.png is a grid, NAME.npz an array
    (N, H, W, C) of bytes, anything else a folder with a PNG for each image.
    """

    latents: Annotated[str, tyro.conf.arg(aliases=("-l",))] = "latents.safetensors"
    """The file of latents."""
    model: str = "mnist"
    """The model that encoded: a shipped name, a folder, a training run or its checkpoint."""
    labels: tuple[int, ...] = ()
    """Other classes than those of the encoding, repeated in this order: this edits the images."""
    guidance: float | None = None
    """Another guidance scale than that of the encoding: this edits the images."""
    output: str = "decoded.png"
    """Where to write."""
    columns: int | None = None
    """Images in a row of the grid."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`DecodeOptions`."""
    options = parse(DecodeOptions, "decode", argv)
    output = Path(options.output)
    if output.suffix.lower() not in ("", ".png", ".npz"):
        raise InputError(f"--output is a .png or .npz file, or a folder, not {output.name}")
    refuse_existing(output, force=options.force)

    from ddim.data.pixels import to_pixels
    from ddim.latents.coding import decode
    from ddim.latents.record import Latents

    latents = Latents.load(options.latents)
    model = open_model(options.model, options, str(latents.dtype).removeprefix("torch."))
    labels = None
    if options.labels:
        labels = [options.labels[i % len(options.labels)] for i in range(len(latents))]
    start = time.perf_counter()
    images = decode(
        model,
        latents,
        labels=labels,
        guidance=options.guidance,
        batch_size=options.batch_size,
        progress=not options.quiet,
    )
    seconds = time.perf_counter() - start
    shown = labels if labels is not None else latents.labels
    write_images(output, to_pixels(images), options.columns, None if shown is None else [*shown])
    resolved = options.resolved(batch_size=options.batch_size or latents.batch_size)
    record(output, "decode", resolved, model=model.name)
    steps = len(latents.nodes) - 1
    if options.json:
        print_json(
            {
                "output": str(output),
                "images": len(latents),
                "codec": latents.codec,
                "steps": steps,
                "seconds": round(seconds, 3),
                "unsolved": latents.unsolved,
            }
        )
    else:
        print(
            f"{output}: {len(latents)} images by {latents.codec} in {steps} steps, {seconds:.1f} s"
        )
        if latents.unsolved:
            print(f"the encoding did not converge on {len(latents.unsolved)} of them")
    return 0
