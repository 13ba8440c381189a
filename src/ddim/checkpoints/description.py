"""What the configurations of a folder in diffusers' layout say, before its weights are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ddim.base.errors import InputError, quoted
from ddim.base.files import read_json
from ddim.base.records import in_file
from ddim.checkpoints.scheduler import read_scheduler
from ddim.checkpoints.shards import listing
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.nets.unet import UNetConfig
from ddim.noise.schedule import Schedule

__all__ = ["SCHEDULER", "Description", "describe"]

SCHEDULER = "scheduler_config.json"
_AVERAGING = (
    "decay",
    "min_decay",
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
    "inv_gamma",
    "power",
)
"""What diffusers' EMAModel adds to the configuration of the network that it averages."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What the configurations of a folder say, before any weights are read.

    Attributes:
        unet: the folder of the weights that were asked for.
        both: whether an average stands beside the raw weights.
        path: the network's configuration.
        config: what it says.
        schedule: the scheduler's noise.
        target: what the network predicts.
        clipping: what is done to x0.
    """

    unet: Path
    both: bool
    path: Path
    config: UNetConfig
    schedule: Schedule
    target: Target
    clipping: Clipping


def describe(folder: Path, weights: str = "ema") -> Description:
    """Read the configurations of a model folder, whose weights need not be there yet.

    Args:
        folder: as for :func:`ddim.checkpoints.diffusers.read_folder`.
        weights: the same.

    Raises:
        InputError: not a model folder, another kind of model, or configurations that contradict
            each other.
    """
    unet, both = _unet_folder(folder, weights)
    root = _root(folder, nested=unet != folder)
    _check_components(root / "model_index.json")
    # Weights alone, without a record of their own, are of the network beside them.
    path = unet / "config.json"
    if not path.exists():
        path = folder / "unet" / "config.json"
    config = _config(path)
    nested = unet != folder or root != folder
    scheduler = root / ("scheduler" if nested else "") / SCHEDULER
    schedule, target, clipping = read_scheduler(scheduler)
    _check_variance(config, path, scheduler)
    return Description(unet, both, path, config, schedule, target, clipping)


def _unet_folder(folder: Path, weights: str) -> tuple[Path, bool]:
    """The folder of the network that was asked for, and whether there are two.

    Raises:
        InputError: none, or an average alone where the raw weights were asked for.
    """
    raw, average = folder / "unet", folder / "unet_ema"
    averaged = average.is_dir() and any(average.iterdir())
    if not raw.is_dir() and averaged:
        if weights == "net":
            raise InputError(f"{folder} holds an average (unet_ema) and no raw weights (unet)")
        return average, False
    if not raw.is_dir():
        if not (folder / "config.json").exists():
            raise InputError(
                f"{folder} is not a model folder: it has no config.json{listing(folder)}"
            )
        return folder, False
    if not (raw / "config.json").exists():
        raise InputError(f"{folder} is not a model folder: it has no unet/config.json")
    return (average if averaged and weights == "ema" else raw), averaged


def _root(folder: Path, *, nested: bool) -> Path:
    """Where the scheduler is: in the folder, or one above, of a network or a checkpoint alone."""
    own = folder / ("scheduler" if nested else "") / SCHEDULER
    above = folder.resolve().parent
    return above if not own.exists() and (above / "scheduler" / SCHEDULER).exists() else folder


def _config(path: Path) -> UNetConfig:
    """The network's configuration, without what diffusers' EMAModel writes into it.

    Raises:
        InputError: another kind of network, or fields that are none or do not fit one another.
    """
    config = read_json(path)
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        kind = kind if isinstance(kind, str) else quoted(kind)
        raise InputError(f"{path}: a {kind:.200} cannot be loaded, only a UNet2DModel")
    with in_file(path):
        return UNetConfig.from_json({k: v for k, v in config.items() if k not in _AVERAGING})


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
