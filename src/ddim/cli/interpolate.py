"""``ddim interpolate``: from image to image, through their latents."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing, write_bytes
from ddim.cli.files import check_images, read_images
from ddim.cli.groups import (
    CodecOptions,
    DataOptions,
    ModelOptions,
    OutputOptions,
    PictureOptions,
    RunOptions,
    unset,
)
from ddim.cli.options import flat, parse, replaced
from ddim.cli.report import print_json, record

if TYPE_CHECKING:
    from torch import Tensor

    from ddim.latents.coding import Coding
    from ddim.latents.record import Latents
    from ddim.model.model import Model

__all__ = ["InterpolateOptions", "main"]


@dataclasses.dataclass(frozen=True)
class _OneLatentCodec(CodecOptions):
    """Codec, steps and nodes."""

    codec: Annotated[str, unset("ddim", "CODEC")] = ""
    """ddim, whose one latent interpolates most cleanly, implicit, obelm, edict or bdia."""


@dataclasses.dataclass(frozen=True)
class _DecodingRun(RunOptions):
    """How to run."""

    batch_size: Annotated[
        int | None, unset("that of --latents, or what `ddim sample` takes", "INT")
    ] = None
    """Images in one network call; it decides the last bits."""


@dataclasses.dataclass(frozen=True)
class InterpolateOptions:
    """Interpolate between latents on the sphere, and decode (the paper's figure 6).

    Two images make a line and four a square (top left, top right, bottom left, bottom right). They
    are drawn, as `ddim sample --seed` draws them; or real ones of --data, which are encoded first;
    or of --latents, encoded before. The predicted x0 is not clipped, since clipping cannot be
    undone. An --output NAME.png is a picture, NAME.webp or NAME.gif an animation: along the line,
    or row by row through the square.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim interpolate --between 0 3 --frames 11 --steps 20",
        "ddim interpolate --data mnist --between 0 1 2 3 --output square.webp",
    )

    between: Annotated[tuple[int, ...], unset("none", "INT ...")] = (0, 1)
    """Two images, or four, by their numbers."""
    frames: int = 11
    """Images along a side, the ends included."""
    seed: int = 0
    """Seed of the noise, for drawn images."""
    labels: Annotated[tuple[int, ...], unset("none", "LABEL ...")] = ()
    """Classes of --between, repeated in this order, for drawn images."""
    latents: Annotated[str | None, unset("none", "FILE")] = None
    """A file that `ddim encode` wrote."""
    data: DataOptions = DataOptions(data="")
    model: ModelOptions = ModelOptions()
    codec: _OneLatentCodec = _OneLatentCodec()
    output: OutputOptions = OutputOptions(output="interpolation.png")
    picture: PictureOptions = PictureOptions()
    run: _DecodingRun = _DecodingRun()

    def check(self) -> Path:
        """The output, if it is one that can be written.

        Raises:
            InputError: it is not, or other options contradict each other.
        """
        output = Path(self.output.output)
        if output.suffix.lower() not in (".png", ".webp", ".gif"):
            raise InputError(f"--output is a .png, .webp or .gif file, not {output.name}")
        if self.frames < 2:
            raise InputError(f"--frames must be at least 2, the two ends, not {self.frames}")
        if len(self.between) not in (2, 4):
            raise InputError(f"--between takes 2 images or 4, not {len(self.between)}")
        if self.latents is not None:
            self._refuse("--latents says all about its images", *OF_THE_LATENTS)
        elif self.data.data:
            self._refuse("the labels of --data are its own", "labels")
            self._refuse("--data are not drawn", "seed")
        else:
            self._refuse("without --data images are drawn", "data_root", "split")
        refuse_existing(output, force=self.output.force)
        return output

    def _refuse(self, why: str, *names: str) -> None:
        """Refuse options that have no part in this run."""
        given, plain = flat(self), flat(InterpolateOptions())
        for name in names:
            if given[name] != plain[name]:
                raise InputError(f"{why}: --{name.replace('_', '-')} does not fit")


OF_THE_LATENTS = (
    *("data", "data_root", "split", "codec", "steps", "nodes", "labels", "dtype", "seed"),
)


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`InterpolateOptions`."""
    options = parse(InterpolateOptions, "interpolate", argv)
    output = options.check()

    from ddim.data.pixels import to_pixels
    from ddim.latents.coding import decode
    from ddim.latents.slerp import interpolate

    start = time.perf_counter()
    if options.latents is not None:
        model, latents = _read(options, options.latents)
        corners = list(options.between)
    else:
        options = replaced(options, codec=options.codec.codec or "ddim")
        model, latents, steps = _made(options)
        corners, options = list(range(len(options.between))), replaced(options, steps=steps)
    rows = options.frames if len(corners) == 4 else 1
    options.picture.check(model.shape, options.frames, rows)
    shares = [i / (options.frames - 1) for i in range(options.frames)]
    between = interpolate(latents, corners, shares)
    decoded = decode(
        model, between, batch_size=options.run.batch_size, progress=not options.run.quiet
    )
    _write(output, to_pixels(decoded), options)
    seconds = time.perf_counter() - start
    resolved = replaced(options, batch_size=options.run.batch_size or latents.batch_size)
    record(output, "interpolate", resolved, model=model.name)
    ends = latents[corners]
    _tell(options, between, ends, seconds)
    return 1 if ends.unsolved else 0


def _read(options: InterpolateOptions, path: str) -> tuple[Model, Latents]:
    """Latents of a file, and their model."""
    from ddim.latents.record import Latents

    latents = Latents.load(path)
    model = options.model.open(options.run, str(latents.dtype).removeprefix("torch."))
    check_images(model)
    return latents.check(model), latents


def _made(options: InterpolateOptions) -> tuple[Model, Latents, int]:
    """The model, the latents of the images that are named, in their order, and the steps."""
    import torch

    from ddim.latents.coding import encode
    from ddim.model.condition import Condition

    coding = options.codec.coding()
    if not options.data.data and coding.codec != "ddim":
        raise InputError("images that are drawn have one latent, which is of the codec ddim")
    model = options.model.open(options.run)
    check_images(model)
    if options.data.data:
        images, labels = read_images(options.data, model, list(options.between))
        latents = encode(
            model,
            images,
            codec=coding.codec,
            steps=coding.sampler.steps,
            nodes=coding.sampler.nodes,
            condition=Condition(labels, clip=False),
            batch_size=options.run.batch_size,
            dtype=getattr(torch, options.model.dtype),
            progress=not options.run.quiet,
        )
    else:
        latents = _drawn(options, model, coding)
    return model, latents, coding.sampler.steps or len(latents.nodes) - 1


def _drawn(options: InterpolateOptions, model: Model, coding: Coding) -> Latents:
    """The latents that `ddim sample` would start from."""
    import torch

    from ddim.latents.drawn import drawn_latents
    from ddim.model.condition import Condition

    return drawn_latents(
        model,
        options.between,
        seed=options.seed,
        codec=coding.codec,
        steps=coding.sampler.steps,
        nodes=coding.sampler.nodes,
        condition=Condition(options.labels or None),
        batch_size=options.run.batch_size,
        dtype=getattr(torch, options.model.dtype),
    )


def _write(output: Path, pixels: Tensor, options: InterpolateOptions) -> None:
    """Write a picture, or an animation along the line or through the square."""
    from ddim.data import pixels as images
    from ddim.data.sheet import enlarged, labelled, png

    frames, scale = options.frames, options.picture.scale
    if output.suffix.lower() == ".png":
        rows = [pixels[i : i + frames] for i in range(0, len(pixels), frames)]
        write_bytes(output, png(labelled(rows, _texts(options), _shares(frames), scale)))
    else:
        moving = [enlarged(image, scale) for image in _there_and_back(pixels, frames)]
        images.save_animation(output, moving)


def _shares(frames: int) -> list[str]:
    """How far along a side each image is."""
    return [f"{round(100 * i / (frames - 1))}%" for i in range(frames)]


def _texts(options: InterpolateOptions) -> list[str]:
    """What the rows lead from and to; those within a square how far down they are."""
    first, second, *others = options.between
    if not others:
        return [f"#{first} to #{second}"]
    within = _shares(options.frames)[1:-1]
    return [f"#{first} to #{second}", *within, f"#{others[0]} to #{others[1]}"]


def _tell(options: InterpolateOptions, between: Latents, ends: Latents, seconds: float) -> None:
    output, steps = options.output.output, len(between.nodes) - 1
    unsolved = [options.between[i] for i in ends.unsolved]
    if options.run.json:
        print_json(
            {
                "output": output,
                "images": len(between),
                "codec": between.codec,
                "steps": steps,
                "seconds": round(seconds, 3),
                "unsolved": unsolved,
                "caveat": ends.caveat,
            }
        )
    else:
        print(
            f"{output}: {len(between)} images between {', '.join(map(str, options.between))} by "
            f"{between.codec} in {steps} steps, {seconds:.1f} s"
        )
        if ends.caveat is not None and not unsolved:
            print(ends.caveat)
    if unsolved:
        print(
            f"ddim interpolate: the encoding did not converge on {len(unsolved)} of the images "
            f"({', '.join(map(str, unsolved))})",
            file=sys.stderr,
        )


def _there_and_back(pixels: Tensor, frames: int) -> list[Tensor]:
    """Along a line; or through a square, every second row from right to left."""
    rows = [pixels[i : i + frames] for i in range(0, len(pixels), frames)]
    path = [image for n, row in enumerate(rows) for image in (row.flip(0) if n % 2 else row)]
    return [*path, *path[-2::-1]]
