"""Model folders in diffusers' layout, read and written without diffusers.

Nested (``model_index.json``, ``unet/``, ``scheduler/``) or flat (everything in one folder). What
diffusers has no field for, facts about the data and the training, is in ``ddim.json`` beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ddim.denoiser import Clipping
from ddim.errors import InputError
from ddim.files import read_json, replacing, write_json
from ddim.nets import UNet, UNetConfig
from ddim.schedule import Schedule
from ddim.target import Target

__all__ = ["ModelParts", "read_folder", "write_folder"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
FACTS = "ddim.json"

_PREDICTION = {"epsilon": Target.EPS, "sample": Target.X0, "v_prediction": Target.V}
# The schedulers of diffusers that clip unless they are told not to.
_CLIPPING = ("DDIMScheduler", "DDPMScheduler")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclasses.dataclass(frozen=True)
class ModelParts:
    """What a folder holds."""

    net: UNet
    schedule: Schedule
    target: Target
    clipping: Clipping
    facts: Mapping[str, Any]


def read_folder(folder: Path) -> ModelParts:
    """Read a model folder; weights are memory-mapped while they are copied in.

    Raises:
        InputError: not a model folder, an unknown key, weights that do not fit or are not finite;
            the message names the file and the key.
    """
    folder = Path(folder)
    nested = (folder / "unet").is_dir()
    unet_folder = folder / "unet" if nested else folder
    if not (unet_folder / "config.json").exists():
        raise InputError(f"{folder} is not a model folder: it has no {'unet/' * nested}config.json")
    scheduler = folder / "scheduler" if nested else folder
    config_path = unet_folder / "config.json"
    config = read_json(config_path)
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise InputError(f"{config_path}: a {kind} cannot be loaded, only a UNet2DModel")
    try:
        net = _empty_unet(UNetConfig.from_json(config))
    except (InputError, TypeError) as error:
        raise InputError(f"{config_path}: {error}") from None
    load_weights(net, unet_folder / WEIGHTS)
    schedule, target, clipping = read_scheduler(scheduler / "scheduler_config.json")
    facts_path = folder / FACTS
    facts = read_json(facts_path) if facts_path.exists() else {}
    if "schedule" in facts:
        try:
            schedule = _exact(schedule, facts["schedule"])
        except InputError as error:
            raise InputError(f"{facts_path}: {error}") from None
    return ModelParts(net, schedule, target, clipping, facts)


def _exact(schedule: Schedule, spec: Mapping[str, Any]) -> Schedule:
    """The schedule of our own record, unless the scheduler's file has been changed to another.

    They differ in the last bits where that file has a list of β, from which ᾱ is multiplied anew.
    """
    recorded = Schedule.from_spec(spec)
    if recorded.T != schedule.T:
        return schedule
    same = np.allclose(recorded.alpha, schedule.alpha, rtol=0, atol=1e-9)
    return recorded if same else schedule


def _empty_unet(config: UNetConfig) -> UNet:
    """A network without values: they come from the file, so none are drawn."""
    with torch.device("meta"):
        net = UNet(config)
    return net.to_empty(device="cpu").requires_grad_(False).eval()


def load_weights(net: UNet, path: Path) -> None:
    """Copy a safetensors file into a network.

    The names that diffusers gave attention layers until 2023 are understood.

    Raises:
        InputError: no such file, a truncated one, missing or unexpected keys, other shapes,
            values that are not finite.
    """
    if not path.exists():
        raise InputError(f"there are no weights {path}")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {_modern(key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file, or is truncated: {error}") from None
    own = net.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        parts = [f"{len(missing)} missing ({', '.join(missing[:3])}…)"] if missing else []
        parts += (
            [f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])}…)"] if unexpected else []
        )
        raise InputError(f"{path} does not fit its config.json: {' and '.join(parts)} keys")
    for key, value in tensors.items():
        if value.shape != own[key].shape:
            raise InputError(
                f"{path}: {key} has shape {tuple(value.shape)}, its config.json asks for "
                f"{tuple(own[key].shape)}"
            )
        if not bool(value.isfinite().all()):
            raise InputError(f"{path}: {key} holds values that are not finite")
        own[key].copy_(value)


def _modern(key: str) -> str:
    parts = key.split(".")
    if "attentions" in parts and parts[-2] in _OLD_ATTENTION:
        parts[-2] = _OLD_ATTENTION[parts[-2]]
    return ".".join(parts)


def read_scheduler(path: Path) -> tuple[Schedule, Target, Clipping]:
    """The noise schedule, the target and the clipping of a ``scheduler_config.json``.

    The sampler that it names is not used: any sampler here runs with any of them.

    Raises:
        InputError: no such file, a schedule or target that is not known.
    """
    config = read_json(path)
    try:
        schedule = _schedule(config)
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in _PREDICTION:
            raise InputError(f"prediction_type {prediction!r} is not one of {list(_PREDICTION)}")
        if config.get("thresholding"):
            clipping = Clipping(
                "threshold",
                float(config.get("sample_max_value", 1.0)),
                float(config.get("dynamic_thresholding_ratio", 0.995)),
            )
        elif config.get("clip_sample", config.get("_class_name") in _CLIPPING):
            clipping = Clipping("clip", float(config.get("clip_sample_range", 1.0)))
        else:
            clipping = Clipping()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return schedule, _PREDICTION[prediction], clipping


def _schedule(config: Mapping[str, Any]) -> Schedule:
    T = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        schedule = Schedule.from_betas(config["trained_betas"])
    elif kind == "linear":
        schedule = Schedule.linear(T, start, end)
    elif kind == "scaled_linear":
        schedule = Schedule.scaled_linear(T, start, end)
    elif kind == "squaredcos_cap_v2":
        schedule = Schedule.cosine(T)
    elif kind == "sigmoid":
        ramp = 1 / (1 + np.exp(-np.linspace(-6, 6, T)))
        schedule = Schedule.from_betas(ramp * (end - start) + start)
    else:
        raise InputError(f"beta_schedule {kind!r} is not known")
    return schedule.rescaled_to_zero_snr() if config.get("rescale_betas_zero_snr") else schedule


def scheduler_config(schedule: Schedule, target: Target, clipping: Clipping) -> dict[str, Any]:
    """A ``scheduler_config.json`` for diffusers' DDIMScheduler, every field explicit.

    ``trailing`` spacing and ``set_alpha_to_one`` are what comes nearest to the nodes used here.

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
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.33.0",
        "num_train_timesteps": schedule.T,
        "beta_start": spec.get("beta_start", 1e-4) * scale,
        "beta_end": spec.get("beta_end", 0.02) * scale,
        "beta_schedule": "squaredcos_cap_v2" if default_cosine else name or "linear",
        "trained_betas": base.betas.tolist() if listed else None,
        "clip_sample": clipping.kind == "clip",
        "clip_sample_range": clipping.limit if clipping.kind == "clip" else 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": next(k for k, v in _PREDICTION.items() if v is target),
        "thresholding": clipping.kind == "threshold",
        "dynamic_thresholding_ratio": clipping.ratio,
        "sample_max_value": clipping.limit if clipping.kind == "threshold" else 1.0,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": not plain,
    }


def write_folder(
    folder: Path,
    config: UNetConfig,
    weights: Mapping[str, Tensor],
    schedule: Schedule,
    target: Target,
    clipping: Clipping,
    facts: Mapping[str, Any],
) -> None:
    """Write a nested model folder, each file whole or not at all, the weights last.

    diffusers' ``DDIMPipeline.from_pretrained(folder)`` opens it.
    """
    folder = Path(folder)
    index = {
        "_class_name": "DDIMPipeline",
        "_diffusers_version": "0.33.0",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    unet = {"_class_name": "UNet2DModel", "_diffusers_version": "0.33.0", **config.to_json()}
    scheduler = scheduler_config(schedule, target, clipping)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "unet" / "config.json", unet)
    write_json(folder / "model_index.json", index)
    write_json(folder / FACTS, {**facts, "schedule": dict(schedule.spec)})
    tensors = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    with replacing(folder / "unet" / WEIGHTS) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"})
