"""A sampler as a ``scheduler_config.json``, as far as diffusers can follow it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ddim.base.display import shown
from ddim.base.errors import InputError
from ddim.checkpoints.scheduler import scheduler_config
from ddim.model.model import Model
from ddim.noise.foreign import FOREIGN_NODES
from ddim.noise.nodes import Nodes
from ddim.samplers.sampler import Sampler

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


@shown
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
    method: str | Sampler = "ddim",
    *,
    steps: int | None = None,
    nodes: str | Sequence[int] | None = None,
    **options: object,
) -> Export:
    """The scheduler of diffusers that does what a sampler does, or what comes nearest.

    No scheduler there reads its nodes from its configuration. A grid that it knows by name
    (``trailing``) is followed by the number of steps alone; for others DPMSolverMultistepScheduler,
    which at order 1 is DDIM, and DDPMScheduler take ``set_timesteps(timesteps=…)``.

    Args:
        model: the model.
        method: a :class:`~ddim.Sampler`, or one as text: ``ddim`` (η = 0), ``ddpm``, ``dpmpp``,
            ``unipc``, ``calibrated``, or ``learned``, whose weights are left out.
        steps: S; 50 if None, or T where it is smaller.
        nodes: a family's name, or the nodes themselves, falling to 0.
        options: the method's own.

    Raises:
        InputError: a method that diffusers has not, nodes that do not end at 0, or a model that it
            cannot express; for the first :func:`ddim.diffusers_scheduler` runs it there all the
            same.
    """
    sampler = model.resolve(Sampler.parse(method, steps, nodes, **options))
    schedule = model.schedule
    listed = sampler.place(schedule)
    sampler.tableau(schedule)  # refuses what is not there
    if listed[-1] != 0:
        raise InputError("what is exported falls to node 0, the data")
    warnings: list[str] = []
    if sampler.method == "learned":
        warnings.append(
            "the fitted weights are left out: DPM-Solver++ of order 2 takes their place"
        )
        sampler = Sampler("dpmpp", nodes=listed)
    if sampler.method == "ddim" and sampler.settings:
        raise InputError(
            "diffusers takes η at every call and not from its configuration: export η = 0 and give "
            "eta= there"
        )
    base = scheduler_config(schedule, model.target, model.clipping)
    trailing = listed == FOREIGN_NODES["diffusers-trailing"](schedule, len(listed) - 1)
    if sampler.method == "ddim" and trailing and schedule.T % (len(listed) - 1) == 0:
        return Export(base, _times(listed), tuple(warnings))
    own = _scheduler(sampler, base)
    kind, takes_list = own["_class_name"], own["_class_name"] != "UniPCMultistepScheduler"
    if own.get("variance_type") == "fixed_large" and listed[-2] != 1:
        warnings.append("its last step, to the data, is noised there unless it starts at node 1")
    if own.get("solver_order") == 3 and not takes_list and len(listed) > 15:
        warnings.append("the last step but one has order 2 there")
    if sampler.method == "ddpm":
        trailing = False  # without the list it looks up the node T // S below, not the next one
    elif model.clipping.kind == "clip":
        warnings.append(f"{kind} does not clip x0, which {model.name} does")
    if not trailing and takes_list:
        warnings.append(
            "the nodes are not in the configuration: call "
            f"scheduler.set_timesteps(timesteps={list(_times(listed))})"
        )
    elif not trailing:
        warnings.append(f"{kind} takes no list of nodes and steps on its trailing grid instead")
    known = {key: base[key] for key in (*_NOISE, *_THRESHOLD)}
    return Export({**known, **own}, _times(listed), tuple(warnings))


def _scheduler(sampler: Sampler, base: Mapping[str, Any]) -> dict[str, Any]:
    """What the scheduler's configuration says of the method."""
    method, options = sampler.method, sampler.options
    if method == "ddpm":
        kind = "fixed_large" if options["variance"] == "large" else "fixed_small"
        clip = {key: base[key] for key in _CLIP}
        return {"_class_name": "DDPMScheduler", "variance_type": kind, **clip}
    if method in ("ddim", "dpmpp"):
        return _dpm(method, options)
    if method == "unipc":
        return {
            "_class_name": "UniPCMultistepScheduler",
            "solver_order": options["order"],
            "solver_type": options["variant"],
            "predict_x0": True,
            "lower_order_final": True,
            "final_sigmas_type": "zero",
        }
    raise InputError(
        f"diffusers has no scheduler that runs {method}: ddim.diffusers_scheduler runs it in "
        "any of its pipelines"
    )


def _dpm(method: str, options: Mapping[str, object]) -> dict[str, Any]:
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
