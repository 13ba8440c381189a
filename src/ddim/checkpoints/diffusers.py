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
from torch import Tensor

from ddim.base.errors import InputError
from ddim.base.files import read_json, write_json
from ddim.base.records import checked, in_file
from ddim.checkpoints.containers import select
from ddim.checkpoints.description import describe
from ddim.checkpoints.record import Facts, Loaded
from ddim.checkpoints.scheduler import scheduler_config
from ddim.checkpoints.shards import find_weights, read_shards
from ddim.checkpoints.tensors import read_pickle, read_safetensors, write_safetensors
from ddim.checkpoints.weights import fill, unfilled
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.schedule import Schedule

__all__ = ["read_folder", "write_folder"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
FACTS = "ddim.json"
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_folder(folder: Path, weights: str = "ema") -> Loaded:
    """Read a model folder; weights are memory-mapped while they are copied in.

    Args:
        folder: nested, flat, or one of the folders ``unet`` and ``unet_ema`` of a nested one.
        weights: ``ema`` takes the average in ``unet_ema/``, or the variant ``ema``, where a
            training run left one; ``net`` takes ``unet/``, or the variant ``non_ema``.

    Raises:
        InputError: not a model folder, an unknown key, weights that do not fit or are not finite;
            the message names the file and the key.
    """
    folder = Path(folder)
    said = describe(folder, weights)
    made, unet, both = said.config, said.unet, said.both
    schedule, target, clipping = said.schedule, said.target, said.clipping
    with in_file(said.path):
        net = unfilled(lambda: UNet(made))
    kind = load_weights(net, unet, weights)
    own = _own_facts(folder / FACTS)
    if own.schedule is not None:
        schedule = _exact(schedule, own.schedule)
    classes = made.num_class_embeds if own.classes is None else own.classes
    if both:
        kind = weights
    return Loaded(
        net,
        schedule,
        target,
        (made.in_channels, made.sample_size, made.sample_size),
        classes if made.has_classes else None,
        dataclasses.replace(clipping, stale_eps=clipping.stale_eps or own.stale_eps),
        dataclasses.replace(
            own.facts,
            weights=own.facts.weights if kind == "only" else kind,
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
    kinds = {"stale_eps": bool, "classes": int, "null_label": int, "name": str}
    with in_file(path):
        spec = checked("schedule", values.pop("schedule", None), dict[str, Any] | None)
        schedule = None if spec is None else Schedule.from_spec(spec)
        own: dict[str, Any] = {}
        for key, kind in kinds.items():
            value = checked(key, values.pop(key, None), kind | None)
            if value is not None:
                own[key] = value
        return _Own(Facts.of(values), schedule, **own)


def _exact(schedule: Schedule, recorded: Schedule) -> Schedule:
    """The schedule of our own record, unless the scheduler's file has been changed to another.

    They differ in the last bits where that file has a list of β, from which ᾱ is multiplied anew.
    """
    if recorded.T != schedule.T:
        return schedule
    same = np.allclose(recorded.alpha, schedule.alpha, rtol=0, atol=1e-9)
    return recorded if same else schedule


def load_weights(net: UNet, folder: Path, weights: str = "ema") -> str:
    """Fill a network from a folder's weights, in safetensors if it has both.

    The names that diffusers gave attention layers until 2023 are understood.

    Returns:
        ``ema``, ``net``, or ``only`` where there is one set.

    Raises:
        InputError: no weights, a truncated file, a pickle with code in it, missing or unexpected
            keys, other shapes, values that are not finite.
    """
    path, kind = find_weights(folder, weights)
    if path.suffix == ".json":
        value: object = read_shards(path)
    else:
        value = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_pickle(path)
    tensors, held = select(value, weights, path, _is_unet, "diffusers' UNet2DModel")
    fill(net, {_modern(key): value for key, value in tensors.items()}, path)
    return kind if held == "only" else held


def _is_unet(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("conv_in.") for key in tensors)


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
    write_safetensors(folder / "unet" / WEIGHTS, weights, {"format": "pt"})
    # Loading would take the averaged weights of a model that was here before.
    shutil.rmtree(folder / "unet_ema", ignore_errors=True)
    write_json(folder / "unet" / "config.json", unet)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", index)
    write_json(folder / FACTS, own)
