"""``ddim verify``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from ddim.base.progress import bar
from ddim.cli.groups import ReportOptions
from ddim.cli.options import parse
from ddim.cli.report import print_json

if TYPE_CHECKING:
    from ddim.shards.checking import Verified

__all__ = ["VerifyOptions", "main"]

_NAMED = 10
"""Shards that are named one by one."""


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """Read every shard of a set and compare it with the checksum in its manifest.

    The exit status is 0 if all is there as it was written, and 1 if not. The command that made the
    set draws missing shards again, and damaged ones once they are removed.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim verify digits",
        "ddim verify digits --json --quiet",
    )

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The set."""
    report: ReportOptions = ReportOptions()


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`VerifyOptions`."""
    options = parse(VerifyOptions, "verify", argv)

    from ddim.data.manifest import Manifest
    from ddim.shards.checking import Verified, verifying

    folder = Path(options.folder)
    manifest, found = Manifest.read(folder), None
    total = len(manifest.shards) + 1
    steps = verifying(folder)
    for step in bar(steps, total, "verify", quiet=options.report.quiet, unit="shard"):
        found = step
    assert isinstance(found, Verified)
    if options.report.json:
        print_json({"folder": str(folder), "whole": found.whole, **dataclasses.asdict(found)})
    else:
        _tell(folder, found)
    return 0 if found.whole else 1


def _tell(folder: Path, found: Verified) -> None:
    for what, numbers in (("missing", found.missing), ("damaged", found.damaged)):
        if numbers:
            print(f"{folder}: {len(numbers)} of {found.shards} shards {what}: {_some(numbers)}")
    if found.whole:
        print(f"{folder}: {found.n} images in {found.shards} shards, all as they were written")
    if found.strange:
        print(f"ddim verify: {_some(found.strange)} in it are not of the set", file=sys.stderr)


def _some(items: Sequence[object]) -> str:
    named = ", ".join(map(str, items[:_NAMED]))
    return named if len(items) <= _NAMED else f"{named} and {len(items) - _NAMED} more"
