"""Samplers: each a function ``(schedule, nodes, *, options) -> Tableau`` and a line here.

To add one, write the function and name it in :data:`METHODS`; everything else (the loop, seeding,
progress, inspection, the command's options, the tests of consistency) comes with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

from ddim.base.errors import InputError, unknown
from ddim.noise.nodes import Nodes, check_nodes
from ddim.noise.schedule import Schedule
from ddim.samplers.methods.ddim import ddim, ddpm
from ddim.samplers.methods.foreign import COMPAT_METHODS
from ddim.samplers.methods.multistep import deis, dpmpp, gradient_estimation, plms, sde_dpmpp
from ddim.samplers.methods.reversible import bdia, edict, obelm
from ddim.samplers.methods.singlestep import dpm2, dpm3, heun, probability_flow, restart
from ddim.samplers.methods.unipc import unipc
from ddim.samplers.tableau import Tableau

__all__ = ["METHODS", "check_option", "default_options", "make_tableau"]

METHODS: dict[str, Callable[..., Tableau]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "pf-euler": probability_flow,
    "gradient-estimation": gradient_estimation,
    "plms": plms,
    "deis": deis,
    "heun": heun,
    "dpm-solver-2": dpm2,
    "dpm-solver-3": dpm3,
    "dpmpp": dpmpp,
    "sde-dpmpp": sde_dpmpp,
    "unipc": unipc,
    "restart": restart,
    "obelm": obelm,
    "bdia": bdia,
    "edict": edict,
}
"""Builders by name."""


def make_tableau(
    schedule: Schedule, nodes: Nodes, method: str = "ddim", **options: object
) -> Tableau:
    """The tableau of a method by name.

    Args:
        schedule: the noise schedule.
        nodes: as :func:`ddim.make_nodes` returns them.
        method: a key of :data:`METHODS`, or of :data:`ddim.samplers.methods.foreign.COMPAT_METHODS`.
        options: the builder's own, such as ``eta``.

    Raises:
        InputError: unknown method, or an option that it does not have.

    Example:
        >>> schedule = Schedule.linear(10)
        >>> make_tableau(schedule, (10, 5, 0), "ddim", eta=0.5).calls
        2
    """
    nodes = check_nodes(schedule, nodes)
    accepted = default_options(method)
    for name in options:
        check_option(method, name, accepted)
    return _builders()[method](schedule, nodes, **options)


def default_options(method: str) -> dict[str, object]:
    """A method's own options, with their values where they are not given.

    Raises:
        InputError: unknown method.

    Example:
        >>> default_options("dpmpp")
        {'order': 2, 'form': 'exact'}
    """
    builders = _builders()
    if method not in builders:
        raise unknown("method", method, builders)
    return {
        name: parameter.default
        for name, parameter in inspect.signature(builders[method]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def check_option(method: str, name: str, accepted: Iterable[str]) -> None:
    """Refuse an option that a method does not have.

    Raises:
        InputError: it is none of the accepted ones, which are named.
    """
    accepted = list(accepted)
    if name not in accepted:
        has = f"it has {', '.join(accepted)}" if accepted else "it has none"
        raise InputError(f"method {method!r} has no option {name!r}: {has}")


def _builders() -> dict[str, Callable[..., Tableau]]:
    return {**METHODS, **COMPAT_METHODS}
