"""The file of a training run, in its plain parts: a header and tensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddim.base.errors import InputError
from ddim.base.records import checked, in_file, parse_json, record
from ddim.checkpoints.record import Facts, Loaded
from ddim.checkpoints.tensors import metadata_of, read_safetensors, write_safetensors
from ddim.checkpoints.weights import fill, unfilled
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.schedule import Schedule

__all__ = ["TrainingFile", "is_training", "read_training", "write_training"]

_FORMAT = "ddim-training-1"


@dataclasses.dataclass(frozen=True)
class _Header:
    """The JSON that stands beside the tensors."""

    config: dict[str, Any]
    step: int
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Made:
    """Of the facts, those that make the model."""

    unet: dict[str, Any]
    schedule: dict[str, Any]
    target: str
    classes: int | None


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
        names = [field.name for field in dataclasses.fields(_Made)]
        with in_file(f"{self.path}: its header is damaged"):
            made = record(_Made, {key: facts.pop(key) for key in names if key in facts})
            config = UNetConfig.from_json(made.unet)
            schedule = Schedule.from_spec(made.schedule)
            target, classes = Target.named(made.target), made.classes
            known = Facts.of(facts)
            dropout = checked("label_dropout", self.config.get("label_dropout", 0.1), float)
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
            classes if dropout else None,
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
    write_safetensors(path, tensors, metadata)


def is_training(path: Path) -> bool:
    """Whether a file is one that :func:`write_training` wrote, by its header alone."""
    return (metadata_of(path) or {}).get("format") == _FORMAT


def read_training(path: Path) -> TrainingFile:
    """Read a file that :func:`write_training` wrote.

    Raises:
        InputError: not a safetensors file, a truncated one, or one of something else.
    """
    if not Path(path).exists():
        raise InputError(f"there is no checkpoint {path}")
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != _FORMAT:
        raise InputError(f"{path} is not a training checkpoint of ddim")
    with in_file(f"{path}: its header is damaged"):
        header = record(_Header, parse_json(metadata.get("ddim", ""), "it"))
        if header.step < 0:
            raise InputError(f"step {header.step} is negative")
    return TrainingFile(path, header.config, header.step, header.facts, tensors)
