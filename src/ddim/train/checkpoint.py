"""The state of a training run in one safetensors file, written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ddim.base.errors import InputError
from ddim.base.files import write_bytes
from ddim.train.config import TrainConfig
from ddim.train.loop import TrainState

__all__ = ["Checkpoint", "is_checkpoint", "load_checkpoint", "read_checkpoint", "save_checkpoint"]

_FORMAT = "ddim-training-1"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file holds: the configuration, the step, facts about the model, and the tensors.

    The order of the data and all random numbers follow from the configuration's seed and the step.
    """

    config: TrainConfig
    step: int
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def weights(self, kind: str = "ema") -> dict[str, Tensor]:
        """The network's state dict: ``ema`` or ``net`` (the raw weights)."""
        prefix = f"{kind}."
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}


def save_checkpoint(
    path: Path, state: TrainState, config: TrainConfig, facts: Mapping[str, Any]
) -> None:
    """Write the whole state: weights, their average, the optimizer's moments, the step."""
    tensors: dict[str, Tensor] = {}
    tensors |= {f"net.{k}": v for k, v in state.net.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in state.ema.state_dict().items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    header = {"config": config.to_json(), "step": state.step, "facts": dict(facts)}
    metadata = {"format": _FORMAT, "ddim": json.dumps(header)}
    write_bytes(path, safetensors.torch.save(tensors, metadata))


def is_checkpoint(path: Path) -> bool:
    """Whether a file is one that :func:`save_checkpoint` wrote, by its header alone."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return (file.metadata() or {}).get("format") == _FORMAT
    except safetensors.SafetensorError:
        return False


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file that :func:`save_checkpoint` wrote.

    Raises:
        InputError: not a safetensors file, a truncated one, or one of something else.
    """
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise InputError(f"{path} is not a training checkpoint of ddim")
            header = metadata["ddim"]
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path}") from None
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file, or is truncated: {error}") from None
    try:
        facts = json.loads(header)
        config = TrainConfig.from_json(facts["config"])
        return Checkpoint(config, int(facts["step"]), facts["facts"], tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its header is damaged: {error}") from None


def load_checkpoint(checkpoint: Checkpoint, state: TrainState) -> None:
    """Put a checkpoint's tensors into a freshly built state, in place.

    Raises:
        InputError: the tensors are not those of this network; the first difference is named.
    """
    for kind, module in (("net", state.net), ("ema", state.ema)):
        _load(module, checkpoint.weights(kind), kind)
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in checkpoint.tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            slots.setdefault(int(index), {})[name] = value
    restored = state.optimizer.state_dict()
    restored["state"] = slots
    state.optimizer.load_state_dict(restored)
    state.step = checkpoint.step


def _load(module: nn.Module, weights: dict[str, Tensor], kind: str) -> None:
    own = module.state_dict()
    for key in sorted(own.keys() ^ weights.keys()):
        where = "missing from" if key in own else "unknown to this network but in"
        raise InputError(f"{key} is {where} the checkpoint's {kind} weights")
    for key, value in weights.items():
        if value.shape != own[key].shape:
            raise InputError(
                f"{key} has shape {tuple(value.shape)} in the checkpoint, "
                f"not {tuple(own[key].shape)}"
            )
    with torch.no_grad():
        module.load_state_dict(weights)
