"""The state of a training run to its file and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddim.base.errors import InputError, quoted
from ddim.base.records import in_file
from ddim.checkpoints.training import TrainingFile, write_training
from ddim.train.config import TrainConfig
from ddim.train.loop import TrainState

__all__ = ["check_resumed", "digest", "load_checkpoint", "save_checkpoint", "saved_config"]

_FREE = (
    "data", "data_root", "skip_broken", "images", "accumulate", "save_every", "sample_every",
    "tensorboard", "wandb", "prometheus", "skip_bad_batches",
)  # fmt: skip
"""What may change when a run is resumed: none of it touches what has been learnt. The data are told
by their checksums. More images move the end, and with it the fall of the learning rate. Other parts
of a batch change last bits, and which of the equally good dropout masks are drawn: a run that has
met a smaller device can still be ended. Skipping begins where a run would have ended."""

_SLOTS = ({"step", "exp_avg", "exp_avg_sq"}, {"step", "momentum"})
"""What the optimizers of a configuration keep of a parameter."""


def save_checkpoint(
    path: Path, state: TrainState, config: TrainConfig, facts: Mapping[str, Any]
) -> None:
    """Write the whole state: weights, their average, the optimizer's moments, the step."""
    write_training(path, config.to_json(), state.step, facts, _tensors(state))


def digest(state: TrainState) -> str:
    """SHA-256 of all tensors that :func:`save_checkpoint` writes, in hexadecimal."""
    found = hashlib.sha256()
    for key, value in sorted(_tensors(state).items()):
        plain = value.detach().cpu().contiguous()
        found.update(f"{key} {plain.dtype} {tuple(plain.shape)}\0".encode())
        found.update(plain.view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _tensors(state: TrainState) -> dict[str, Tensor]:
    """The weights, their average and the optimizer's moments, by name."""
    tensors: dict[str, Tensor] = {}
    tensors |= {f"net.{k}": v for k, v in state.net.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in state.ema.state_dict().items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
    return tensors


def saved_config(checkpoint: TrainingFile) -> TrainConfig:
    """The configuration of the run that wrote a file.

    Raises:
        InputError: a damaged header.
    """
    with in_file(f"{checkpoint.path}: its header is damaged"):
        return TrainConfig.from_json(checkpoint.config)


def check_resumed(saved: TrainConfig, config: TrainConfig) -> None:
    """Refuse to resume a run as another: with another batch size, say, or another learning rate.

    Raises:
        InputError: the first field that differs and may not.
    """
    wanted = config.to_json()
    for key, before in saved.to_json().items():
        if before != wanted[key] and key not in _FREE:
            raise InputError(
                f"the run was begun with {key} = {quoted(before)}, not {quoted(wanted[key])}"
            )


def load_checkpoint(checkpoint: TrainingFile, state: TrainState) -> None:
    """Put a checkpoint's tensors into a freshly built state, in place.

    Raises:
        InputError: the tensors are not those of this network; the first difference is named, and
            nothing is changed.
    """
    for kind, module in (("net", state.net), ("ema", state.ema)):
        _check(module, checkpoint.weights(kind), kind)
    restored = state.optimizer.state_dict()
    restored["state"] = _slots(checkpoint, state.optimizer)
    with torch.no_grad():
        state.net.load_state_dict(checkpoint.weights("net"))
        state.ema.load_state_dict(checkpoint.weights("ema"))
    state.optimizer.load_state_dict(restored)
    state.step = checkpoint.step


def _slots(
    checkpoint: TrainingFile, optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """What an optimizer keeps of each of its parameters, by their numbers."""
    every = (p for group in optimizer.param_groups for p in group["params"])
    parameters = {str(number): parameter for number, parameter in enumerate(every)}
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in checkpoint.tensors.items():
        kind, _, rest = key.partition(".")
        if kind != "optimizer":
            continue
        index, _, name = rest.partition(".")
        if index not in parameters or value.shape not in ((), parameters[index].shape):
            raise InputError(
                f"{checkpoint.path}: {quoted(key)} of shape {tuple(value.shape)} fits no parameter "
                "of this network"
            )
        slots.setdefault(int(index), {})[name] = value
    if isinstance(optimizer, torch.optim.Adam):
        for index, names in slots.items():
            if set(names) not in _SLOTS:
                raise InputError(f"{checkpoint.path}: the moments of parameter {index} are damaged")
    return slots


def _check(module: nn.Module, weights: dict[str, Tensor], kind: str) -> None:
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
