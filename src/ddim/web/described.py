"""A model for the page: its schedule, and what samples and encodes with it."""

from __future__ import annotations

import contextlib
from typing import Any

from ddim.base.errors import InputError
from ddim.model.model import Model
from ddim.noise.nodes import NODES
from ddim.samplers.lookup import METHODS
from ddim.samplers.registry import Method
from ddim.samplers.sampler import DEFAULT_STEPS, Sampler
from ddim.web.asked import CODECS_SHOWN

__all__ = ["describe"]


def describe(model: Model) -> dict[str, Any]:
    """What the page is told."""
    return {
        "schedule": {
            "alpha": model.schedule.alpha.tolist(),
            "sigma": model.schedule.sigma.tolist(),
        },
        "methods": [_method(model, method) for method in METHODS.values()],
        "nodes": list(NODES),
        "codecs": list(CODECS_SHOWN),
        "defaults": {
            "method": "ddim",
            "steps": min(DEFAULT_STEPS, model.schedule.T),
            "nodes": "uniform",
            "eta": 0.0,
            "codec": "obelm",
            "codec_steps": min(20, model.schedule.T),
        },
    }


def _method(model: Model, method: Method) -> dict[str, Any]:
    options = method.options
    order = options.get("order")
    return {
        "name": method.name,
        "summary": method.summary,
        "eta": "eta" in options,
        "stochastic": _draws_noise(model, method),
        "orders": None if order is None or not order.choices else list(order.choices),
        "options": list(options),
        "needs": method.needs,
        "program": method.program,
    }


def _draws_noise(model: Model, method: Method) -> bool:
    """Whether it draws noise by itself, with its options as they are."""
    if method.needs is not None:
        return method.needs == "gamma"
    with contextlib.suppress(InputError):
        sampler = Sampler(method.name, min(4, model.schedule.T))
        return sampler.tableau(model.schedule).stochastic
    return False
