"""A sampler as a ``scheduler_config.json``, as far as diffusers can follow it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ddim.base.errors import InputError
from ddim.checkpoints.scheduler import scheduler_config
from ddim.model.model import Model
from ddim.noise.foreign import COMPAT_NODES
from ddim.noise.nodes import Nodes, check_nodes
from ddim.samplers.registry import make_tableau

__all__ = ["Export", "export_scheduler"]

_NOISE = (
    "_diffusers_version",
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "steps_offset",
    "timestep_spacing",
    "rescale_betas_zero_snr",
)
_THRESHOLD = ("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
_CLIP = ("clip_sample", "clip_sample_range")


@dataclasses.dataclass(frozen=True)
class Export:
    """What diffusers is given.

    Attributes:
        config: of the scheduler that comes nearest.
        timesteps: t = k - 1 of the nodes, falling, for ``set_timesteps(timesteps=…)``.
        warnings: what diffusers does not follow, a sentence each; empty where the configuration and
            the number of steps say everything.
    """

    config: dict[str, Any]
    timesteps: tuple[int, ...]
    warnings: tuple[str, ...]


def export_scheduler(
    model: Model,
    nodes: Nodes,
    method: str = "ddim",
    options: Mapping[str, object] | None = None,
) -> Export:
    """The scheduler of diffusers that does what a sampler does, or what comes nearest.

    No scheduler there reads its nodes from its configuration. A grid that it knows by name
    (``trailing``) is followed by the number of steps alone; for others DPMSolverMultistepScheduler,
    which at order 1 is DDIM, and DDPMScheduler take ``set_timesteps(timesteps=…)``.

    Args:
        model: the model.
        nodes: falling, to 0.
        method: ``ddim`` (η = 0), ``ddpm``, ``dpmpp``, ``unipc``, or ``learned``, whose weights are
            left out.
        options: of the method.

    Raises:
        InputError: a method that diffusers has not, nodes that do not end at 0, or a model that it
            cannot express; for the first :func:`ddim.diffusers_scheduler` runs it there all the
            same.
    """
    options = dict(options or {})
    schedule = model.schedule
    check_nodes(schedule, nodes)
    if nodes[-1] != 0 or nodes[0] < nodes[-1]:
        raise InputError("what is exported falls to node 0, the data")
    base = scheduler_config(schedule, model.target, model.clipping)
    warnings: list[str] = []
    if method == "learned":
        warnings.append(
            "the fitted weights are left out: DPM-Solver++ of order 2 takes their place"
        )
        method, options = "dpmpp", {"order": 2}
    if method == "ddim" and float(options.pop("eta", 0.0) or 0.0):  # pyright: ignore[reportArgumentType]
        raise InputError(
            "diffusers takes η at every call and not from its configuration: export η = 0 and give "
            "eta= there"
        )
    make_tableau(schedule, nodes, method, **options)  # refuses what is not there
    trailing = nodes == COMPAT_NODES["diffusers-trailing"](schedule, len(nodes) - 1)
    known = {key: base[key] for key in _NOISE}
    threshold = {key: base[key] for key in _THRESHOLD}
    takes_list = True
    if method == "ddim" and trailing and schedule.T % (len(nodes) - 1) == 0:
        return Export(base, _times(nodes), tuple(warnings))
    if method == "ddpm":
        kind = "fixed_large" if options.get("variance") == "large" else "fixed_small"
        own = {"_class_name": "DDPMScheduler", "variance_type": kind}
        own |= {key: base[key] for key in _CLIP}
        trailing = False  # without the list it looks up the node T // S below, not the next one
        if kind == "fixed_large" and nodes[-2] != 1:
            warnings.append(
                "its last step, to the data, is noised there unless it starts at node 1"
            )
    elif method in ("ddim", "dpmpp"):
        own = _dpm(method, options)
    elif method == "unipc":
        takes_list = False
        own = {
            "_class_name": "UniPCMultistepScheduler",
            "solver_order": options.get("order", 2),
            "solver_type": options.get("variant", "bh2"),
            "predict_x0": True,
            "lower_order_final": True,
            "final_sigmas_type": "zero",
        }
        if options.get("order", 2) == 3 and len(nodes) > 15:
            warnings.append("the last step but one has order 2 there")
    else:
        raise InputError(
            f"diffusers has no scheduler that runs {method}: ddim.diffusers_scheduler runs it in "
            "any of its pipelines"
        )
    if method != "ddpm" and model.clipping.kind == "clip":
        warnings.append(f"{own['_class_name']} does not clip x0, which {model.name} does")
    if not trailing and takes_list:
        warnings.append(
            "the nodes are not in the configuration: call "
            f"scheduler.set_timesteps(timesteps={list(_times(nodes))})"
        )
    elif not trailing:
        warnings.append(
            f"{own['_class_name']} takes no list of nodes and steps on its trailing grid instead"
        )
    return Export({**known, **threshold, **own}, _times(nodes), tuple(warnings))


def _dpm(method: str, options: Mapping[str, object]) -> dict[str, object]:
    order = 1 if method == "ddim" else options.get("order", 2)
    if order == 3 and options.get("form", "exact") != "published":
        raise InputError(
            "diffusers has the published form of DPM-Solver++ 3M alone: give form=published"
        )
    return {
        "_class_name": "DPMSolverMultistepScheduler",
        "solver_order": order,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
    }


def _times(nodes: Nodes) -> tuple[int, ...]:
    return tuple(k - 1 for k in nodes[:-1])
