"""Options from flags over a flat TOML file, and the record of what was resolved. No torch here."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import json
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ddim.base.errors import InputError

__all__ = ["Value", "listed", "numbers", "parse", "read_toml", "to_toml"]

Options = TypeVar("Options")
Value = bool | int | float | str | list[Any]


def parse(
    kind: type[Options], verb: str, argv: Sequence[str], default: Options | None = None
) -> Options:
    """Read options: built-in defaults, under ``--config FILE``, under the flags.

    Args:
        kind: a frozen dataclass; its docstring is the verb's help.
        verb: the verb, for the help and for errors.
        argv: the arguments after the verb.
        default: instead of the dataclass's own defaults.

    Raises:
        InputError: an unknown flag or key, or a value of the wrong type, in one line.
        SystemExit: with status 0, after printing the help.
    """
    flags, config = _take_config(list(argv))
    fields = dataclasses.fields(typing.cast(Any, kind))
    values = read_toml(config, [f.name for f in fields]) if config else {}
    names = [f.name for f in fields if "Positional" in str(f.type)]
    bare = [str(values.pop(name)) for name in names if name in values]
    switches = {f.name for f in fields if f.type == "bool"}
    arguments = [
        part for key, value in values.items() for part in _flag(key, value, key in switches)
    ] + flags
    try:
        return _parsed(kind, verb, bare + arguments, default)
    except InputError as error:
        if bare:  # this call, perhaps, has its own of what stands without a flag
            with contextlib.suppress(InputError):
                return _parsed(kind, verb, arguments, default)
        raise error


def _parsed(
    kind: type[Options], verb: str, arguments: list[str], default: Options | None
) -> Options:
    import tyro

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            found = tyro.cli(
                kind,
                prog=f"ddim {verb}",
                args=arguments,
                default=default,
                config=(tyro.conf.AvoidSubcommands,),
            )
            return typing.cast(Options, found)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(_one_line(errors.getvalue())) from None


def _take_config(argv: list[str]) -> tuple[list[str], Path | None]:
    """Split off ``--config FILE``."""
    for i, argument in enumerate(argv):
        if argument == "--config":
            if i + 1 == len(argv):
                raise InputError("--config needs a file")
            return argv[:i] + argv[i + 2 :], Path(argv[i + 1])
        if argument.startswith("--config="):
            return argv[:i] + argv[i + 1 :], Path(argument.partition("=")[2])
    return argv, None


def listed(values: Sequence[str]) -> list[str]:
    """The parts between spaces and commas, each once.

    Example:
        >>> listed(["5,10", "20"])
        ['5', '10', '20']
    """
    parts = [part.strip() for value in values for part in value.split(",")]
    return list(dict.fromkeys(part for part in parts if part))


def numbers(values: Sequence[str], kind: type, flag: str, words: Sequence[str] = ()) -> list[Any]:
    """The numbers in a list as :func:`listed` takes it; some words may stand among them.

    Raises:
        InputError: a part that is neither a number of that kind nor one of the words.
    """
    try:
        return [part if part in words else kind(part) for part in listed(values)]
    except ValueError as error:
        wrong = str(error).rpartition(": ")[2]
        raise InputError(f"{flag} takes numbers, not {wrong}") from None


def read_toml(path: Path, known: Sequence[str]) -> dict[str, Value]:
    """Read a flat TOML file.

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
            raise InputError(f"{path}: unknown key {key!r}{hint}")
        if isinstance(value, dict):
            raise InputError(f"{path}: {key!r} must be a plain value, not a table")
    return values


def _flag(key: str, value: Value, switch: bool) -> list[str]:
    """The flag that says the same; a switch takes no value, an optional truth does."""
    name = key.replace("_", "-")
    if switch and isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


def _one_line(box: str) -> str:
    """The gist of the parser's boxed message, which is drawn in colours, in UTF-8 or in ASCII."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ") for line in plain.splitlines() if line.strip("│ ")]
    # The title is followed by the message, in ASCII by a rule first.
    lines = lines[1 if plain.startswith("╭") else 2 :]
    rule = next((i for i, line in enumerate(lines) if set(line) <= set("─-╰╯")), len(lines))
    gist = re.sub(r"\s+", " ", " ".join(lines[:rule])).partition(" Got errors:")[0]
    gist = re.sub(r"^Error parsing \w*Options: ", "", gist)
    hint = ""
    for before, line in itertools.pairwise(lines):
        if before.startswith("Perhaps you meant"):
            hint = f": did you mean {line.split()[0].rstrip(',')}?"
    return (gist.rstrip(".") or "wrong usage") + hint


def to_toml(values: Mapping[str, object], comment: str = "") -> str:
    """A flat TOML file that ``--config`` reads again; None is left out.

    Example:
        >>> print(to_toml({"steps": 50, "eta": 0.0, "labels": [1, 2], "nodes": None}), end="")
        steps = 50
        eta = 0.0
        labels = [1, 2]
    """
    lines = [f"# {line}" for line in comment.splitlines()]
    for key, value in values.items():
        if value is not None:
            plain = list(value) if isinstance(value, tuple) else value
            lines.append(f"{key} = {json.dumps(plain, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
