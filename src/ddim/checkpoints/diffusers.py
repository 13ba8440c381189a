"""Model folders in diffusers' layout, read and written without diffusers.

Nested (``model_index.json``, ``unet/``, ``scheduler/``) or flat (everything in one folder). What
diffusers has no field for, facts about the data and the training, is in ``ddim.json`` beside them.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from ddim.base.errors import InputError, quoted
from ddim.base.files import read_json, write_bytes, write_json
from ddim.checkpoints.record import Facts, Loaded
from ddim.checkpoints.scheduler import read_scheduler, scheduler_config
from ddim.checkpoints.tensors import read_pickle, read_safetensors, tensors_of
from ddim.checkpoints.weights import fill, unfilled
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.schedule import Schedule

__all__ = ["read_folder", "write_folder"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
_WEIGHTS = (
    WEIGHTS,
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
)
FACTS = "ddim.json"

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_folder(folder: Path, weights: str = "ema") -> Loaded:
    """Read a model folder; weights are memory-mapped while they are copied in.

    Args:
        folder: nested or flat.
        weights: ``ema`` takes the average in ``unet_ema/`` where a training run left one, ``net``
            takes ``unet/``.

    Raises:
        InputError: not a model folder, an unknown key, weights that do not fit or are not finite;
            the message names the file and the key.
    """
    folder = Path(folder)
    nested = (folder / "unet").is_dir()
    both = nested and (folder / "unet_ema" / "config.json").exists()
    averaged = weights == "ema" and both
    unet_folder = folder / ("unet_ema" if averaged else "unet") if nested else folder
    if not (unet_folder / "config.json").exists():
        raise InputError(f"{folder} is not a model folder: it has no {'unet/' * nested}config.json")
    _check_components(folder / "model_index.json")
    scheduler = folder / "scheduler" if nested else folder
    config_path = unet_folder / "config.json"
    config = read_json(config_path)
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise InputError(f"{config_path}: a {kind} cannot be loaded, only a UNet2DModel")
    try:
        made = UNetConfig.from_json(config)
        net = unfilled(lambda: UNet(made))
    except (InputError, TypeError) as error:
        raise InputError(f"{config_path}: {error}") from None
    scheduler_path = scheduler / "scheduler_config.json"
    schedule, target, clipping = read_scheduler(scheduler_path)
    _check_variance(made, config_path, scheduler_path)
    load_weights(net, unet_folder)
    own = _own_facts(folder / FACTS)
    if own.schedule is not None:
        schedule = _exact(schedule, own.schedule)
    classes = made.num_class_embeds if own.classes is None else own.classes
    return Loaded(
        net,
        schedule,
        target,
        (made.in_channels, made.sample_size, made.sample_size),
        classes if made.has_classes else None,
        dataclasses.replace(clipping, stale_eps=clipping.stale_eps or own.stale_eps),
        dataclasses.replace(
            own.facts,
            weights=weights if both else own.facts.weights,
            learned_variance=made.out_channels != made.in_channels,
        ),
        own.null_label,
        own.name,
    )


@dataclasses.dataclass(frozen=True)
class _Own:
    """What ``ddim.json`` says beyond what diffusers has fields for."""

    facts: Facts
    schedule: Schedule | None = None
    stale_eps: bool = False
    classes: int | None = None
    null_label: int | None = None
    name: str | None = None


def _own_facts(path: Path) -> _Own:
    values = read_json(path) if path.exists() else {}
    spec = values.pop("schedule", None)
    try:
        schedule = None if spec is None else Schedule.from_spec(spec)
    except (InputError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: schedule is not one: {error}") from None
    kinds = {"stale_eps": bool, "classes": int, "null_label": int, "name": str}
    own: dict[str, Any] = {}
    for key, kind in kinds.items():
        value = values.pop(key, None)
        if not (value is None or type(value) is kind):
            raise InputError(f"{path}: {key} is not what it should be: {value!r:.200}")
        if value is not None:
            own[key] = value
    try:
        return _Own(Facts.of(values), schedule, **own)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _check_components(path: Path) -> None:
    """A UNet and a scheduler draw images; with more parts the UNet's are something else."""
    if not path.exists():
        return
    index = read_json(path)
    others = [
        key
        for key, value in index.items()
        if not key.startswith("_")
        and key not in ("unet", "unet_ema", "scheduler")
        and isinstance(value, list)
        and any(value)
    ]
    if others:
        raise InputError(
            f"{path}: a {index.get('_class_name')} has {', '.join(sorted(others))} too, so that "
            "its UNet makes no images by itself: keep its model and give it a sampler with "
            "ddim.diffusers_scheduler"
        )


def _check_variance(config: UNetConfig, path: Path, scheduler: Path) -> None:
    """Twice the channels are a prediction and how to interpolate its variance, and nothing else."""
    channels, out = config.in_channels, config.out_channels
    if out not in (channels, 2 * channels):
        raise InputError(
            f"{path}: out_channels {out} is neither in_channels {channels} nor twice that"
        )
    kind = read_json(scheduler).get("variance_type")
    if kind == "learned" or (kind == "learned_range" and out == channels):
        raise InputError(
            f"{scheduler}: variance_type {quoted(kind)} does not go with out_channels {out}: with "
            f"twice the {channels} in_channels it would be 'learned_range', otherwise a fixed one"
        )


def _exact(schedule: Schedule, recorded: Schedule) -> Schedule:
    """The schedule of our own record, unless the scheduler's file has been changed to another.

    They differ in the last bits where that file has a list of β, from which ᾱ is multiplied anew.
    """
    if recorded.T != schedule.T:
        return schedule
    same = np.allclose(recorded.alpha, schedule.alpha, rtol=0, atol=1e-9)
    return recorded if same else schedule


def load_weights(net: UNet, folder: Path) -> None:
    """Fill a network from a folder's weights, in safetensors if it has both.

    The names that diffusers gave attention layers until 2023 are understood.

    Raises:
        InputError: no weights, a truncated file, a pickle with code in it, missing or unexpected
            keys, other shapes, values that are not finite.
    """
    path = next((folder / name for name in _WEIGHTS if (folder / name).exists()), None)
    if path is None:
        raise InputError(f"there are no weights {folder / WEIGHTS}")
    if path.suffix == ".safetensors":
        tensors, _ = read_safetensors(path)
    else:
        tensors = tensors_of(read_pickle(path))
        if tensors is None:
            raise InputError(f"{path} holds no state_dict")
    fill(net, {_modern(key): value for key, value in tensors.items()}, path)


def _modern(key: str) -> str:
    parts = key.split(".")
    if "attentions" in parts and parts[-2] in _OLD_ATTENTION:
        parts[-2] = _OLD_ATTENTION[parts[-2]]
    return ".".join(parts)


def write_folder(
    folder: Path,
    config: UNetConfig,
    weights: Mapping[str, Tensor],
    schedule: Schedule,
    target: Target,
    clipping: Clipping,
    facts: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None = None,
) -> None:
    """Write a nested model folder, each file whole or not at all, the weights last.

    diffusers' ``DDIMPipeline.from_pretrained(folder)`` opens it; where the network learned a
    variance, or the scheduler is another, it is ``DDPMPipeline``: DDIMPipeline has no other than
    its own.

    Raises:
        InputError: what diffusers cannot express, in the network or in the schedule; nothing is
            written then.
    """
    folder = Path(folder)
    if config.beyond_diffusers:
        raise InputError(
            "diffusers' UNet2DModel cannot express this network, so it has no model folder: "
            + ", ".join(config.beyond_diffusers)
        )
    learned = config.out_channels == 2 * config.in_channels
    own_scheduler = scheduler_config(schedule, target, clipping, learned_variance=learned)
    scheduler = own_scheduler if scheduler is None else scheduler
    index = {
        "_class_name": "DDIMPipeline"
        if scheduler["_class_name"] == "DDIMScheduler"
        else "DDPMPipeline",
        "_diffusers_version": "0.33.0",
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    unet = {"_class_name": "UNet2DModel", "_diffusers_version": "0.33.0", **config.to_json()}
    own: dict[str, Any] = {**facts, "schedule": dict(schedule.spec)}
    if clipping.stale_eps:
        own["stale_eps"] = True
    # What may not fit on the disk comes first, what tells that it is all there comes last.
    tensors = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    write_bytes(folder / "unet" / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
    # Loading would take the averaged weights of a model that was here before.
    shutil.rmtree(folder / "unet_ema", ignore_errors=True)
    write_json(folder / "unet" / "config.json", unet)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", index)
    write_json(folder / FACTS, own)
