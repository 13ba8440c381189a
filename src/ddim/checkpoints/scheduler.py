"""``scheduler_config.json``: what it says of the noise schedule, the target and the clipping.

The sampler that it names is not used, for any sampler here runs with any of them; its name only
decides what an absent key means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddim.base.errors import InputError, quoted
from ddim.base.files import read_json
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.noise.schedule import Schedule

__all__ = ["PREDICTION", "parse_scheduler", "read_scheduler", "scheduler_config"]

PREDICTION = {
    "epsilon": Target.EPS,
    "sample": Target.X0,
    "v_prediction": Target.V,
    "flow": Target.FLOW,  # of schedulers of ours alone
}
# The schedulers of diffusers that clip unless they are told not to.
_CLIPPING = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "DDIMInverseScheduler",
    "RePaintScheduler",
)
_LATENT = (0.00085, 0.012, "linear")
_DEFAULTS = {
    "HeunDiscreteScheduler": _LATENT,
    "KDPM2DiscreteScheduler": _LATENT,
    "KDPM2AncestralDiscreteScheduler": _LATENT,
    "LCMScheduler": (0.00085, 0.012, "scaled_linear"),
    "TCDScheduler": (0.00085, 0.012, "scaled_linear"),
}
"""First β, last β and kind, where they are not those of DDPM."""
_PLAIN = (
    *_CLIPPING,
    *_DEFAULTS,
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
"""The schedulers whose noise is that of DDPM and whose absent keys have known values."""
# These change the noise itself, or call the network at other times than 0..T-1, whatever β say.
_OTHER_NOISE = re.compile(
    "FlowMatch|EDM|ScoreSde|KarrasVe|Consistency|CMStochastic|CosineDPM|VQDiffusion|Amused|IPNDM"
    "|CogVideoX|SCMScheduler|LTXEuler|Helios"
)
LONGEST = 1_000_000
"""More noising steps than any schedule has."""


def read_scheduler(path: Path) -> tuple[Schedule, Target, Clipping]:
    """The noise schedule, the target and the clipping of a ``scheduler_config.json``.

    Raises:
        InputError: no such file, a schedule or target that is not known, a scheduler of another
            kind of noise, or keys that contradict one another; the message names file and key.
    """
    config = read_json(path)
    try:
        return parse_scheduler(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse_scheduler(config: Mapping[str, Any]) -> tuple[Schedule, Target, Clipping]:
    """The same of a configuration that is read already, such as a scheduler's ``config``.

    Raises:
        InputError: as :func:`read_scheduler`; the message names the key.
    """
    schedule = _schedule(config)
    prediction = config.get("prediction_type", "epsilon")
    if not isinstance(prediction, str) or prediction not in PREDICTION:
        raise InputError(f"prediction_type {quoted(prediction)} is not one of {list(PREDICTION)}")
    return schedule, PREDICTION[prediction], _clipping(config)


def _clipping(config: Mapping[str, Any]) -> Clipping:
    if _flag(config, "thresholding", default=False):
        limit = _number(config, "sample_max_value", 1.0)
        ratio = _number(config, "dynamic_thresholding_ratio", 0.995)
        if limit < 1 or not 0 < ratio <= 1:
            raise InputError(
                f"thresholding needs a dynamic_thresholding_ratio in (0, 1], not {ratio:g}, and a "
                f"sample_max_value of at least 1, not {limit:g}"
            )
        return Clipping("threshold", limit, ratio)
    if _flag(config, "clip_sample", default=config.get("_class_name") in _CLIPPING):
        limit = _number(config, "clip_sample_range", 1.0)
        if limit <= 0:
            raise InputError(f"clip_sample_range must be positive, not {limit:g}")
        return Clipping("clip", limit)
    return Clipping()


def _schedule(config: Mapping[str, Any]) -> Schedule:
    name = config.get("_class_name")
    if not (name is None or isinstance(name, str)):
        raise InputError(f"_class_name must be a name, not {quoted(name)}")
    own = config.get("schedule")
    if own is not None:  # a scheduler of ours, of noise that no β say
        if not isinstance(own, Mapping):
            raise InputError(f"schedule must be a specification, not {quoted(own)}")
        return Schedule.from_spec(own)
    listed = config.get("trained_betas")
    told = listed is not None or {"beta_start", "beta_end", "beta_schedule"} & config.keys()
    other = name is not None and _OTHER_NOISE.search(name) is not None
    if other or not (told or name is None or name in _PLAIN):
        raise InputError(f"_class_name {quoted(name)} has no β schedule of the DDPM kind")
    if _flag(config, "use_flow_sigmas", default=False):
        raise InputError("use_flow_sigmas: flow noise contradicts a β schedule")
    if config.get("timestep_type", "discrete") != "discrete":
        raise InputError("timestep_type: the network is called at times other than 0..T-1")
    first, last, default_kind = _DEFAULTS.get(str(name), (1e-4, 0.02, "linear"))
    T = _number(config, "num_train_timesteps", 1000)
    if int(T) != T or not 1 <= T <= LONGEST:
        raise InputError(
            f"num_train_timesteps must be a whole number from 1 to {LONGEST}, not {T:g}"
        )
    T = int(T)
    if listed is not None:
        schedule = Schedule.from_betas(_numbers("trained_betas", listed))
        if "num_train_timesteps" in config and schedule.T != T:
            raise InputError(
                f"trained_betas has {schedule.T} values, but num_train_timesteps is {T}"
            )
    else:
        start, end = _number(config, "beta_start", first), _number(config, "beta_end", last)
        schedule = _named(config.get("beta_schedule", default_kind), T, start, end)
    zero = _flag(config, "rescale_betas_zero_snr", default=False)
    return schedule.rescaled_to_zero_snr() if zero else schedule


def _named(kind: object, T: int, start: float, end: float) -> Schedule:
    if kind == "squaredcos_cap_v2":
        return Schedule.cosine(T)
    if not 0 < start <= end <= 1:
        raise InputError(
            f"beta_start {start:g} and beta_end {end:g}: β rises from one to the other in (0, 1]"
        )
    if kind == "linear":
        return Schedule.linear(T, start, end)
    if kind == "scaled_linear":
        return Schedule.scaled_linear(T, start, end)
    if kind == "sigmoid":
        ramp = 1 / (1 + np.exp(-np.linspace(-6, 6, T)))
        return Schedule.from_betas(ramp * (end - start) + start)
    raise InputError(f"beta_schedule {quoted(kind)} is not known")


def _flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = config.get(key, default)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InputError(f"{key} must be true or false, not {quoted(value)}")
    return value


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise InputError(f"{key} must be a number, not {quoted(value)}")
    return float(value)


def _numbers(key: str, values: object) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{key} must be a list of numbers") from None


def scheduler_config(
    schedule: Schedule, target: Target, clipping: Clipping, *, learned_variance: bool = False
) -> dict[str, Any]:
    """A ``scheduler_config.json`` for diffusers' DDIMScheduler, every field explicit.

    ``trailing`` spacing and ``set_alpha_to_one`` are what comes nearest to the nodes used here.
    Only diffusers' DDPMScheduler can use a learned variance, so it is named for one.

    Raises:
        InputError: a schedule that is not variance-preserving, or a flow target.
    """
    if not schedule.variance_preserving or target is Target.FLOW:
        raise InputError("diffusers' DDIMScheduler has no flow schedules: this cannot be saved so")
    spec = dict(schedule.spec)
    kind = spec["kind"]
    default_cosine = kind == "cosine" and (spec["s"], spec["max_beta"]) == (0.008, 0.999)
    name = {"linear": "linear", "scaled-linear": "scaled_linear"}.get(kind)
    scale = 1000 / schedule.T if spec.get("scaled") else 1.0
    # A list of β cannot hold the exact zero of a rescaled schedule in every reader.
    plain = spec.pop("zero_terminal_snr", False) is False
    base = schedule if plain else Schedule.from_spec(spec)
    listed = name is None and not default_cosine
    own = {"set_alpha_to_one": True}
    if learned_variance:
        own = {"variance_type": "learned_range"}
    return {
        "_class_name": "DDPMScheduler" if learned_variance else "DDIMScheduler",
        "_diffusers_version": "0.33.0",
        "num_train_timesteps": schedule.T,
        "beta_start": spec.get("beta_start", 1e-4) * scale,
        "beta_end": spec.get("beta_end", 0.02) * scale,
        "beta_schedule": "squaredcos_cap_v2" if default_cosine else name or "linear",
        "trained_betas": base.betas.tolist() if listed else None,
        "clip_sample": clipping.kind == "clip",
        "clip_sample_range": clipping.limit if clipping.kind == "clip" else 1.0,
        **own,
        "steps_offset": 0,
        "prediction_type": next(k for k, v in PREDICTION.items() if v is target),
        "thresholding": clipping.kind == "threshold",
        "dynamic_thresholding_ratio": clipping.ratio,
        "sample_max_value": clipping.limit if clipping.kind == "threshold" else 1.0,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": not plain,
    }
