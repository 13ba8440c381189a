"""Open models: shipped ones, folders, training runs and the checkpoints of other programs."""

from __future__ import annotations

import dataclasses
import logging
from importlib import resources
from pathlib import Path

import torch
from torch import nn

from ddim.base.code import is_named, load_named
from ddim.base.device import pick_device
from ddim.base.errors import InputError, unknown
from ddim.checkpoints.calibration import CALIBRATED
from ddim.checkpoints.diffusers import read_folder
from ddim.checkpoints.foreign import read_foreign
from ddim.checkpoints.hub import fetch, in_words_of
from ddim.checkpoints.names import HubName
from ddim.checkpoints.record import Hints, Loaded
from ddim.checkpoints.training import is_training, read_training
from ddim.model.model import Model
from ddim.model.names import hub_name, shipped
from ddim.noise.schedule import Schedule

__all__ = ["load", "shipped"]

log = logging.getLogger("ddim")


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    weights: str = "ema",
    schedule: Schedule | None = None,
    hints: Hints | None = None,
    null_label: int | None = None,
) -> Model:
    """Open a model.

    What a checkpoint of another program leaves open and nobody told is assumed, listed in
    ``facts.assumed`` and logged as a warning.

    Args:
        source: ``FILE.py:NAME``, a model or a function that makes one, whose file is run; the name
            of a shipped model, a model folder (diffusers' layout), a training run's
            folder, a training checkpoint, or a checkpoint of another program (official DDIM and
            DDPM, improved-diffusion, guided-diffusion, denoising-diffusion-pytorch, the MNIST
            notebook), whose layout is told from its tensors. Where there is no such path,
            ``owner/name`` or ``owner/name@revision`` is a model on the Hugging Face Hub.
        device: where to put it; ``auto`` is CUDA where there is one, else MPS, else the CPU.
        weights: of a checkpoint, ``ema`` or ``net`` (the raw ones).
        schedule: the noise schedule of another program's checkpoint, which seldom holds one.
        hints: what else such a checkpoint does not say.
        null_label: the label for 'no class' of a class-conditional model whose file does not say.

    Returns:
        The model in evaluation mode.

    Raises:
        InputError: nothing of that name, no such device, not a model, a damaged one, code in a
            pickle; a schedule or hints for a model that has its own; as
            :func:`ddim.checkpoints.hub.fetch`.
        RunError: the Hub cannot be reached.

    Example:
        >>> load("mnist").shape
        (1, 28, 28)
    """
    own_schedule = InputError(f"{source} records its own schedule and network: give no other")
    if isinstance(source, str) and is_named(source):
        own = _own_model(source)
        if schedule is not None or hints is not None or weights != "ema":
            raise own_schedule
        own = own if null_label is None else own.replace(null_label=null_label)
        return own.to(pick_device(device))
    path, remote = Path(source), None
    if str(source) in shipped():
        path = Path(str(resources.files("ddim") / "shipped" / str(source)))
    elif not path.exists():
        remote = hub_name(source)
    if weights not in ("ema", "net"):
        raise unknown("weights", weights, ("ema", "net"))
    if remote is not None:
        if schedule is not None or hints is not None:
            raise own_schedule
        device = pick_device(device)
        return _from_hub(remote, weights, null_label).to(device)
    if path.is_file() and not is_training(path):
        loaded, beside = read_foreign(path, weights, schedule, hints), f"{path.name}.{CALIBRATED}"
        if loaded.facts.assumed:
            log.warning("%s: assumed %s", path, "; ".join(loaded.facts.assumed))
    elif schedule is not None or hints is not None:
        raise own_schedule
    elif path.is_file():
        loaded, beside = read_training(path).model(weights), CALIBRATED
    elif (path / "checkpoint.safetensors").exists():
        path = path / "checkpoint.safetensors"
        loaded, beside = read_training(path).model(weights), CALIBRATED
    elif (path / "metrics.jsonl").exists() and not (path / "model_index.json").exists():
        raise InputError(f"{path} is a training run that has saved no checkpoint yet")
    else:
        loaded, beside = read_folder(path, weights), CALIBRATED
    folder = path if path.is_dir() else path.parent
    name = path.resolve().name if path.is_dir() else path.stem
    model = _model(loaded, loaded.name or name, folder / beside, null_label)
    return model.to(pick_device(device))


def _model(loaded: Loaded, name: str, calibration: Path, null_label: int | None) -> Model:
    """What any reader made, as a model that is ready to draw from."""
    loaded.net.requires_grad_(False)
    loaded.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Model(
        loaded.net,
        loaded.schedule,
        loaded.target,
        loaded.shape,
        classes=loaded.classes,
        null_label=loaded.null_label if null_label is None else null_label,
        clipping=loaded.clipping,
        name=name,
        facts=loaded.facts,
        calibration=calibration,
    )


def _from_hub(name: HubName, weights: str, null_label: int | None) -> Model:
    """A model folder of the Hub; name and commit go into every output."""
    snapshot = fetch(name, weights)
    with in_words_of(snapshot):
        loaded = read_folder(snapshot.folder, weights)
    origin = {"name": name.repo, "commit": snapshot.commit}
    facts = dataclasses.replace(loaded.facts, more={**loaded.facts.more, "hub": origin})
    loaded = dataclasses.replace(loaded, facts=facts)
    return _model(loaded, str(snapshot), snapshot.folder / CALIBRATED, null_label)


def _own_model(source: str) -> Model:
    """What the user's file has under a name: a model, or a function that makes one."""
    found = load_named(source).value
    if callable(found) and not isinstance(found, Model | nn.Module):
        found = found()
    if not isinstance(found, Model):
        raise InputError(
            f"{source} is a {type(found).__name__}, not a ddim.Model or a function that makes one"
        )
    return found
