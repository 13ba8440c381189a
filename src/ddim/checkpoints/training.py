"""The file of a training run, in its plain parts: a header and tensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ddim.base.errors import InputError
from ddim.base.files import write_bytes
from ddim.checkpoints.record import Facts, Loaded
from ddim.checkpoints.weights import fill, unfilled
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.schedule import Schedule

__all__ = ["TrainingFile", "is_training", "read_training", "write_training"]

_FORMAT = "ddim-training-1"


@dataclasses.dataclass(frozen=True)
class TrainingFile:
    """What a file holds.

    The order of the data and all random numbers follow from the configuration's seed and the step.

    Attributes:
        path: the file.
        config: the run's configuration, as plain values.
        step: how many steps were done.
        facts: about the model and the data.
        tensors: weights (``net.``), their average (``ema.``) and the optimizer's (``optimizer.``).
    """

    path: Path
    config: Mapping[str, Any]
    step: int
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def weights(self, kind: str = "ema") -> dict[str, Tensor]:
        """The network's state dict: ``ema`` or ``net`` (the raw weights)."""
        prefix = f"{kind}."
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    def model(self, kind: str = "ema") -> Loaded:
        """The model that the run has come to.

        Raises:
            InputError: a damaged header, or weights that do not fit it.
        """
        facts = dict(self.facts)
        try:
            config = UNetConfig.from_json(facts.pop("unet"))
            schedule = Schedule.from_spec(facts.pop("schedule"))
            target, classes = Target.named(facts.pop("target")), facts.pop("classes")
            known = Facts.of(facts)
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.path}: its header is damaged: {error}") from None
        net = unfilled(lambda: UNet(config))
        fill(net, self.weights(kind), self.path, f"its own record, as {kind} weights")
        return Loaded(
            net,
            schedule,
            target,
            (config.in_channels, config.sample_size, config.sample_size),
            classes,
            Clipping(),
            dataclasses.replace(known, weights=kind),
            # Without dropped labels the network has never seen the label that stands for none.
            classes if self.config.get("label_dropout", 0.1) else None,
            self.path.resolve().parent.name,
        )


def write_training(
    path: Path,
    config: Mapping[str, Any],
    step: int,
    facts: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Write a file whole or not at all; see :class:`TrainingFile`."""
    header = {"config": dict(config), "step": step, "facts": dict(facts)}
    metadata = {"format": _FORMAT, "ddim": json.dumps(header)}
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_bytes(path, safetensors.torch.save(plain, metadata))


def is_training(path: Path) -> bool:
    """Whether a file is one that :func:`write_training` wrote, by its header alone."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return (file.metadata() or {}).get("format") == _FORMAT
    except safetensors.SafetensorError:
        return False


def read_training(path: Path) -> TrainingFile:
    """Read a file that :func:`write_training` wrote.

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
        parts = json.loads(header)
        config, step, facts = parts["config"], int(parts["step"]), parts["facts"]
        if not (isinstance(config, dict) and isinstance(facts, dict)):
            raise TypeError("its parts are no objects")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its header is damaged: {error}") from None
    return TrainingFile(path, config, step, facts, tensors)
