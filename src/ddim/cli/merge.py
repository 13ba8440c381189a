"""``ddim merge``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from ddim.base.progress import bar
from ddim.cli.groups import ReportOptions
from ddim.cli.options import parse
from ddim.cli.report import print_json

__all__ = ["MergeOptions", "main"]


@dataclasses.dataclass(frozen=True)
class MergeOptions:
    """Copy the shards of several parts of one set into one folder, each checked by its checksum.

    The parts are folders that `ddim sample --shard i/N` made. The folder can hold some of the
    shards already; interrupted, the same command goes on.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim merge part-0 part-1 part-2 --output digits",
        "ddim merge part-3 --output digits --json",
    )

    parts: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PART [PART ...]")
    ]
    """The parts."""
    output: str
    """The folder of the whole set."""
    report: ReportOptions = ReportOptions()


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`MergeOptions`."""
    options = parse(MergeOptions, "merge", argv)

    from ddim.data.manifest import Manifest
    from ddim.shards.merging import merging

    output, parts = Path(options.output), [Path(part) for part in options.parts]
    total = len({k for part in parts for k in Manifest.read(part).shards})
    for _ in bar(merging(parts, output), total, "merge", quiet=options.report.quiet, unit="shard"):
        pass
    manifest = Manifest.read(output)
    missing = manifest.missing()
    if options.report.json:
        facts = {"images": manifest.n, "shards": manifest.count, "missing": missing}
        print_json({"output": str(output), **facts})
        return 0
    left = f", {len(missing)} still missing, the first is {missing[0]}" if missing else ""
    print(f"{output}: {manifest.count - len(missing)} of {manifest.count} shards{left}")
    return 0
