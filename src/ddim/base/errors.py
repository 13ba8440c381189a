"""The two ways in which a call fails, and the sentence that says so."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "RunError", "unknown"]


class InputError(ValueError):
    """What was asked for cannot be done as asked; the command exits with 2."""


class RunError(RuntimeError):
    """What was asked for was right and failed all the same; the command exits with 1."""


def unknown(noun: str, name: str, choices: Iterable[str]) -> InputError:
    """The error for a name that is not known, with the nearest one that is.

    Example:
        >>> print(unknown("method", "dimm", ["ddim", "ddpm"]))
        unknown method 'dimm': did you mean 'ddim'? (choices: ddim, ddpm)
    """
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {noun} {name!r}{hint} (choices: {', '.join(choices)})")
