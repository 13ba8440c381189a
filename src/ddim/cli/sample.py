"""``ddim sample``."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ddim.cli.options import parse, read_toml
from ddim.cli.report import bar, print_json, record
from ddim.cli.sampler import SamplerOptions, make_sampler
from ddim.errors import InputError
from ddim.files import refuse_existing, write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from ddim.generate import Drawn
    from ddim.pipeline import Pipeline

__all__ = ["SampleOptions", "main"]


@dataclasses.dataclass(frozen=True)
class SampleOptions(SamplerOptions):
    """Draw images from a model.

    Image i of a seed is always the same image, whatever else is drawn with it. --output decides
    what is written: NAME.png is a grid, NAME.npz an array (N, H, W, C) of bytes, NAME.webp or
    NAME.gif an animation of the denoising, anything else a folder with a PNG for each image.
    """

    model: str = "mnist"
    """A shipped model's name, a model folder, a training run or its checkpoint."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 64
    """How many images."""
    seed: int = 0
    """Seed of the noise."""
    labels: tuple[int, ...] = ()
    """Classes, repeated in this order; all of them in turn if none is given."""
    guidance: float = 1.0
    """Classifier-free guidance scale; 1 is none."""
    clip: bool | None = None
    """Clip the predicted x0 to [-1, 1]; None for the model's own habit."""
    output: str = "samples.png"
    """Where to write."""
    columns: int | None = None
    """Images in a row of the grid."""
    tile: int | None = None
    """Images in one network call; it decides the last bits. 1 is the mode of lowest latency."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the network and of the states."""
    threads: int | None = None
    """CPU threads."""
    resume: bool = False
    """Go on with a folder that an earlier, interrupted run of the same options began."""
    force: bool = False
    """Write over what is there."""
    json: bool = False
    """Print a JSON document instead of a sentence."""
    quiet: bool = False
    """No progress bar."""


KINDS = ("", ".png", ".npz", ".webp", ".gif")
FRAMES = 60


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`SampleOptions`."""
    options = parse(SampleOptions, "sample", argv)
    output = Path(options.output)
    folder = not output.suffix
    if output.suffix.lower() not in KINDS:
        raise InputError(
            f"--output is a .png, .npz, .webp or .gif file, or a folder, not {output.name}"
        )
    if options.resume and not folder:
        raise InputError("--resume goes with a folder of images as --output")
    if options.n < 1:
        raise InputError(f"-n must be at least 1, not {options.n}")
    if options.columns is not None and options.columns < 1:
        raise InputError(f"--columns must be at least 1, not {options.columns}")
    if not options.resume:
        refuse_existing(output, force=options.force)

    import torch

    from ddim.generate import default_tile, generate
    from ddim.pipeline import load
    from ddim.train.run import pick_device, set_threads

    set_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    pipeline = load(options.model, device=pick_device(options.device)).to(dtype=dtype)
    nodes, tableau = make_sampler(options, pipeline.schedule, 50)
    tile = default_tile(pipeline.shape, pipeline.device) if options.tile is None else options.tile
    labels = _labels(options, pipeline)

    # What decides the images, and not how they are asked for.
    resolved = dataclasses.replace(
        options, steps=len(nodes) - 1, tile=tile, force=False, resume=False, quiet=False, json=False
    )
    wanted = list(range(options.n))
    if options.resume:
        wanted = _missing(output, wanted, resolved)
    drawn: Iterator[Drawn] = iter(())
    if wanted:
        drawn = generate(
            pipeline,
            tableau,
            wanted,
            seed=options.seed,
            labels=None if labels is None else [labels[i] for i in wanted],
            guidance=options.guidance,
            clip=options.clip,
            tile=tile,
            dtype=dtype,
        )
    if folder:
        output.mkdir(parents=True, exist_ok=True)
        if not options.resume:
            for path in output.glob("[0-9]" * 6 + ".png"):
                path.unlink()  # another run's, which --force gave up
        record(output, "sample", resolved, model=pipeline.name)
    start = time.perf_counter()
    if wanted:
        total = -(-len(wanted) // tile) * len(tableau.rows)
        _write(output, bar(drawn, total, tableau.method, quiet=options.quiet), options, labels)
    seconds = time.perf_counter() - start
    if not folder:
        record(output, "sample", resolved, model=pipeline.name)
    calls = tableau.calls * (1 if options.guidance == 1 else 2)
    facts = {
        "output": str(output),
        "images": options.n,
        "drawn": len(wanted),
        "method": tableau.method,
        "steps": len(nodes) - 1,
        "network_calls": calls,
        "seconds": round(seconds, 3),
        "tile": tile,
    }
    if options.json:
        print_json(facts)
    else:
        print(
            f"{output}: {options.n} images by {tableau.method} in {len(nodes) - 1} steps, "
            f"{calls} network calls each, {seconds:.1f} s"
        )
    return 0


def _labels(options: SampleOptions, pipeline: Pipeline) -> list[int] | None:
    if pipeline.classes is None:
        if options.labels:
            raise InputError(f"{pipeline.name} has no classes: --labels means nothing to it")
        return None
    cycle = options.labels or tuple(range(pipeline.classes))
    return [cycle[i % len(cycle)] for i in range(options.n)]


def _name(index: int) -> str:
    return f"{index:06d}.png"


def _missing(output: Path, wanted: list[int], resolved: SampleOptions) -> list[int]:
    """What an earlier run has left to draw; its options must be these, or the number larger."""
    path = output / "run.toml"
    if not path.exists():
        refuse_existing(output, force=False)
        return wanted
    now = json.loads(json.dumps(dataclasses.asdict(resolved)))
    before = read_toml(path, list(now))
    for key, value in now.items():
        if key not in ("n", "output") and before.get(key) != value:
            raise InputError(f"{path} was begun with {key} = {before.get(key)}, not {value}")
    begun = before.get("n")
    if isinstance(begun, int) and resolved.n < begun:
        raise InputError(f"{path} was begun with n = {begun}, which may grow but not shrink")
    return [i for i in wanted if not (output / _name(i)).exists()]


def _write(
    output: Path, drawn: Iterator[Drawn], options: SampleOptions, labels: list[int] | None
) -> None:
    import torch

    from ddim import images

    kind = output.suffix.lower()
    if not kind:
        for event in drawn:
            if event.images is not None:
                for index, image in zip(event.indices, event.images.cpu(), strict=True):
                    images.save_image(output / _name(index), image)
        return
    pixels: list[Tensor] = []
    frames: dict[int, list[Tensor]] = {}
    for event in drawn:
        # At most FRAMES of the steps, evenly spread, the last among them.
        left = event.step.total - 1 - event.step.index
        if kind in (".webp", ".gif") and left % -(-event.step.total // FRAMES) == 0:
            frames.setdefault(event.step.index, []).append(
                images.to_pixels(event.step.x[: len(event.indices)].cpu())
            )
        if event.images is not None:
            pixels.append(images.to_pixels(event.images.cpu()))
    if kind == ".png":
        images.save_image(output, torch.cat(pixels), options.columns)
    elif kind == ".npz":
        _save_npz(output, torch.cat(pixels), labels)
    else:
        grids = [images.grid(torch.cat(parts), options.columns) for parts in frames.values()]
        images.save_animation(output, grids)


def _save_npz(output: Path, pixels: Tensor, labels: list[int] | None) -> None:
    import numpy as np

    buffer = io.BytesIO()
    array = pixels.permute(0, 2, 3, 1).numpy()
    if labels is None:
        np.savez_compressed(buffer, images=array)
    else:
        np.savez_compressed(buffer, images=array, labels=np.asarray(labels))
    write_bytes(output, buffer.getvalue())
