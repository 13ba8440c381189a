"""``ddim sample``."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing, write_bytes
from ddim.base.progress import bar
from ddim.base.ranks import here
from ddim.cli.files import (
    check_images,
    clear_images,
    comparison,
    image_name,
    read_images,
    read_mask,
    write_images,
)
from ddim.cli.groups import (
    ConditionOptions,
    Count,
    DataOptions,
    GridOptions,
    ModelOptions,
    OutputOptions,
    RunOptions,
    SamplerOptions,
    Switch,
    unset,
)
from ddim.cli.options import parse, replaced
from ddim.cli.report import check_resumed, print_json, record, recorded
from ddim.cli.sharded import ShardOptions, draw_set

if TYPE_CHECKING:
    from torch import Tensor

    from ddim.model.condition import Condition
    from ddim.model.drawing import Drawn
    from ddim.model.model import Model
    from ddim.samplers.tableau import Tableau

__all__ = ["SampleOptions", "main"]


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Draw images from a model, or edit given ones.

    Image i of a seed is always the same image, whatever else is drawn with it. --output decides
    what is written: NAME.png is a grid, NAME.npz an array (N, H, W, C) of bytes, NAME.webp or
    NAME.gif an animation of the denoising, anything else a folder with a PNG for each image. What
    was edited stands beside its original in NAME-compare.png, but for a folder. With
    --shard-size it is a folder of shards, which any number of processes draw together; the same
    command again draws what is left.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim sample --images photo.png --mask mask.png --strength 0.8 -n 4",
        "ddim sample -n 50000 --steps 20 --shard-size 1000 --output digits",
    )

    n: Count = 64
    """How many images."""
    seed: int = 0
    """Seed of the noise."""
    images: Annotated[str | None, unset("none", "IMAGES")] = None
    """Edit these, by --strength, --mask or both: data set's name, image, folder or .npz."""
    strength: Annotated[float | None, unset("none", "FLOAT")] = None
    """How much of the way to noise --images go before they come back, in (0, 1]."""
    mask: Annotated[str | None, unset("none", "IMAGE")] = None
    """An image that is white where --images are painted anew and black where they stay."""
    data_root: Annotated[str | None, unset("the user's cache", "FOLDER")] = None
    """The folder that named data sets are kept in and downloaded to."""
    model: ModelOptions = ModelOptions()
    sampler: SamplerOptions = SamplerOptions()
    condition: ConditionOptions = ConditionOptions()
    output: OutputOptions = OutputOptions(output="samples.png")
    grid: GridOptions = GridOptions()
    resume: Switch = False
    """Resume a folder that an earlier, interrupted run of the same options began."""
    shards: ShardOptions = ShardOptions()
    run: RunOptions = RunOptions()

    def check(self) -> Path:
        """The output, if it is one that can be written.

        Raises:
            InputError: it is not, or other options contradict it.
        """
        output = Path(self.output.output)
        if output.suffix.lower() not in KINDS:
            raise InputError(
                f"--output is a .png, .npz, .webp or .gif file, or a folder, not {output.name}"
            )
        if self.resume and output.suffix:
            raise InputError("--resume goes with a folder of images as --output")
        if self.resume and self.output.force:
            raise InputError("--resume keeps what is there, --force gives it up: give one of them")
        self.shards.check_unwanted()
        if self.shards.wanted:
            self.shards.check(output, self)
            return output
        if here().count > 1 and output.suffix.lower() in ("", *MOVING):
            raise InputError(
                f"{output.name} shows the steps, of which each process has its own: run it in one"
                if output.suffix
                else "several processes draw a folder as a set of shards: give --shard-size"
            )
        if self.n < 1:
            raise InputError(f"-n must be at least 1, not {self.n}")
        self.grid.check_output(output, (".png", *MOVING))
        if self.images is None and self.data_root is not None:
            raise InputError("--data-root is where data sets for --images are: give --images")
        if self.images is None and (self.strength is not None or self.mask is not None):
            raise InputError("--strength and --mask need --images to work on")
        if self.images is not None and self.strength is None and self.mask is None:
            raise InputError("--images are edited by --strength, --mask or both: give one")
        if not self.resume:
            refuse_existing(output, force=self.output.force)
        if self.images is not None and output.suffix:
            refuse_existing(comparison(output), force=self.output.force)
        return output


CLEARING = "images of an earlier run are being removed"
MOVING = (".webp", ".gif")
KINDS = ("", ".png", ".npz", *MOVING)
FRAMES = 60
SHOWN = 10
"""Edited images that are shown beside their originals."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`SampleOptions`."""
    options = parse(SampleOptions, "sample", argv)
    output, sampler = options.check(), options.sampler.sampler()
    model = options.model.open(options.run)
    if options.shards.wanted:
        return draw_set(options, output, model, sampler)
    check_images(model, pictures=output.suffix.lower() != ".npz")
    if output.suffix.lower() in MOVING and model.runs_on == "cuda-graph":
        raise InputError(
            f"{output.name} shows the steps, of which a CUDA graph gives none but the last: "
            "--backend torch"
        )
    tableau = model.tableau(sampler, options.strength)
    condition = options.condition.condition().check(model, options.n, every_class=True)
    if output.suffix.lower() in (".png", *MOVING):
        options.grid.check_grid(model.shape, options.n)

    from ddim.calibration.calibration import made_for
    from ddim.model.drawing import pick_batch_size, step_count
    from ddim.samplers.sampler import DEFAULT_STEPS

    size = pick_batch_size(model, options.run.batch_size)
    steps = sampler.steps or min(DEFAULT_STEPS, model.schedule.T)
    resolved = replaced(options, steps=steps, batch_size=size, backend=model.runs_on, resume=False)
    edited = _edited(options, model)
    known = {"identity": model.identity, "sampler": tableau.digest, "method": sampler.checksum}
    known["edited"] = None if edited is None else _digest(*edited)
    wanted = list(range(options.n))
    if options.resume:
        wanted = _missing(output, resolved, {k: v for k, v in known.items() if v})
    drawn = _draw(model, tableau, condition, resolved, wanted, edited)
    start = time.perf_counter()
    if not output.suffix:
        output.mkdir(parents=True, exist_ok=True)
        if not options.resume and (output / "run.toml").exists():
            # A kill while they go must not leave them to be taken for images of this run.
            record(output, "sample", resolved, model=model.name, **known, stage=CLEARING)
            clear_images(output)
        record(output, "sample", resolved, model=model.name, **known)
    total = step_count(model, tableau, len(wanted), size)
    what = f"what {model.name} draws by {sampler}"
    shown = bar(drawn, total, tableau.method, quiet=options.run.quiet)
    _write(output, shown, options.grid, condition, what, edited)
    if output.suffix:
        record(output, "sample", resolved, model=model.name, method=sampler.checksum)
    _tell(options, tableau, resolved, len(wanted), time.perf_counter() - start)
    other = made_for(model, sampler, condition)
    if other is not None:
        print(f"ddim sample: {other}", file=sys.stderr)
    return 0


def _edited(options: SampleOptions, model: Model) -> tuple[Tensor, Tensor | None] | None:
    """The images that are to be edited, and where they are painted anew."""
    if options.images is None:
        return None
    mask = None if options.mask is None else read_mask(Path(options.mask), model)
    source = DataOptions(options.images, options.data_root)
    return read_images(source, model, options.n, labelled=False, in_turn=True)[0], mask


def _digest(images: Tensor, mask: Tensor | None) -> str:
    found = hashlib.sha256(images.numpy().tobytes())
    found.update(b"" if mask is None else mask.numpy().tobytes())
    return found.hexdigest()


def _draw(
    model: Model,
    tableau: Tableau,
    condition: Condition,
    options: SampleOptions,
    wanted: list[int],
    edited: tuple[Tensor, Tensor | None] | None,
) -> Iterator[Drawn]:
    """The steps of the images that are wanted."""
    import torch

    from ddim.model.drawing import generate, noised

    if not wanted:
        return iter(())
    start = known = None
    if edited is not None:
        found, mask = edited
        # Fewer images than asked for are taken in turn, each time with other noise.
        given = found[[i % len(found) for i in wanted]]
        if options.strength is not None:
            start = [noised(model, tableau, given, wanted, options.seed)]
        if mask is not None:
            known = given, ~mask
    return generate(
        model,
        tableau,
        wanted,
        seed=options.seed,
        condition=condition[wanted],
        batch_size=options.run.batch_size,
        dtype=torch.promote_types(model.dtype, torch.float32),
        start=start,
        known=known,
    )


def _missing(output: Path, options: SampleOptions, known: dict[str, str]) -> list[int]:
    """What an earlier run has left to draw; its options must be these, or the number larger."""
    wanted = list(range(options.n))
    path = output / "run.toml"
    if not path.exists():
        refuse_existing(output, force=False)
        return wanted
    before = check_resumed(path, options, ("n", "output"))
    meaning = {
        "identity": "other weights",
        "method": "another file of the method",
        "edited": "other images or another mask",
    }
    for key, value in known.items():
        if recorded(path, key) != value:
            what = meaning.get(key, "another sampler, calibrated anew, perhaps")
            raise InputError(f"{path} was begun with {what}")
    begun = before.get("n")
    if isinstance(begun, int) and options.n < begun:
        raise InputError(f"{path} was begun with n = {begun}, which may grow but not shrink")
    if recorded(path, "stage") == CLEARING:
        clear_images(output)
    return [i for i in wanted if not _is_whole(output / image_name(i))]


def _is_whole(path: Path) -> bool:
    """Whether a PNG is there from its first byte to its last, by the checksums of its chunks."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    at, kind = 8, b""
    while at + 12 <= len(data) and kind != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return False
        at = end
    return data[:8] == b"\x89PNG\r\n\x1a\n" and kind == b"IEND" and at == len(data)


def _write(
    output: Path,
    drawn: Iterator[Drawn],
    grid: GridOptions,
    condition: Condition,
    what: str,
    edited: tuple[Tensor, Tensor | None] | None,
) -> None:
    import torch

    from ddim.data import pixels
    from ddim.data.sheet import enlarged

    kind = output.suffix.lower()
    whole: list[Tensor] = []
    frames: dict[int, dict[int, Tensor]] = {}
    for event in drawn:
        # At most FRAMES of the steps, evenly spread, the last among them.
        left = event.step.total - 1 - event.step.index
        if kind in MOVING and left % -(-event.step.total // FRAMES) == 0:
            part = pixels.to_pixels(event.step.x[: len(event.indices)].cpu())
            # Batches run side by side: their steps come as they happen.
            frames.setdefault(event.step.index, {})[event.indices[0]] = part
        if event.images is None:
            continue
        event.check_finite(what)
        if kind:
            whole.append(pixels.to_pixels(event.images.cpu()))
            continue
        for index, image in zip(event.indices, event.images.cpu(), strict=True):
            pixels.save_image(output / image_name(index), image)
    if frames:
        ordered = [
            torch.cat([part for _, part in sorted(frames[index].items())])
            for index in sorted(frames)
        ]
        grids = [enlarged(pixels.grid(images, grid.columns), grid.scale) for images in ordered]
        pixels.save_animation(output, grids)
    elif kind:
        labels = None if condition.labels is None else list(condition.labels)
        # What was edited is data: it keeps its own pixels.
        scale = 1 if edited is not None and grid.scale is None else grid.scale
        write_images(output, torch.cat(whole), grid.columns, labels, scale)
    if edited is not None and kind:
        write_bytes(comparison(output), _compared(*edited, torch.cat(whole)))


def _compared(found: Tensor, mask: Tensor | None, drawn: Tensor) -> bytes:
    """The first images, where they were painted anew, and what became of them, as a PNG."""
    from ddim.data.pixels import to_pixels
    from ddim.data.sheet import labelled, png

    count = min(SHOWN, len(drawn))
    given = to_pixels(found[[i % len(found) for i in range(count)]])
    rows, texts = [given], ["original"]
    if mask is not None:
        rows.append((mask * 255).byte().expand(given.shape))
        texts.append("mask")
    return png(labelled([*rows, drawn[:count]], [*texts, "edited"]))


def _tell(
    options: SampleOptions, tableau: Tableau, resolved: SampleOptions, drawn: int, seconds: float
) -> None:
    calls = tableau.calls * (1 if options.condition.guidance == 1 else 2)
    steps = resolved.sampler.steps
    facts = {
        "output": options.output.output,
        "images": options.n,
        "drawn": drawn,
        "method": tableau.method,
        "steps": steps,
        "network_calls": calls,
        "seconds": round(seconds, 3),
        "batch_size": resolved.run.batch_size,
        "backend": resolved.run.backend,
        "dtype": options.model.dtype,
    }
    beside = None
    if options.images is not None and Path(options.output.output).suffix:
        beside = facts["compared"] = str(comparison(Path(options.output.output)))
    if options.run.json:
        print_json(facts)
        return
    how = f"{steps} steps"
    if options.strength is not None:
        how = f"the part of {how} that begins at node {tableau.initial[0].k}"
    dtype = "" if options.model.dtype == "float32" else f", in {options.model.dtype}"
    print(
        f"{options.output.output}: {options.n} images by {tableau.method} in {how}, "
        f"{calls} network calls each, {seconds:.1f} s{dtype}"
    )
    if beside is not None:
        print(f"{beside}: the first of them beside their originals")
