"""The samplers of a sweep: every combination of methods, steps, η and nodes that there is."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence

from ddim.base.errors import InputError, quoted
from ddim.model.model import Model
from ddim.samplers.sampler import DEFAULT_STEPS, Sampler

__all__ = [
    "SIGMA_HAT",
    "eta_of",
    "folder_name",
    "left_out",
    "name_of",
    "nodes_of",
    "plan_samplers",
    "rank",
]

SIGMA_HAT = "sigma-hat"
_LARGE = {"variance": "large"}
_LONGEST = 100
"""Of a folder's name: a list of nodes or of weights may be longer than a name can be."""


def plan_samplers(
    model: Model,
    methods: Sequence[str] = ("ddim",),
    steps: Sequence[int] = (),
    nodes: Sequence[str | Sequence[int]] = (),
    etas: Sequence[float | str] = (),
) -> list[Sampler]:
    """Every combination that there is, each once.

    What a method says itself, as ``ddim:eta=1:steps=20`` does, stands for it alone. η is of DDIM,
    and of ``analytic`` where it is a number above 0. Step counts above T are capped at T; a list of
    nodes has its own. Of calibrated samplers those are taken that the model is calibrated for.

    Args:
        model: the model.
        methods: as :meth:`ddim.Sampler.parse` takes them.
        steps: S; 50, or T where it is smaller, if there are none.
        nodes: families or lists; uniform if there are none.
        etas: η, or ``sigma-hat`` for DDPM's larger variance, which keeps the direction of η = 1;
            the method's own if there are none.

    Returns:
        each with a number of steps.

    Raises:
        InputError: a sampler that cannot be made; nothing to do.
    """
    for family in nodes:
        if isinstance(family, str) and family.strip().isdigit():
            raise InputError(
                f"nodes here are families or lists, each list like 500-250-0, not {quoted(family)}"
            )
    counts = list(dict.fromkeys(min(s, model.schedule.T) for s in steps))
    each = counts or [min(DEFAULT_STEPS, model.schedule.T)]
    found: list[Sampler] = []
    for text in methods:
        said = Sampler.parse(text)
        if said.brings_nodes:
            found += _calibrated(model, said, counts)
            continue
        fixed = "nodes" in said.said
        families = [None] if fixed else nodes or [None]
        for family, eta in itertools.product(families, _etas_of(said, etas)):
            placed = _with_eta(said if family is None else said.replace(nodes=family), eta)
            own = placed.steps is not None
            found += [placed] if own else [placed.replace(steps=s) for s in each]
    samplers = list(dict.fromkeys(found))
    if not samplers:
        raise InputError("there is no sampler to run: give steps, methods and nodes")
    for sampler in samplers:
        model.tableau(sampler)
    return samplers


def left_out(
    samplers: Sequence[Sampler], methods: Sequence[str], steps: Sequence[int]
) -> list[str]:
    """A note on step counts that a model is not calibrated for, if there are any.

    Args:
        samplers: as :func:`plan_samplers` returned them.
        methods: what it was given.
        steps: what :func:`plan_samplers` was given.
    """
    asked = [Sampler.parse(text) for text in methods]
    if not any(said.brings_nodes and said.steps is None for said in asked):
        return []
    there = {sampler.steps for sampler in samplers if sampler.brings_nodes}
    missing = ", ".join(str(s) for s in dict.fromkeys(steps) if s not in there)
    return [f"The model is not calibrated for {missing} steps."] if missing else []


def _calibrated(model: Model, said: Sampler, counts: Sequence[int]) -> list[Sampler]:
    known = model.calibrated().samplers
    asked = [said.steps] if said.steps is not None else counts or sorted(known)
    if known.keys().isdisjoint(asked):
        there, wanted = (", ".join(map(str, v)) for v in (sorted(known), asked))
        raise InputError(f"{model.name} is calibrated for {there} steps, not {wanted}")
    return [said.replace(steps=s) for s in asked if s in known]


def _etas_of(said: Sampler, etas: Sequence[float | str]) -> Sequence[float | str | None]:
    """The values of η that make a sampler another one."""
    if "eta" in said.said:
        return [None]
    if said.method == "ddim":
        return etas or [None]
    if said.method == "analytic":
        # At η = 0 it is DDIM, and σ̂ is another variance than the optimal one.
        return [eta for eta in etas if eta not in (0, SIGMA_HAT)] or [None]
    return [None]


def _with_eta(sampler: Sampler, eta: float | str | None) -> Sampler:
    if eta is None:
        return sampler
    if eta == SIGMA_HAT:
        return Sampler("ddpm", sampler.steps, sampler.nodes, variance="large")
    return sampler.replace(eta=eta)


def eta_of(sampler: Sampler) -> float | str | None:
    """η of a sampler as the paper's table 1 has it, σ̂ among them; None where there is none."""
    if _is_sigma_hat(sampler):
        return SIGMA_HAT
    eta = sampler.options.get("eta")
    return float(eta) if isinstance(eta, int | float) else None


def name_of(sampler: Sampler) -> str:
    """The method and its options but η, steps and nodes, for tables that have these apart."""
    if _is_sigma_hat(sampler):
        return "ddim"
    settings = {k: v for k, v in sampler.settings if k != "eta"}
    return str(Sampler(sampler.method, **settings))  # pyright: ignore[reportArgumentType]


def nodes_of(sampler: Sampler) -> str:
    """The nodes, for the same tables: a family's name, a list like 500-250-0, or calibrated."""
    if sampler.brings_nodes:
        return "calibrated"
    return sampler.nodes if isinstance(sampler.nodes, str) else "-".join(map(str, sampler.nodes))


def folder_name(sampler: Sampler) -> str:
    """The sampler as the name of a folder."""
    name = "".join(c if c.isalnum() or c in "-.=" else "_" for c in str(sampler))
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(str(sampler).encode()).hexdigest()[:12]}"


def rank(sampler: Sampler) -> tuple[object, ...]:
    """What samplers are sorted by: DDIM first, then method, nodes, η (σ̂ last) and steps."""
    eta = {None: -1.0, SIGMA_HAT: math.inf}.get(eta_of(sampler), eta_of(sampler))
    name = name_of(sampler)
    return name != "ddim", name, nodes_of(sampler), eta, sampler.steps or 0


def _is_sigma_hat(sampler: Sampler) -> bool:
    return sampler.method == "ddpm" and dict(sampler.settings) == _LARGE
