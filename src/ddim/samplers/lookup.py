"""Methods by name: built in, of an installed package, or in a file of the user's."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import re
from collections.abc import Callable, Mapping
from typing import cast

from ddim.base.code import is_named, load_named
from ddim.base.errors import InputError, quoted
from ddim.samplers.methods import (  # noqa: F401  # each declares its methods
    analytic,
    ddim,
    foreign,
    learned,
    multistep,
    reversible,
    singlestep,
    unipc,
)
from ddim.samplers.registry import METHODS, Method, Option
from ddim.samplers.tableau import Tableau

__all__ = ["METHODS", "check_option", "find_method", "method_names"]

GROUP = "ddim.methods"
"""The entry points by which an installed package brings methods."""
ELSEWHERE = {
    "euler": "ddim",
    "euler-ancestral": "ddpm",
    "euler-a": "ddpm",
    "ancestral": "ddpm",
    "dpm++": "dpmpp",
    "dpm++-2m": "dpmpp",
    "dpmpp-2m": "dpmpp",
    "dpm++-3m": "dpmpp:order=3",
    "dpmpp-3m": "dpmpp:order=3",
    "dpm++-2m-sde": "sde-dpmpp",
    "dpmpp-2m-sde": "sde-dpmpp",
    "dpm++-sde": "sde-dpmpp",
    "dpm-solver++": "dpmpp",
    "dpm-solver": "dpm-solver-2",
    "dpm-2": "dpm-solver-2",
    "dpm-3": "dpm-solver-3",
    "ge": "gradient-estimation",
    "ipndm": "plms",
    "pndm": "plms",
    "lms": "plms",
    "analytic-dpm": "analytic",
}
"""What other programs call methods that are here."""


def method_names() -> list[str]:
    """All names that a method may be asked for by, those of installed packages last."""
    return [*METHODS, *sorted(_installed().keys() - METHODS.keys())]


def find_method(name: str) -> Method:
    """The declaration of a method.

    Args:
        name: of a built-in method, of one that the user declared, of one that an installed package
            brings under the entry points ``ddim.methods``, or ``FILE.py:NAME``.

    Raises:
        InputError: there is none; the nearest is offered.
    """
    if name in METHODS:
        return METHODS[name]
    if is_named(name):
        return _own(name, load_named(name).value)
    if name in _installed():
        return _own(name, _installed()[name].load())
    raise _unknown_method(name)


def check_option(entry: Method, method: str, name: str) -> Option:
    """An option of a method.

    Raises:
        InputError: the method has none of that name; those that it has are named.
    """
    if name not in entry.options:
        has = f"it has {', '.join(entry.options)}" if entry.options else "it has none"
        raise InputError(f"method {quoted(method)} has no option {quoted(name)}: {has}")
    return entry.options[name]


@functools.cache
def _installed() -> Mapping[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def _own(name: str, build: object) -> Method:
    """The declaration of a builder that is not built in."""
    if isinstance(build, Method):
        return build
    if not callable(build):
        raise InputError(
            f"{name} is a {type(build).__name__}, and not a function (schedule, nodes, *, options) "
            "that builds a Tableau"
        )
    for entry in METHODS.values():
        if entry.build is build:
            return entry
    return Method(name, cast(Callable[..., Tableau], build))


def _unknown_method(name: str) -> InputError:
    """The error for a method that is not known: by what other programs call it, or the nearest."""
    if name.endswith(".py"):
        return InputError(f"{name} is a file: name the method in it, as in {name}:NAME")
    file, found, function = name.rpartition(".py:")
    if found:
        return InputError(
            f"{quoted(function)} is no function of {file}.py: give the function's name, not the "
            f"one that it is declared under, as in {file}.py:NAME"
        )
    names = method_names()
    plain = re.sub(r"[_ ]+", "-", name.lower())
    stem, digits = re.fullmatch(r"(.*?)-?(\d?)", plain).groups()  # pyright: ignore[reportOptionalMemberAccess]
    meant = plain if plain in names else ELSEWHERE.get(plain)
    if meant is None and digits and (stem in names or stem in ELSEWHERE):
        meant = ELSEWHERE.get(stem, stem)
        option = find_method(meant).options.get("order") if meant in names else None
        meant += f":order={digits}" if option is not None and int(digits) in option.choices else ""
    if meant is None:
        near = difflib.get_close_matches(plain, [*names, *ELSEWHERE], n=1, cutoff=0.5)
        meant = ELSEWHERE.get(near[0], near[0]) if near else None
    hint = f": did you mean {meant!r}?" if meant else ""
    return InputError(f"unknown method {quoted(name)}{hint} (choices: {', '.join(names)})")
