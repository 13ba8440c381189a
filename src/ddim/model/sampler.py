"""Samplers of a model by name: what its schedule gives, and what calibration found for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ddim.base.errors import InputError
from ddim.checkpoints.calibration import CalibrationFile, read_calibration
from ddim.model.model import Model
from ddim.noise.nodes import Nodes, make_nodes, start_at
from ddim.samplers.registry import check_option, default_options, make_tableau
from ddim.samplers.tableau import Tableau

__all__ = ["calibration_of", "make_sampler", "method_options"]


def calibration_of(model: Model) -> CalibrationFile:
    """What calibration found for a model.

    Raises:
        InputError: nothing yet, or what was found for other weights, another schedule or target.
    """
    path = model.calibration
    if path is None or not path.exists():
        raise InputError(
            f"{model.name} has no calibration: `ddim calibrate MODEL --calls N` makes one"
        )
    found = read_calibration(path)
    if found.identity != model.identity:
        raise InputError(
            f"{path} is stale, of other weights, another schedule or another target: "
            "calibrate again"
        )
    return found


def method_options(method: str, items: Sequence[str]) -> dict[str, Any]:
    """Options written KEY=VALUE, as the types of the method's own.

    Args:
        method: as for :func:`make_sampler`.
        items: such as ``order=3``.

    Raises:
        InputError: unknown method, an option that it does not have, or a value of another type.

    Example:
        >>> method_options("dpmpp", ["order=3"])
        {'order': 3}
    """
    defaults = {"eta": 1.0} if method == "analytic" else default_options(method)
    options: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise InputError(f"an option of a method is KEY=VALUE, not {item!r}")
        check_option(method, key, defaults)
        options[key] = _value(key, text, defaults[key])
    return options


def _value(key: str, text: str, default: object) -> object:
    """The text as the type of the option's default."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise InputError(f"{key} is true or false, not {text!r}")
        return text.lower() == "true"
    if isinstance(default, (int, float)):
        try:
            return type(default)(text)
        except ValueError:
            raise InputError(f"{key} is a number, not {text!r}") from None
    return text


def make_sampler(
    model: Model,
    nodes: str | Sequence[int] = "uniform",
    steps: int | None = None,
    method: str = "ddim",
    *,
    strength: float | None = None,
    **options: object,
) -> tuple[Nodes, Tableau]:
    """The nodes and the tableau of a sampler for a model.

    Args:
        model: the model.
        nodes: a family's name, the nodes themselves, or ``calibrated``: those found for this model
            and so many steps, which come with their method.
        steps: S; T if None, or the length of a list.
        method: a key of :data:`ddim.METHODS`, or ``analytic``: DDIM with the variance that is
            optimal for this model, as its calibration measured it (Bao et al. 2022,
            https://arxiv.org/abs/2201.06503); its η is 1 unless given.
        strength: take only the part of the nodes that starts nearest to strength · T.
        options: the method's own, such as ``eta``.

    Raises:
        InputError: unknown names, numbers out of range, a calibration that is not there.

    Example:
        >>> from ddim.loading import load
        >>> make_sampler(load("mnist"), "uniform", 4)[0]
        (500, 375, 250, 125, 0)
    """
    if isinstance(nodes, str) and nodes == "calibrated":
        if strength is not None:
            raise InputError("calibrated nodes lead from noise to an image: strength has no part")
        return _calibrated(model, steps, method, options)
    listed = make_nodes(model.schedule, nodes, steps)
    taken = listed if strength is None else start_at(listed, strength, model.schedule.T)
    if method == "analytic":
        return listed, _analytic(model, taken, **options)
    return listed, make_tableau(model.schedule, taken, method, **options)


def _calibrated(
    model: Model, steps: int | None, method: str, options: Mapping[str, object]
) -> tuple[Nodes, Tableau]:
    known = calibration_of(model).samplers
    found = None if steps is None else known.get(steps)
    if found is None:
        counts = ", ".join(map(str, sorted(known)))
        raise InputError(f"{model.name} is calibrated for {counts} steps, not for {steps}")
    if method not in ("ddim", found.method) or options:
        raise InputError(
            f"calibrated nodes come with their own method, here {found.method}: give the nodes as "
            "a list to use another"
        )
    tableau = found.tableau(model.schedule)
    return found.nodes, dataclasses.replace(tableau, method=f"calibrated {found.method}")


def _analytic(model: Model, nodes: Nodes, **options: object) -> Tableau:
    from ddim.samplers.methods.analytic import analytic_tableau

    for name in options:
        check_option("analytic", name, ["eta"])
    gamma = calibration_of(model).gamma(model.schedule, nodes)
    eta = float(options.get("eta", 1.0))  # pyright: ignore[reportArgumentType]
    return analytic_tableau(model.schedule, nodes, gamma, eta=eta)
