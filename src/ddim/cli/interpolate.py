"""``ddim interpolate``: from image to image, through their latents."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ddim.base.errors import InputError, unknown
from ddim.base.files import refuse_existing
from ddim.cli.files import DataOptions, read_images
from ddim.cli.options import parse
from ddim.cli.report import print_json, record
from ddim.cli.sampler import RunOptions, open_model

if TYPE_CHECKING:
    from torch import Tensor

    from ddim.latents.record import Latents
    from ddim.model.model import Model

__all__ = ["InterpolateOptions", "main"]


@dataclasses.dataclass(frozen=True)
class InterpolateOptions(RunOptions, DataOptions):
    """Interpolate between latents on the sphere, and decode (the paper's figure 6).

    --between names two images for a line or four for a square (top left, top right, bottom left,
    bottom right): of those that `ddim sample --seed` draws, or with --data real images, which are
    encoded first, or with --latents images encoded before. --output NAME.png is a picture,
    NAME.webp or NAME.gif an animation: along the line, or row by row through the square.
    """

    data: str = ""
    """Interpolate between images of this: a data set's name, an image, a folder, an .npz."""
    model: str = "mnist"
    """A shipped model's name, a model folder, a training run or its checkpoint."""
    between: tuple[int, ...] = (0, 1)
    """Two images, or four."""
    frames: int = 11
    """Images along a side, the ends included."""
    seed: int = 0
    """Seed of the noise, for drawn images."""
    latents: str | None = None
    """A file that `ddim encode` wrote."""
    codec: str | None = None
    """ddim if not given: its one latent interpolates most cleanly. implicit, obelm, edict, bdia."""
    steps: int | None = None
    """Steps, from 1 to T; 50 if neither this nor a list of nodes is given."""
    nodes: str = "uniform"
    """Where the steps stop: uniform, quadratic, log-snr, or a falling list like 500,250,0."""
    labels: tuple[int, ...] = ()
    """For drawn images of a class-conditional model, the class of each of --between."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the network and of the latents."""
    output: str = "interpolation.png"
    """The file."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`InterpolateOptions`."""
    options = parse(InterpolateOptions, "interpolate", argv)
    output = Path(options.output)
    kind = output.suffix.lower()
    if kind not in (".png", ".webp", ".gif"):
        raise InputError(f"--output is a .png, .webp or .gif file, not {output.name}")
    if options.frames < 2:
        raise InputError(f"--frames must be at least 2, the two ends, not {options.frames}")
    plain = InterpolateOptions()
    if options.latents is not None:
        for name in ("data", "codec", "labels", "steps", "nodes", "dtype", "seed"):
            if getattr(options, name) != getattr(plain, name):
                raise InputError(f"--latents says all about its images: --{name} does not fit")
    if options.data and options.labels:
        raise InputError("the labels of --data are its own: --labels does not fit")
    if len(options.between) not in (2, 4):
        raise InputError(f"--between takes 2 images or 4, not {len(options.between)}")
    refuse_existing(output, force=options.force)

    from ddim.data import pixels as images
    from ddim.latents.coding import decode
    from ddim.latents.record import Latents
    from ddim.latents.slerp import interpolate

    start = time.perf_counter()
    if options.latents is not None:
        latents = Latents.load(options.latents)
        dtype = str(latents.dtype).removeprefix("torch.")
        model, corners = open_model(options.model, options, dtype), list(options.between)
        latents.check(model)
    else:
        model = open_model(options.model, options, options.dtype)
        latents = _latents(options, model)
        corners = list(range(len(options.between)))
    if options.batch_size is not None:
        latents = dataclasses.replace(latents, batch_size=options.batch_size)
    shares = [i / (options.frames - 1) for i in range(options.frames)]
    between = interpolate(latents, corners, shares)
    pixels = images.to_pixels(decode(model, between, progress=not options.quiet))
    if kind == ".png":
        images.save_image(output, pixels, options.frames)
    else:
        images.save_animation(output, _there_and_back(pixels, options.frames))
    seconds = time.perf_counter() - start
    record(output, "interpolate", options.resolved(batch_size=latents.batch_size), model=model.name)
    failed = set(latents.unsolved)
    unsolved = [i for i, at in zip(options.between, corners, strict=True) if at in failed]
    facts = {
        "output": str(output),
        "images": len(between),
        "codec": between.codec,
        "steps": len(between.nodes) - 1,
        "seconds": round(seconds, 3),
        "unsolved": unsolved,
    }
    if options.json:
        print_json(facts)
    else:
        print(
            f"{output}: {len(between)} images between {', '.join(map(str, options.between))} by "
            f"{between.codec} in {facts['steps']} steps, {seconds:.1f} s"
        )
    if unsolved:
        print(
            f"ddim interpolate: the encoding did not converge on {len(unsolved)} of the images "
            f"({', '.join(map(str, unsolved))})",
            file=sys.stderr,
        )
    return 1 if unsolved else 0


def _latents(options: InterpolateOptions, model: Model) -> Latents:
    """Latents of the images that are named, in their order."""
    import torch

    from ddim.latents.codecs import CODECS
    from ddim.latents.coding import codec_nodes, encode
    from ddim.latents.record import Latents
    from ddim.model.drawing import pick_batch_size
    from ddim.noise.draws import Noise

    codec = options.codec or "ddim"
    batch_size = pick_batch_size(model, options.batch_size)
    dtype = getattr(torch, options.dtype)
    if options.data:
        images, labels = read_images(options, model, list(options.between))
        return encode(
            model,
            images,
            steps=options.steps,
            codec=codec,
            nodes=options.nodes,
            labels=labels,
            batch_size=batch_size,
            dtype=dtype,
            progress=not options.quiet,
        )
    if codec not in CODECS:
        raise unknown("codec", codec, CODECS)
    if codec != "ddim":
        raise InputError("images that are drawn have one latent, which is of the codec ddim")
    labels = None
    if model.classes is not None:
        if len(options.labels) not in (1, len(options.between)):
            raise InputError(
                f"{model.name} is class-conditional: give --labels, one or one for each corner"
            )
        labels = options.labels * (len(options.between) // len(options.labels))
    elif options.labels:
        raise InputError(f"{model.name} has no classes: --labels means nothing to it")
    nodes = codec_nodes(model, codec, options.nodes, options.steps)
    spread = model.schedule.level(nodes[0]).spread
    noise = Noise(options.seed, options.between, model.shape, model.device, dtype)(0)
    return Latents(
        ((spread * noise).cpu(),),
        codec,
        nodes,
        model.name,
        model.identity,
        batch_size,
        labels,
        schedule=model.schedule.spec,
    )


def _there_and_back(pixels: Tensor, frames: int) -> list[Tensor]:
    """Along a line; or through a square, every second row from right to left."""
    rows = [pixels[i : i + frames] for i in range(0, len(pixels), frames)]
    path = [image for n, row in enumerate(rows) for image in (row.flip(0) if n % 2 else row)]
    return [*path, *path[-2::-1]]
