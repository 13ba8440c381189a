"""The two ways in which a call fails, and the sentence that says so."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["LONGEST", "InputError", "RunError", "quoted", "unknown"]

LONGEST = 200
"""Characters of a value in a message: what stands in a file can have a million."""
_MESSAGE = 1000
_WORD = re.compile(rf"\S{{{LONGEST + 1},}}")


class InputError(ValueError):
    """What was asked for cannot be done as asked; the command exits with 2.

    Long words, such as paths, are cut in the middle, and so are messages of more than 1,000
    characters, in which another library's quotes a value. Texts and lists are for :func:`quoted`.
    """

    def __init__(self, message: str) -> None:
        words = _WORD.sub(lambda word: _cut(word[0], LONGEST), _line(message))
        super().__init__(_cut(words, _MESSAGE))


class RunError(RuntimeError):
    """What was asked for was right and failed all the same; the command exits with 1."""


def quoted(value: object) -> str:
    """The ``repr`` of a value for a message: one line, at most 200 characters of it.

    Example:
        >>> quoted("ddim"), len(quoted(list(range(1000))))
        ("'ddim'", 200)
    """
    return _cut(_line(repr(value)), LONGEST)


def _line(text: str) -> str:
    """Arrays, tensors and other libraries' errors have several."""
    return re.sub(r"\s*\n\s*", " ", text)


def _cut(text: str, most: int) -> str:
    """The beginning and the end, which closes a quotation and names the file of a path."""
    return text if len(text) <= most else f"{text[: most - 61]}…{text[-60:]}"


def unknown(noun: str, name: str, choices: Iterable[str]) -> InputError:
    """The error for a name that is not known, with the nearest one that is.

    Example:
        >>> print(unknown("method", "dimm", ["ddim", "ddpm"]))
        unknown method 'dimm': did you mean 'ddim'? (choices: ddim, ddpm)
    """
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {noun} {quoted(name)}{hint} (choices: {', '.join(choices)})")
