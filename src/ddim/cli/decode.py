"""``ddim decode``: latents back to images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing
from ddim.cli.files import check_images, clear_images, write_images
from ddim.cli.groups import GridOptions, NamedModelOptions, OutputOptions, RunOptions, unset
from ddim.cli.options import parse, replaced
from ddim.cli.report import print_json, record

if TYPE_CHECKING:
    from ddim.latents.record import Latents

__all__ = ["DecodeOptions", "main"]


@dataclasses.dataclass(frozen=True)
class _DecodingRun(RunOptions):
    """How to run."""

    batch_size: Annotated[int | None, unset("that of the encoding", "INT")] = None
    """Images in one network call; another number than the encoding's changes the last bits."""
    backend: Annotated[str, unset("that of the encoding")] = "auto"
    """What runs the network: that of the encoding, and no other."""


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """Turn latents that `ddim encode` wrote back into images.

    The file says the codec, the nodes and the precision; a model other than the one that encoded is
    refused. Other labels or another guidance scale than the encoding's edit the images. --output
    decides what is written: NAME.png is a grid, NAME.npz an array (N, H, W, C) of bytes, anything
    else a folder with a PNG for each image.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim decode --latents latents.safetensors --output decoded.png",
        "ddim decode --model mnist-cond --labels 7 --guidance 2 --output sevens.npz",
    )

    latents: Annotated[str, tyro.conf.arg(aliases=("-l",))] = "latents.safetensors"
    """The file of latents."""
    labels: Annotated[tuple[int, ...], unset("those of the encoding", "LABEL ...")] = ()
    """Classes, repeated in this order."""
    guidance: Annotated[float | None, unset("that of the encoding", "FLOAT")] = None
    """Scale of classifier-free guidance; 1 is none."""
    model: NamedModelOptions = dataclasses.field(default_factory=NamedModelOptions)
    output: OutputOptions = OutputOptions(output="decoded.png")
    grid: GridOptions = GridOptions()
    run: _DecodingRun = _DecodingRun()

    def check(self) -> Path:
        """The output, if it is one that can be written.

        Raises:
            InputError: it is not, or its grid has no columns.
        """
        output = Path(self.output.output)
        if output.suffix.lower() not in ("", ".png", ".npz"):
            raise InputError(f"--output is a .png or .npz file, or a folder, not {output.name}")
        self.grid.check_output(output, (".png",))
        refuse_existing(output, force=self.output.force)
        return output


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`DecodeOptions`."""
    options = parse(DecodeOptions, "decode", argv)
    output = options.check()

    from ddim.data.pixels import to_pixels
    from ddim.latents.coding import decode
    from ddim.latents.record import Latents
    from ddim.model.condition import Condition

    latents = Latents.load(options.latents)
    model = options.model.open(options.run, str(latents.dtype).removeprefix("torch."))
    check_images(model, pictures=output.suffix.lower() != ".npz")
    if output.suffix.lower() == ".png":
        options.grid.check_grid(model.shape, len(latents))
    condition = Condition.of(latents.condition, options.labels or None, options.guidance)
    start = time.perf_counter()
    images = decode(
        model,
        latents,
        condition=condition,
        batch_size=options.run.batch_size,
        progress=not options.run.quiet,
    )
    seconds = time.perf_counter() - start
    labels = condition.rows(len(latents)).labels
    pixels = to_pixels(images)
    size = options.run.batch_size or latents.batch_size
    resolved = replaced(options, batch_size=size, backend=latents.backend)
    if not output.suffix:
        output.mkdir(parents=True, exist_ok=True)
        clear_images(output)
    record(output, "decode", resolved, model=model.name)
    columns, scale = options.grid.columns, options.grid.scale
    write_images(output, pixels, columns, None if labels is None else list(labels), scale)
    _tell(options, latents, seconds)
    return 0


def _tell(options: DecodeOptions, latents: Latents, seconds: float) -> None:
    output, steps, unsolved = options.output.output, len(latents.nodes) - 1, latents.unsolved
    if options.run.json:
        print_json(
            {
                "output": output,
                "images": len(latents),
                "codec": latents.codec,
                "steps": steps,
                "seconds": round(seconds, 3),
                "unsolved": unsolved,
                "caveat": latents.caveat,
            }
        )
        return
    print(f"{output}: {len(latents)} images by {latents.codec} in {steps} steps, {seconds:.1f} s")
    if latents.caveat is not None:
        print(latents.caveat)
