"""Samplers: each a function ``(schedule, nodes, *, options) -> Tableau`` and a line here.

To add one, write the function and name it in :data:`METHODS`; everything else (the loop, seeding,
progress, inspection, the command's options, the tests of consistency) comes with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from ddim.errors import InputError, unknown
from ddim.methods.compat import COMPAT_METHODS
from ddim.methods.ddim import ddim, ddpm
from ddim.methods.multistep import deis, dpmpp, gradient_estimation, plms, sde_dpmpp
from ddim.methods.reversible import bdia, edict, obelm
from ddim.methods.singlestep import dpm2, dpm3, heun, probability_flow, restart
from ddim.methods.unipc import unipc
from ddim.nodes import Nodes
from ddim.schedule import Schedule
from ddim.tableau import Tableau

__all__ = ["METHODS", "make_tableau"]

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
        method: a key of :data:`METHODS`, or of :data:`ddim.methods.compat.COMPAT_METHODS`.
        options: the builder's own, such as ``eta``.

    Raises:
        InputError: unknown method, or an option that it does not have.

    Example:
        >>> schedule = Schedule.linear(10)
        >>> make_tableau(schedule, (10, 5, 0), "ddim", eta=0.5).calls
        2
    """
    builders = {**METHODS, **COMPAT_METHODS}
    if method not in builders:
        raise unknown("method", method, builders)
    builder = builders[method]
    accepted = [
        name
        for name, parameter in inspect.signature(builder).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for name in options:
        if name not in accepted:
            has = f"it has {', '.join(accepted)}" if accepted else "it has none"
            raise InputError(f"method {method!r} has no option {name!r}: {has}")
    return builder(schedule, nodes, **options)
