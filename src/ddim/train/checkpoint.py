"""The state of a training run to its file and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddim.base.errors import InputError
from ddim.checkpoints.training import TrainingFile, write_training
from ddim.train.config import TrainConfig
from ddim.train.loop import TrainState

__all__ = ["load_checkpoint", "save_checkpoint", "saved_config"]


def save_checkpoint(
    path: Path, state: TrainState, config: TrainConfig, facts: Mapping[str, Any]
) -> None:
    """Write the whole state: weights, their average, the optimizer's moments, the step."""
    tensors: dict[str, Tensor] = {}
    tensors |= {f"net.{k}": v for k, v in state.net.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in state.ema.state_dict().items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
    write_training(path, config.to_json(), state.step, facts, tensors)


def saved_config(checkpoint: TrainingFile) -> TrainConfig:
    """The configuration of the run that wrote a file.

    Raises:
        InputError: a damaged header.
    """
    try:
        return TrainConfig.from_json(checkpoint.config)
    except (TypeError, ValueError) as error:
        raise InputError(f"{checkpoint.path}: its header is damaged: {error}") from None


def load_checkpoint(checkpoint: TrainingFile, state: TrainState) -> None:
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
