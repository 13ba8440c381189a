"""The set of shards that ``ddim sample`` draws."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from ddim.base.errors import InputError
from ddim.base.exposition import Metric, check_exposition, write_exposition
from ddim.base.progress import meter
from ddim.base.ranks import here
from ddim.cli.groups import unset
from ddim.cli.options import replaced
from ddim.cli.report import print_json, record

if TYPE_CHECKING:
    from ddim.cli.sample import SampleOptions
    from ddim.data.manifest import Manifest
    from ddim.model.model import Model
    from ddim.samplers.sampler import Sampler

__all__ = ["ShardOptions", "draw_set"]


@dataclasses.dataclass(frozen=True)
class ShardOptions:
    """A set of images that many processes draw."""

    shard_size: Annotated[int | None, unset("no shards", "INT")] = None
    """Images in a shard; the set is finished by the same command, whatever ended it."""
    shard_format: Literal["npz", "safetensors", "tar", "png"] = "npz"
    """Arrays of bytes (npz, safetensors), WebDataset's tar, or a folder of PNGs a shard."""
    shard: Annotated[str, unset("all", "I/N")] = ""
    """Only shards i, i + N, ...: for processes that do not see each other's folder."""
    prometheus: Annotated[str | None, unset("none", "NAME.prom")] = None
    """Keep the latest numbers in this file, for Prometheus' node exporter."""

    @property
    def wanted(self) -> bool:
        """Whether there are to be shards."""
        return self.shard_size is not None

    def check(self, output: Path, options: SampleOptions) -> None:
        """Refuse what goes with no set of shards.

        Raises:
            InputError: it is named.
        """
        if output.suffix:
            raise InputError(f"--output of --shard-size is a folder, not {output.name}")
        for name, value in (
            ("--images", options.images),
            ("--columns", options.grid.columns),
            ("--scale", options.grid.scale),
        ):
            if value is not None:
                raise InputError(f"{name} does not go with --shard-size, which draws a set")
        if options.output.force:
            raise InputError(
                "--shard-size adds to what is there and writes nothing over, so that --force "
                "means nothing: remove the folder to begin anew"
            )

    def check_unwanted(self) -> None:
        """Refuse options of a set where none is made.

        Raises:
            InputError: it is named.
        """
        if self.wanted:
            return
        for field in dataclasses.fields(self):
            if getattr(self, field.name) != field.default:
                name = field.name.replace("_", "-")
                raise InputError(f"--{name} goes with --shard-size")


def draw_set(options: SampleOptions, output: Path, model: Model, sampler: Sampler) -> int:
    """Draw the set, or what is left of it, and say what became of it."""
    from ddim.shards.drawing import Share, draw

    shards, start = options.shards, time.perf_counter()
    assert shards.shard_size is not None
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: --shard-size makes a folder")
    drawing = draw(
        model,
        output,
        options.n,
        sampler,
        seed=options.seed,
        condition=options.condition.condition(),
        batch_size=options.run.batch_size,
        shard_size=shards.shard_size,
        shard_format=shards.shard_format,
        share=Share.parse(shards.shard) if shards.shard else None,
    )
    if drawing.images and here().first:
        shared = replaced(
            options, shard="", prometheus=None, resume=False
        )  # one record for all shares
        record(output, "sample", shared, model=model.name)
    file = Path(shards.prometheus) if shards.prometheus is not None and here().first else None
    if file is not None:
        check_exposition(file)
    drawn, total = 0, drawing.images
    with meter(
        quiet=options.run.quiet or not here().first,
        desc="sample",
        total=drawing.images,
        unit=" images",
    ) as bar:
        for told in drawing:
            drawn += told.images
            bar.set_postfix(shard=told.shard, refresh=False)
            bar.update(told.images)
            if file is not None and told.done:
                _expose(file, told.shard, drawn, total, time.perf_counter() - start)
    drawn = sum(here().gather(drawn))
    _tell(options, output, drawing.manifest, drawn, time.perf_counter() - start)
    return 0


def _expose(file: Path, shard: int, drawn: int, total: int, seconds: float) -> None:
    speed = drawn / seconds
    left = (total - drawn) / speed if speed else float("inf")
    metrics = {
        "ddim_sample_images_total": Metric(drawn, "Images drawn by this process.", "counter"),
        "ddim_sample_images_left": Metric(total - drawn, "Images of its share not drawn by it."),
        "ddim_sample_images_per_second": Metric(speed, "Images drawn in a second."),
        "ddim_sample_seconds_left": Metric(left, "Seconds until the end, if it drew all of them."),
        "ddim_sample_shard": Metric(shard, "Number of the shard finished last."),
    }
    write_exposition(file, metrics)


def _tell(
    options: SampleOptions, output: Path, manifest: Manifest, drawn: int, seconds: float
) -> None:
    missing = manifest.missing()
    facts = {
        "output": str(output),
        "images": manifest.n,
        "drawn": drawn,
        "shards": manifest.count,
        "missing": len(missing),
        "seconds": round(seconds, 3),
        **{key: manifest.made_by[key] for key in ("sampler", "batch_size", "backend", "dtype")},
    }
    if options.run.json:
        print_json(facts)
        return
    left = f", {len(missing)} of other processes to come" if missing else ""
    print(
        f"{output}: {drawn} images drawn of {manifest.n}, in {manifest.count} shards{left}, "
        f"{seconds:.1f} s"
    )
