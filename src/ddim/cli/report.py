"""What the verbs share in talking to people: tables, JSON, the record of a run."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddim import __version__
from ddim.base.errors import InputError
from ddim.base.files import write_bytes
from ddim.base.records import Value, read_toml, to_toml
from ddim.cli.options import flat

__all__ = ["SILENT", "check_resumed", "print_json", "record", "recorded", "table"]

SILENT = ("force", "json", "quiet", "log")
"""Options that decide nothing about the output."""


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as aligned columns, numbers to the right."""
    columns = list(rows[0])
    cells = [[_cell(row[c]) for c in columns] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
    right = [not isinstance(rows[0][c], str) for c in columns]

    def line(parts: Sequence[str]) -> str:
        padded = [
            p.rjust(w) if r else p.ljust(w) for p, w, r in zip(parts, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(columns), line(["-" * w for w in widths]), *map(line, cells)])


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def record(output: Path, verb: str, options: Any, **known: object) -> None:
    """Write what was run beside its output, as TOML that ``--config`` takes again.

    For a folder it is ``run.toml`` inside, for a file its whole name and ``.run.toml``.

    Args:
        output: the file or folder.
        verb: the verb.
        options: resolved; what decides nothing about the output is left out.
        known: other facts, as comments; None is left out.
    """
    import torch

    output = Path(output)
    facts = {key: value for key, value in known.items() if value is not None}
    comment = "\n".join(
        [
            f"ddim {verb} --config THIS_FILE",
            f"ddim {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
            f"{torch.get_num_threads()} threads",
            *(f"{key}: {value}" for key, value in facts.items()),
        ]
    )
    path = output / "run.toml" if output.is_dir() else output.with_name(f"{output.name}.run.toml")
    values = {key: value for key, value in flat(options).items() if key not in SILENT}
    values = {**values, **_pinned(values)}
    # None is what a key that is absent means, but for options whose default is something else.
    values |= {key: "None" for key in _always(options) if values[key] is None}
    write_bytes(path, to_toml(values, comment).encode())


def _pinned(values: Mapping[str, object]) -> dict[str, object]:
    """Names on the Hub among the options, with the commits that they stood for in this run."""
    from ddim.checkpoints.hub import pinned

    models = {key: values[key] for key in ("model", "source") if key in values}
    return {key: pinned(name) for key, name in models.items() if isinstance(name, str)}


def _always(options: Any) -> list[str]:
    """The options that every record has, since their defaults are not None."""
    keys: list[str] = []
    for field in dataclasses.fields(options):
        own = field.default
        if own is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            own = field.default_factory()
        defaults = flat(own) if dataclasses.is_dataclass(own) else {field.name: own}
        keys += [key for key, default in defaults.items() if default is not None]
    return [key for key in keys if key not in SILENT]


def check_resumed(path: Path, options: Any, free: Collection[str]) -> dict[str, Value]:
    """What an earlier run recorded, whose options must be these.

    Args:
        path: its record.
        options: of the run that resumes it, resolved.
        free: options that may differ.

    Raises:
        InputError: another value; it is named. Or the record is damaged.
    """
    before, now = read_toml(path, list(flat(options))), flat(options)
    now = {**now, **_pinned(now)}
    lost = [key for key in _always(options) if key not in before]
    if lost:
        raise InputError(
            f"{path} is damaged, or of another version: it has no {lost[0]}; --force begins anew"
        )
    for key in now.keys() - {*free, *SILENT}:
        plain = list(now[key]) if isinstance(now[key], tuple) else now[key]  # pyright: ignore[reportArgumentType]
        if before.get(key) != plain:
            was, wanted = (_said(value) for value in (before.get(key), plain))
            raise InputError(f"{path} was begun with {key} = {was}, not {wanted}")
    return before


def _said(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "nothing"
    return str(value)


def recorded(path: Path, key: str) -> str | None:
    """What :func:`record` noted of a resolved value in that file; None if it did not."""
    start = f"# {key}: "
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return next((line[len(start) :] for line in lines if line.startswith(start)), None)
