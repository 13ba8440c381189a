"""Flat TOML files: the record of what was run, read again as what to run."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddim.base.errors import InputError, quoted

__all__ = ["Value", "read_toml", "to_toml"]

Value = bool | int | float | str | list[Any]
_WIDTH = 100


def read_toml(path: Path, known: Sequence[str]) -> dict[str, Value]:
    """Read a flat TOML file.

    Args:
        path: the file.
        known: the keys that may stand in it.

    Raises:
        InputError: no such file, not TOML, a key that is not known (the nearest is offered).
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{path}: unknown key {quoted(key)}{hint}")
        if isinstance(value, dict):
            raise InputError(f"{path}: {quoted(key)} must be a plain value, not a table")
    return values


def to_toml(values: Mapping[str, object], comment: str = "") -> str:
    """A flat TOML file that :func:`read_toml` reads again; None is left out.

    Args:
        values: plain values and lists of them; a tuple is read again as a list.
        comment: lines to stand above them.

    Example:
        >>> print(to_toml({"steps": 50, "eta": 0.0, "labels": [1, 2], "nodes": None}), end="")
        steps = 50
        eta = 0.0
        labels = [1, 2]
    """
    lines = [f"# {line}\n" for line in comment.splitlines()]
    return "".join(lines + [_entry(key, v) for key, v in values.items() if v is not None])


def _entry(key: str, value: object) -> str:
    """A key and its value on one line, if that is short."""
    import tomli_w

    # A string has its line breaks escaped, so those that are left stand between parts of a list.
    text = tomli_w.dumps({key: value}, indent=0)
    line = text.replace("[\n", "[").replace(",\n]", "]").replace(",\n", ", ")
    return line if len(line) <= _WIDTH else tomli_w.dumps({key: value})
