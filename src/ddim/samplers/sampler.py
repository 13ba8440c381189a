"""A sampler by name: method, nodes, steps and options, checked here and nowhere else."""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ddim.base.code import is_named, load_named
from ddim.base.display import facts_table
from ddim.base.errors import InputError, quoted
from ddim.noise.nodes import Nodes, make_nodes, read_nodes, start_at
from ddim.noise.schedule import Schedule
from ddim.samplers.lookup import check_option, find_method, method_names
from ddim.samplers.registry import Method
from ddim.samplers.tableau import Tableau

__all__ = ["DEFAULT_STEPS", "Sampler", "find_method", "make_tableau", "method_names"]

DEFAULT_STEPS = 50
"""Steps where neither a number nor a list of nodes is given; T where T is smaller."""


@dataclasses.dataclass(frozen=True, init=False)
class Sampler:
    """What is to be run: a method on nodes, with its options.

    Two samplers are equal that run the same: an option that has its default value is not kept.
    ``str(sampler)`` is its spelling, ``dpmpp:order=3:steps=10:nodes=quadratic``, from which
    :meth:`parse` makes it again.

    Attributes:
        method: its name; ``FILE.py:NAME`` for a builder of the user's.
        steps: S; None for 50, or T where T is smaller.
        nodes: a family's name, or the nodes themselves.
        settings: options other than the defaults, by name.
        said: which of steps, nodes and options were given, defaults among them.

    Raises:
        InputError: unknown names, values of another kind, fewer than one step, an order that so
            few steps do not reach, or a list of nodes that neither falls nor rises.

    Example:
        >>> str(Sampler("dpmpp", steps=10, order=3))
        'dpmpp:order=3:steps=10'
        >>> Sampler.parse("ddim:nodes=500-250-0").steps
        2
    """

    method: str
    steps: int | None
    nodes: str | Nodes
    settings: tuple[tuple[str, object], ...]
    said: frozenset[str] = dataclasses.field(compare=False)

    def __init__(
        self,
        method: str = "ddim",
        steps: int | None = None,
        nodes: str | Sequence[int] | None = None,
        **options: object,
    ) -> None:
        self._settle(method, steps, nodes, options)
        order = self.options["order"] if "order" in options else None
        if isinstance(order, int) and self.steps is not None and order > self.steps:
            raise InputError(
                f"order {order} takes at least {order} steps to be reached, not {self.steps}: give "
                "more steps or a lower order"
            )

    def _settle(
        self,
        method: str,
        steps: int | None,
        nodes: str | Sequence[int] | None,
        options: Mapping[str, object],
    ) -> None:
        if not isinstance(method, str):
            raise InputError(f"a method is a name such as 'ddim', not {method!r:.200}")
        entry = find_method(method)
        declared = entry.options
        values = {
            name: check_option(entry, method, name).value(method, given)
            for name, given in options.items()
        }
        listed = "uniform" if nodes is None else read_nodes(nodes)
        count = _count(steps)
        if not isinstance(listed, str):
            if count not in (None, len(listed) - 1):
                raise InputError(f"{len(listed)} nodes are {len(listed) - 1} steps, not {count}")
            count = len(listed) - 1
        kept = {k: v for k, v in values.items() if v != declared[k].default}
        given = {"steps": steps, "nodes": nodes, **options}
        settled = {
            "method": method,
            "steps": count,
            "nodes": listed,
            "settings": tuple(sorted(kept.items())),
            "said": frozenset(key for key, value in given.items() if value is not None),
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)
        if self.brings_nodes and nodes is not None:
            raise InputError(f"the method {method} brings its own nodes: give steps alone")

    @classmethod
    def parse(
        cls,
        text: str | Sampler,
        steps: int | None = None,
        nodes: str | Sequence[int] | None = None,
        **options: object,
    ) -> Sampler:
        """The sampler of a spelling: ``METHOD[:KEY=VALUE]…``, steps and nodes among the keys.

        Args:
            text: such as ``dpmpp:order=3:steps=10:nodes=500-250-0``, or a sampler.
            steps: as the key; both must agree where both are given. None is not given.
            nodes: as the key, in the same way.
            options: of the method, in the same way.

        Raises:
            InputError: as :class:`Sampler`, and for what contradicts.
        """
        given = {"steps": steps, "nodes": nodes, **options}
        given = {key: value for key, value in given.items() if value is not None}
        if isinstance(text, Sampler):
            if not given:
                return text
            method, parts = text.method, text._said()
        else:
            method, parts = _split(text)
        for key, value in parts.items():
            if key in given and cls._one(method, key, given[key]) != cls._one(method, key, value):
                raise InputError(
                    f"{quoted(str(text))} says {key} = {_text(value)}, which is not "
                    f"{_text(given[key])}"
                )
        return cls(method, **cast(dict[str, Any], {**given, **parts}))

    @staticmethod
    def _one(method: str, key: str, value: object) -> object:
        """A value in the form in which two of them compare."""
        if key == "steps":
            return _count(value)
        if key == "nodes":
            return read_nodes(cast("str | Sequence[int]", value))
        return check_option(find_method(method), method, key).value(method, value)

    def _said(self) -> dict[str, object]:
        """What was given, by name; a list of nodes has its own number of steps."""
        values = {**self.options, "nodes": self.nodes, "steps": self.steps}
        listed = not isinstance(self.nodes, str)
        return {key: values[key] for key in self.said if not (listed and key == "steps")}

    def _parts(self) -> dict[str, object]:
        parts: dict[str, object] = dict(self.settings)
        if not isinstance(self.nodes, str) or self.nodes != "uniform":
            parts["nodes"] = self.nodes
        if self.steps is not None and isinstance(self.nodes, str):
            parts["steps"] = self.steps
        return parts

    def __str__(self) -> str:
        parts = self._parts()
        order = [*dict(self.settings), "steps", "nodes"]
        return ":".join([self.method, *(f"{k}={_text(parts[k])}" for k in order if k in parts)])

    def __repr__(self) -> str:
        text = str(self)
        return text if len(text) <= 120 else f"{text[:80]}…{text[-30:]}"

    def _repr_html_(self) -> str:
        facts = {"method": self.method, "steps": self.steps, "nodes": self.nodes}
        known = {**facts, **self.options, "needs of the model": self.entry.needs}
        shown = {key: value for key, value in known.items() if value is not None}
        return facts_table("Sampler", {**shown, "written": repr(self)})

    @property
    def entry(self) -> Method:
        """The method's declaration."""
        return find_method(self.method)

    @property
    def brings_nodes(self) -> bool:
        """Whether its nodes are those that calibration found for a model."""
        needs = self.entry.needs
        return needs == "calibration" or (needs == "weights" and not self.settings)

    @property
    def options(self) -> dict[str, object]:
        """All of the method's options, the defaults among them."""
        defaults = {name: option.default for name, option in self.entry.options.items()}
        return {**defaults, **dict(self.settings)}

    @property
    def checksum(self) -> str | None:
        """SHA-256 of the file that a method of the user's is in; None for all others."""
        return load_named(self.method).checksum if is_named(self.method) else None

    def replace(self, **changes: object) -> Sampler:
        """The same with other steps, nodes or options.

        An order that fewer steps do not reach becomes the one that they do, which has the same
        rows.

        Raises:
            InputError: as :class:`Sampler`.
        """
        given = {**self._said(), **changes}
        nodes: Any = given.pop("nodes", None)
        if "nodes" in changes and not isinstance(read_nodes(nodes), str):
            given.pop("steps", None)
        steps: Any = given.pop("steps", None)
        made = object.__new__(Sampler)
        made._settle(self.method, steps, nodes, given)
        order = made.options.get("order")
        if isinstance(order, int) and made.steps is not None and order > made.steps:
            made._settle(self.method, steps, nodes, {**given, "order": made.steps})
        return made

    def place(self, schedule: Schedule) -> Nodes:
        """The nodes on a schedule, S + 1 of them; a family of another program's may have others.

        Raises:
            InputError: more than T steps, or nodes outside 0..T.
        """
        steps = self.steps
        if steps is None and isinstance(self.nodes, str):
            steps = min(DEFAULT_STEPS, schedule.T)
        return make_nodes(schedule, self.nodes, steps)

    def starting(self, strength: float | None, schedule: Schedule) -> Sampler:
        """The part that starts at the node nearest to strength · T; all of it for None.

        Raises:
            InputError: a strength outside (0, 1], nodes that rise, or a sampler that has its own.
        """
        if strength is None:
            return self
        if self.brings_nodes:
            raise InputError(
                "calibrated nodes lead from noise to an image: strength has no part in them"
            )
        nodes = self.place(schedule)
        return self.tail(nodes, nodes.index(start_at(nodes, strength, schedule.T)[0]))

    def tail(self, nodes: Nodes, first: int) -> Sampler:
        """The part of its nodes from the one of that index on.

        A method that reads the length of the list, for a stride or for the orders of few steps, is
        told that of the whole: its rows are then those of the whole once its history is full.
        """
        changes: dict[str, object] = {"nodes": nodes[first:]}
        if first and "of" in self.entry.options:
            changes["of"] = self.options["of"] or len(nodes) - 1
        return self.replace(**changes)

    def tableau(self, schedule: Schedule) -> Tableau:
        """The rows on a schedule.

        Raises:
            InputError: numbers that do not fit the schedule, or a method that needs a model:
                :meth:`ddim.Model.tableau` has its rows.
        """
        made = self.entry.build(schedule, self.place(schedule), **dict(self.settings))
        if not isinstance(made, Tableau):
            raise InputError(f"{self.method} returned a {type(made).__name__}, not a Tableau")
        return made


def make_tableau(
    schedule: Schedule, nodes: str | Sequence[int], method: str = "ddim", **options: object
) -> Tableau:
    """The rows of a method on nodes.

    Args:
        schedule: the noise schedule.
        nodes: as :func:`ddim.make_nodes` returns them, or a family's name.
        method: a name, with or without options, as :meth:`Sampler.parse` takes it.
        options: the method's own, such as ``eta``.

    Raises:
        InputError: as :class:`Sampler`.

    Example:
        >>> make_tableau(Schedule.linear(10), (10, 5, 0), "ddim", eta=0.5).calls
        2
    """
    said = Sampler.parse(method, None, None, **options)
    if said.said & {"steps", "nodes"}:
        said = Sampler.parse(said, None, nodes)
    return said.replace(nodes=nodes).tableau(schedule)


def _split(text: str) -> tuple[str, dict[str, object]]:
    """A spelling's method and the values of its keys, as text."""
    if not isinstance(text, str):
        raise InputError(
            f"a method is a name such as 'ddim', or a ddim.Sampler, not {quoted(text)}"
        )
    method, *rest = text.split(":")
    if method.endswith(".py") and rest and "=" not in rest[0]:
        method = f"{method}:{rest.pop(0)}"
    parts: dict[str, object] = {}
    for item in rest:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"an option of a method is KEY=VALUE, not {quoted(item)}")
        if key in parts or key == "method":
            raise InputError(f"{text} says {key} twice")
        parts[key] = value
    return method, parts


def _count(steps: object) -> int | None:
    """A number of steps, also as text or as a whole float."""
    if steps is None:
        return None
    try:
        count = int(steps) if isinstance(steps, str) else operator.index(_whole(steps))  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise InputError(f"steps is a whole number, not {quoted(steps)}") from None
    if count < 1:
        raise InputError(f"the number of steps must be at least 1, not {count}")
    return count


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: object) -> str:
    """A value as it is spelled."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        if value and all(isinstance(part, int) for part in value):
            return "-".join(map(str, value))
        return json.dumps(value, separators=(",", ":"))
    return str(value)
