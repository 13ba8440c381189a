"""Plain values from files of anybody's: JSON, flat TOML and records whose fields have types."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import math
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from ddim.base.errors import LONGEST, InputError, quoted

__all__ = [
    "JSON_BYTES",
    "Value",
    "check_fields",
    "checked",
    "in_file",
    "parse_json",
    "read_text",
    "read_toml",
    "record",
    "to_toml",
]

Value = bool | int | float | str | list[Any]
Record = TypeVar("Record")
_WIDTH = 100
# What a record may be, so that no file of a few megabytes fills the memory, or the stack.
JSON_BYTES, _BRACKETS, _DEPTH = 16_000_000, 20_000, 20
_TOML_BYTES, _TOML_DOTS = 300_000, 10_000
_WHOLE = 2**64
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    type(None): "nothing",
}


@contextlib.contextmanager
def in_file(path: object) -> Iterator[None]:
    """Name the file in every refusal of what it says."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_text(path: Path, kind: str, most: int) -> str:
    """The text of a file.

    Args:
        path: the file.
        kind: JSON or TOML, for messages.
        most: how many bytes it may have.

    Raises:
        InputError: no such file, one that cannot be read, a longer one, or one that is no text.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(most + 1)
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid {kind}: {error}") from None
    if len(content) > most:
        raise InputError(f"{path} is no {kind} of a record: it has more than {most:,} bytes")
    return text


def parse_json(text: str, where: object) -> dict[str, Any]:
    """The object that a JSON text is.

    Args:
        text: the text.
        where: what it is of, for messages.

    Raises:
        InputError: it is no JSON, no object, nested in more than 20 levels, says a key twice, or
            has a whole number of more than 64 bits.
    """
    if text.count("[") + text.count("{") > _BRACKETS:
        raise InputError(f"{where} is no record: it has more than {_BRACKETS:,} brackets")
    try:
        value = json.loads(text, object_pairs_hook=_once)
        _check_plain(value)
    except RecursionError:
        raise InputError(f"{where} is no record: its brackets never end") from None
    except InputError as error:
        raise InputError(f"{where} {error}") from None
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise InputError(f"says {quoted(key)} twice")
        values[key] = value
    return values


def _check_plain(value: object, depth: int = 0) -> None:
    """Refuse what no later use of the values could bear: depth, and numbers without end."""
    if depth > _DEPTH:
        raise InputError(f"is nested in more than {_DEPTH} levels")
    if isinstance(value, int) and abs(value) >= _WHOLE:
        raise InputError("has a whole number of more than 64 bits")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _check_plain(part, depth + 1)


def record(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """A dataclass out of plain values, each of which has the type of its field.

    Args:
        kind: the dataclass. Its fields are of bool, int, float, str, None, lists (which become
            tuples where the field is one), mappings, other such dataclasses, and unions of them.
        values: by the names of the fields; those that have a default may be absent.

    Raises:
        InputError: an unknown key, one that is missing, or a value of another type.

    Example:
        >>> Size = dataclasses.make_dataclass("Size", [("width", int), ("name", str, "none")])
        >>> record(Size, {"width": 3})
        Size(width=3, name='none')
    """
    hints, fields = _hints(kind), {f.name: f for f in dataclasses.fields(kind) if f.init}  # pyright: ignore[reportArgumentType]
    for key in values:
        if key not in fields:
            raise _unknown_key(str(key), fields)
    for name, field in fields.items():
        absent = field.default is dataclasses.MISSING
        if absent and field.default_factory is dataclasses.MISSING and name not in values:
            raise InputError(f"{name} is missing")
    return kind(**{key: checked(key, value, hints[key]) for key, value in values.items()})


def _unknown_key(key: str, known: Iterable[str]) -> InputError:
    near = difflib.get_close_matches(key[:LONGEST], known, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown key {quoted(key)}{hint}")


def check_fields(made: object) -> None:
    """Refuse a dataclass one of whose fields has a value of another type than it says.

    Raises:
        InputError: the field is named.
    """
    hints = _hints(type(made))
    for field in dataclasses.fields(made):  # pyright: ignore[reportArgumentType]
        checked(field.name, getattr(made, field.name), hints[field.name])


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def checked(name: str, value: Any, hint: Any) -> Any:
    """A value of a type; lists become tuples where the type is one.

    Args:
        name: what messages call it.
        value: a plain value.
        hint: the type; see :func:`record`.

    Raises:
        InputError: it is of another.
    """
    parts, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        for part in parts:
            with contextlib.suppress(InputError):
                return checked(name, value, part)
    elif origin is Literal:
        if any(value == part and type(value) is type(part) for part in parts):
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        return tuple(checked(f"{name}[{i}]", part, parts[0]) for i, part in enumerate(value))
    elif origin is list and isinstance(value, list):
        return [checked(f"{name}[{i}]", part, parts[0]) for i, part in enumerate(value)]
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return {k: checked(f"{name}.{k}", part, parts[1]) for k, part in value.items()}
    elif dataclasses.is_dataclass(hint):
        if type(value) is hint:
            return value
        if isinstance(value, Mapping):
            with in_file(name):
                return record(hint, value)  # pyright: ignore[reportArgumentType]
    elif hint is Any or _is(value, hint):
        return value
    raise InputError(f"{name} must be {_said(hint)}, not {quoted(value)}")


def _is(value: object, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)  # pyright: ignore[reportArgumentType]
    return type(value) is kind


def _said(hint: Any) -> str:
    """A type, in words."""
    parts, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_said(part) for part in parts if part is not type(None))
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin in (tuple, list):
        return f"a list whose parts are {_said(parts[0])}"
    return _KINDS.get(hint, "an object")


def read_toml(path: Path, known: Sequence[str]) -> dict[str, Value]:
    """Read a flat TOML file.

    Args:
        path: the file.
        known: the keys that may stand in it.

    Raises:
        InputError: no such file, not TOML, a key that is not known (the nearest is offered), or a
            value that is no truth, number, text or list of them.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    text = read_text(path, "TOML", _TOML_BYTES)
    if text.count(".") > _TOML_DOTS:  # a key of n parts takes n² steps
        raise InputError(f"{path} is no record: it has {text.count('.'):,} dots")
    try:
        values = tomllib.loads(text)
        _check_plain(values)
    except RecursionError:
        raise InputError(f"{path} is no record: its brackets never end") from None
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    for key, value in values.items():
        if key not in known:
            raise InputError(f"{path}: {_unknown_key(key, known)}")
        if not _is_value(value):
            raise InputError(f"{path}: {quoted(key)} must be a plain value, not a table or a date")
    return values


def _is_value(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_value, value))
    return isinstance(value, bool | int | float | str)


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
