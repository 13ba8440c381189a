"""The registry of methods. Each is declared once, by ``@method``, where it is written."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

from ddim.base.display import Named, shown
from ddim.base.errors import InputError, quoted, unknown
from ddim.samplers.tableau import Tableau

__all__ = ["METHODS", "Method", "Option", "method"]

Builder = TypeVar("Builder", bound=Callable[..., Tableau])


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a method.

    Attributes:
        name: the keyword of the builder.
        default: its value where none is given.
        kind: the type of its values; ``list`` for numbers or lists of numbers.
        choices: the values that there are; empty where any of the kind will do.
    """

    name: str
    default: object
    kind: type
    choices: tuple[object, ...] = ()

    def value(self, method: str, given: object) -> object:
        """A value, or the text of one, as the builder takes it.

        Raises:
            InputError: it is of another kind, or not among the choices.
        """
        if self.choices:
            for choice in self.choices:
                if str(given) == str(choice) or given == choice:
                    return choice
            if self.name == "order":
                raise InputError(
                    f"{method} has the orders {self.choices[0]} to {self.choices[-1]}, "
                    f"not {given!s:.200}"
                )
            raise unknown(self.name, str(given), map(str, self.choices))
        if self.kind is bool:
            return _truth(self.name, given)
        if self.kind in (int, float):
            return _number(self.name, given, self.kind)
        if self.kind is list:
            return _numbers(self.name, given)
        return str(given)


@shown
@dataclasses.dataclass(frozen=True)
class Method:
    """A method as it was declared.

    Attributes:
        name: what it is called everywhere.
        build: the builder, ``(schedule, nodes, *, options) -> Tableau``.
        orders: its orders of convergence in the lab of :mod:`ddim.samplers.order`, by the options
            that give them, such as ``{"order=3": 3}``; empty for a method that draws noise.
        needs: what it takes of a model: the name of an option that the model's calibration fills
            in, or ``calibration`` for a whole sampler; None for a method that a schedule suffices.
        program: the program whose steps it repeats; None for a method of the literature.
    """

    name: str
    build: Callable[..., Tableau]
    orders: Mapping[str, int] = dataclasses.field(default_factory=dict)
    needs: str | None = None
    program: str | None = None

    def _facts(self) -> dict[str, object]:
        orders = ", ".join(f"{v} ({k})" if k else str(v) for k, v in self.orders.items())
        facts = {"name": self.name, "options": ", ".join(self.options), "orders": orders}
        return {**facts, "needs": self.needs, "what": self.summary}

    @functools.cached_property
    def options(self) -> dict[str, Option]:
        """Its options: the keywords of its builder."""
        parameters = inspect.signature(self.build).parameters.values()
        own = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        for parameter in own:
            if parameter.default is parameter.empty or parameter.name in ("steps", "nodes"):
                raise InputError(
                    f"{self.name}: an option has a default and another name than steps or nodes: "
                    f"{parameter.name}"
                )
        hints = _hints(self.build, [p.name for p in own])
        return {p.name: _option(p.name, p.default, hints.get(p.name)) for p in own}

    @property
    def summary(self) -> str:
        """The first sentence of the builder's docstring."""
        return (inspect.getdoc(self.build) or "").partition("\n")[0]


METHODS: dict[str, Method] = Named()
"""Methods by name, as far as they have been declared."""


def method(
    name: str,
    *,
    orders: Mapping[str, int] | None = None,
    needs: str | None = None,
    program: str | None = None,
) -> Callable[[Builder], Builder]:
    """Declare a method: ``@method("dpmpp", orders={"order=3": 3})`` over its builder.

    The builder takes the schedule, the nodes and, by keyword, its options. An option's type is its
    annotation; ``Literal`` lists the values that there are.

    Args:
        name: what it is called everywhere.
        orders: see :class:`Method`.
        needs: see :class:`Method`.
        program: see :class:`Method`.

    Raises:
        InputError: another method has that name.
    """

    def declare(build: Builder) -> Builder:
        there = METHODS.get(name)
        if there is not None and _place(there.build) != _place(build):
            raise InputError(f"there is a method {quoted(name)} already: give yours another name")
        METHODS[name] = Method(name, build, dict(orders or {}), needs, program)
        return build

    return declare


def _place(build: Callable[..., Tableau]) -> tuple[str | None, str]:
    """Where a builder is written: declared again from there, it replaces itself."""
    return inspect.getsourcefile(build), build.__qualname__


def _hints(build: Callable[..., Tableau], names: Sequence[str]) -> dict[str, object]:
    """The types of some parameters; of others they may be imported for type checking alone."""
    written = {k: v for k, v in inspect.get_annotations(build).items() if k in names}
    holder = types.SimpleNamespace(__annotations__=written)
    try:
        return typing.get_type_hints(holder, getattr(build, "__globals__", {}))
    except NameError as error:
        raise InputError(f"the type of an option cannot be told: {error}") from None


def _option(name: str, default: object, hint: object) -> Option:
    hint = type(default) if hint is None else hint
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in parts if part is not type(None))
        parts = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return Option(name, default, type(parts[0]), parts)
    kind = hint if hint in (bool, int, float, str) else list
    return Option(name, default, typing.cast(type, kind))


def _truth(name: str, given: object) -> bool:
    if str(given).lower() not in ("true", "false"):
        raise InputError(f"{name} is true or false, not {quoted(given)}")
    return str(given).lower() == "true"


def _number(name: str, given: object, kind: type) -> float:
    try:
        number = float(given)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise InputError(f"{name} is a number, not {quoted(given)}") from None
    if not math.isfinite(number) or isinstance(given, bool):
        raise InputError(f"{name} must be a finite number, not {quoted(given)}")
    if kind is int and number != int(number):
        raise InputError(f"{name} is a whole number, not {quoted(given)}")
    return kind(number)


def _numbers(name: str, given: object) -> tuple[object, ...]:
    """Numbers, or lists of numbers, as tuples; from text in JSON's form too."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise InputError(f"{name} is a list such as [[],[0.1]], not {quoted(given)}") from None
    if not isinstance(given, Iterable):
        raise InputError(f"{name} is a list of numbers, not {quoted(given)}")
    return tuple(
        _numbers(name, part) if isinstance(part, Sequence) else _number(name, part, float)
        for part in given
    )
