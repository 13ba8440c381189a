"""Open models: shipped ones, folders, training runs and the checkpoints of other programs."""

from __future__ import annotations

import logging
from importlib import resources
from pathlib import Path

import torch

from ddim.base.device import pick_device
from ddim.base.errors import InputError, unknown
from ddim.checkpoints.calibration import CALIBRATED
from ddim.checkpoints.diffusers import read_folder
from ddim.checkpoints.foreign import read_foreign
from ddim.checkpoints.record import Hints
from ddim.checkpoints.weights import fill, unfilled
from ddim.denoisers.target import Target
from ddim.model.model import Model
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.schedule import Schedule
from ddim.train.checkpoint import is_checkpoint, read_checkpoint

__all__ = ["load", "shipped"]

log = logging.getLogger("ddim")


def shipped() -> list[str]:
    """The names of the models that come with the package."""
    root = resources.files("ddim") / "shipped"
    return sorted(p.name for p in root.iterdir() if (p / "model_index.json").is_file())


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    weights: str = "ema",
    schedule: Schedule | None = None,
    hints: Hints | None = None,
) -> Model:
    """Open a model.

    What a checkpoint of another program leaves open and nobody told is assumed, listed in
    ``facts["assumed"]`` and logged as a warning.

    Args:
        source: the name of a shipped model, a model folder (diffusers' layout), a training run's
            folder, a training checkpoint, or a checkpoint of another program (official DDIM and
            DDPM, improved-diffusion, guided-diffusion, denoising-diffusion-pytorch, the MNIST
            notebook), whose layout is told from its tensors.
        device: where to put it; ``auto`` is CUDA where there is one, else MPS, else the CPU.
        weights: of a checkpoint, ``ema`` or ``net`` (the raw ones).
        schedule: the noise schedule of another program's checkpoint, which seldom holds one.
        hints: what else such a checkpoint does not say.

    Returns:
        The model in evaluation mode.

    Raises:
        InputError: nothing of that name, no such device, not a model, a damaged one, code in a
            pickle; a schedule or hints for a model that has its own.

    Example:
        >>> load("mnist").shape
        (1, 28, 28)
    """
    if weights not in ("ema", "net"):
        raise unknown("weights", weights, ("ema", "net"))
    path = Path(source)
    if str(source) not in shipped() and path.is_file() and not is_checkpoint(path):
        model = _from_foreign(path, weights, schedule, hints)
    elif schedule is not None or hints is not None:
        raise InputError(f"{source} records its own schedule and network: give no other")
    elif str(source) in shipped():
        with resources.as_file(resources.files("ddim") / "shipped" / str(source)) as folder:
            model = _from_folder(folder, weights)
    elif not path.exists():
        raise InputError(f"{unknown('model', str(source), shipped())} and there is no such path")
    elif path.is_file():
        model = _from_checkpoint(path, weights)
    elif (path / "checkpoint.safetensors").exists():
        model = _from_checkpoint(path / "checkpoint.safetensors", weights)
    elif (path / "metrics.jsonl").exists() and not (path / "model_index.json").exists():
        raise InputError(f"{path} is a training run that has saved no checkpoint yet")
    else:
        model = _from_folder(path, weights)
    model.net.requires_grad_(False).eval()
    model.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model.to(pick_device(device))


def _from_folder(folder: Path, weights: str) -> Model:
    parts = read_folder(folder, weights)
    facts = parts.facts
    config = parts.net.config
    classes = facts.get("classes", config.num_class_embeds)
    return Model(
        parts.net,
        parts.schedule,
        parts.target,
        (config.in_channels, config.sample_size, config.sample_size),
        classes=classes if config.has_classes else None,
        null_label=facts.get("null_label"),
        clipping=parts.clipping,
        name=str(facts.get("name", folder.resolve().name)),
        facts=facts,
        calibration=folder / CALIBRATED,
    )


def _from_foreign(
    path: Path, weights: str, schedule: Schedule | None, hints: Hints | None
) -> Model:
    loaded = read_foreign(path, weights, schedule, hints)
    if loaded.facts["assumed"]:
        log.warning("%s: assumed %s", path, "; ".join(loaded.facts["assumed"]))
    return Model(
        loaded.net,
        loaded.schedule,
        loaded.target,
        loaded.shape,
        classes=loaded.classes,
        clipping=loaded.clipping,
        name=path.stem,
        facts=loaded.facts,
        calibration=path.with_name(f"{path.name}.{CALIBRATED}"),
    )


def _from_checkpoint(path: Path, weights: str) -> Model:
    checkpoint = read_checkpoint(path)
    facts = checkpoint.facts
    try:
        config = UNetConfig.from_json(facts["unet"])
        schedule, target = Schedule.from_spec(facts["schedule"]), Target.named(facts["target"])
        classes = facts["classes"]
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its header is damaged: {error}") from None
    net = unfilled(lambda: UNet(config))
    fill(net, checkpoint.weights(weights), path, f"its own record, as {weights} weights")
    return Model(
        net,
        schedule,
        target,
        (config.in_channels, config.sample_size, config.sample_size),
        classes=classes,
        null_label=classes if checkpoint.config.label_dropout else None,
        name=path.resolve().parent.name,
        facts=facts,
        calibration=path.parent / CALIBRATED,
    )
