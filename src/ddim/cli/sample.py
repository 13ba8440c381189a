"""``ddim sample``."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing
from ddim.base.progress import bar
from ddim.base.records import read_toml
from ddim.cli.files import (
    DataOptions,
    clear_images,
    image_name,
    read_images,
    read_mask,
    write_images,
)
from ddim.cli.options import parse
from ddim.cli.report import print_json, record, recorded
from ddim.cli.sampler import SamplerOptions, make_sampler

if TYPE_CHECKING:
    from torch import Tensor

    from ddim.model.drawing import Drawn
    from ddim.model.model import Model
    from ddim.samplers.tableau import Tableau

__all__ = ["SampleOptions", "main"]


@dataclasses.dataclass(frozen=True)
class SampleOptions(SamplerOptions):
    """Draw images from a model, or edit given ones.

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
    images: str | None = None
    """Edit these, by --strength, --mask or both: a data set's name, an image, a folder, an .npz."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    strength: float | None = None
    """How much of the way to noise --images go before they come back, in (0, 1]."""
    mask: str | None = None
    """An image that is white where --images are to be painted anew and black where they stay."""
    output: str = "samples.png"
    """Where to write."""
    columns: int | None = None
    """Images in a row of the grid."""
    batch_size: int | None = None
    """Images in one network call; it decides the last bits. 1 is the mode of lowest latency."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Precision of the network, and of the states where it is not bfloat16: theirs is float32."""
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

    from ddim.base.device import pick_device, set_threads
    from ddim.model.drawing import generate, noised, pick_batch_size
    from ddim.model.opening import load

    set_threads(options.threads)
    precision = getattr(torch, options.dtype)
    dtype = torch.promote_types(precision, torch.float32)
    model = load(options.model, device=pick_device(options.device)).to(dtype=precision)
    nodes, tableau = make_sampler(options, model, 50, options.strength)
    given, mask = _edited(options, model)
    batch_size = pick_batch_size(model, options.batch_size)
    labels = _labels(options, model)

    # What decides the images, and not how they are asked for.
    resolved = dataclasses.replace(
        options,
        steps=len(nodes) - 1,
        batch_size=batch_size,
        force=False,
        resume=False,
        quiet=False,
        json=False,
    )
    wanted = list(range(options.n))
    if options.resume:
        wanted = _missing(output, wanted, resolved, model, tableau)
    drawn: Iterator[Drawn] = iter(())
    if wanted:
        noisy = None
        if given is not None and options.strength is not None:
            noisy = noised(model, tableau, given[wanted], wanted, options.seed)
        drawn = generate(
            model,
            tableau,
            wanted,
            seed=options.seed,
            labels=None if labels is None else [labels[i] for i in wanted],
            guidance=options.guidance,
            clip=options.clip,
            batch_size=batch_size,
            dtype=dtype,
            start=None if noisy is None else [noisy],
            known=None if given is None or mask is None else (given[wanted], ~mask),
        )
    if folder:
        output.mkdir(parents=True, exist_ok=True)
        ours = (output / "run.toml").exists()
        for path in output.glob(".[0-9]*.png.*.png") if ours else ():
            path.unlink()  # half an image, which a kill left
        if not options.resume:
            clear_images(output)  # which --force gave up
        known = {"identity": model.identity, "sampler": tableau.digest}
        record(output, "sample", resolved, model=model.name, **known)
    start = time.perf_counter()
    if wanted:
        total = -(-len(wanted) // batch_size) * len(tableau.rows)
        _write(output, bar(drawn, total, tableau.method, quiet=options.quiet), options, labels)
    seconds = time.perf_counter() - start
    if not folder:
        record(output, "sample", resolved, model=model.name)
    steps = f"{len(nodes) - 1} steps"
    if options.strength is not None:
        first = tableau.initial[0].k
        steps = f"the last {len(nodes) - 1 - nodes.index(first)} of {steps}, from node {first}"
    calls = tableau.calls * (1 if options.guidance == 1 else 2)
    facts = {
        "output": str(output),
        "images": options.n,
        "drawn": len(wanted),
        "method": tableau.method,
        "steps": len(nodes) - 1,
        "network_calls": calls,
        "seconds": round(seconds, 3),
        "batch_size": batch_size,
        "dtype": options.dtype,
    }
    if options.json:
        print_json(facts)
    else:
        print(
            f"{output}: {options.n} images by {tableau.method} in {steps}, "
            f"{calls} network calls each, {seconds:.1f} s"
            + ("" if options.dtype == "float32" else f", in {options.dtype}")
        )
    return 0


def _labels(options: SampleOptions, model: Model) -> list[int] | None:
    if model.classes is None:
        if options.labels:
            raise InputError(f"{model.name} has no classes: --labels means nothing to it")
        return None
    cycle = options.labels or tuple(range(model.classes))
    return [cycle[i % len(cycle)] for i in range(options.n)]


def _edited(options: SampleOptions, model: Model) -> tuple[Tensor | None, Tensor | None]:
    """The images to edit, one for each that is asked for, and the mask."""
    if options.images is None:
        if options.strength is not None or options.mask is not None:
            raise InputError("--strength and --mask need --images to work on")
        return None, None
    if options.strength is None and options.mask is None:
        raise InputError("--images are edited by --strength, --mask or both: give one")
    source = DataOptions(options.images, options.data_root)
    found = read_images(source, model, options.n, labelled=False)[0]
    # Fewer images than asked for are taken in turn, each time with other noise.
    given = found[[i % len(found) for i in range(options.n)]]
    return given, None if options.mask is None else read_mask(Path(options.mask), model)


def _missing(
    output: Path,
    wanted: list[int],
    resolved: SampleOptions,
    model: Model,
    tableau: Tableau,
) -> list[int]:
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
    if recorded(path, "identity") != model.identity:
        raise InputError(f"{path} was begun with other weights than {model.name} has now")
    if recorded(path, "sampler") != tableau.digest:
        raise InputError(
            f"{path} was begun with another {tableau.method}: calibrated anew, perhaps"
        )
    begun = before.get("n")
    if isinstance(begun, int) and resolved.n < begun:
        raise InputError(f"{path} was begun with n = {begun}, which may grow but not shrink")
    return [i for i in wanted if not (output / image_name(i)).exists()]


def _write(
    output: Path, drawn: Iterator[Drawn], options: SampleOptions, labels: list[int] | None
) -> None:
    import torch

    from ddim.data import pixels as images
    from ddim.model.inputs import check_finite

    kind = output.suffix.lower()
    what = f"what {options.model} draws by {options.method}"
    if not kind:
        for event in drawn:
            if event.images is not None:
                check_finite(event.images, what)
                for index, image in zip(event.indices, event.images.cpu(), strict=True):
                    images.save_image(output / image_name(index), image)
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
            check_finite(event.images, what)
            pixels.append(images.to_pixels(event.images.cpu()))
    if kind in (".png", ".npz"):
        write_images(output, torch.cat(pixels), options.columns, labels)
    else:
        grids = [images.grid(torch.cat(parts), options.columns) for parts in frames.values()]
        images.save_animation(output, grids)
