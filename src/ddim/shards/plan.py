"""What a set of shards will be: its manifest, and what it takes to draw it."""

from __future__ import annotations

import dataclasses
import hashlib
import platform

import torch
from torch import Tensor

from ddim import __version__
from ddim.base.errors import InputError
from ddim.data.manifest import Manifest
from ddim.model.condition import Condition
from ddim.model.drawing import pick_batch_size
from ddim.model.model import Model
from ddim.samplers.sampler import Sampler
from ddim.samplers.tableau import Tableau

__all__ = ["Job", "plan"]


@dataclasses.dataclass(frozen=True)
class Job:
    """What draws the images of a set."""

    model: Model
    tableau: Tableau
    sampler: str
    condition: Condition
    seed: int
    batch_size: int

    def rows(self, images: range) -> Condition:
        """The condition of some images of a set, which is never made for all of them."""
        given = self.condition
        if given.labels is not None:
            turn = given.labels
            given = given.replace(labels=[turn[i % len(turn)] for i in images])
        tensors = {name: value[images.start : images.stop] for name, value in given.tensors.items()}
        return given.replace(tensors=tensors)


def plan(
    model: Model,
    n: int,
    sampler: Sampler,
    seed: int,
    condition: Condition,
    batch_size: int | None,
    shard_size: int,
    shard_format: str,
) -> tuple[Manifest, Job]:
    """What a set will be, and what it takes to draw it; the arguments are those of ``draw``.

    Raises:
        InputError: a condition that is not the model's, images that are none, no such format.
    """
    if len(model.shape) != 3 or model.shape[0] not in (1, 3, 4):
        raise InputError(f"shards hold images, and {model.name} makes {tuple(model.shape)}")
    given = condition
    if len(given.labels or ()) > n:
        raise InputError(f"{len(given.labels or ())} labels were given for {n} images")
    if given.labels is None and model.classes is not None:
        given = given.replace(labels=range(model.classes))
    given.rows(n if given.tensors else len(given.labels or (0,))).check(model)
    size = pick_batch_size(model, batch_size)
    tableau = model.tableau(sampler)
    made_by = {
        "model": model.identity,
        "sampler": str(model.resolve(sampler)),
        "tableau": tableau.digest,
        "method": sampler.checksum,
        "seed": seed,
        "labels": None if given.labels is None else list(given.labels),
        "tensors": {name: _digest(value) for name, value in sorted(given.tensors.items())},
        "null": {name: _digest(value) for name, value in sorted(given.null.items())},
        "guidance": given.guidance,
        "rescale": given.rescale,
        "clip": given.clip,
        "batch_size": size,
        "backend": model.runs_on,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    # A label for 'none' comes after the classes, and is one of the set where images have it.
    classes = None if given.labels is None else max(model.classes or 0, max(given.labels) + 1)
    shape = tuple(model.shape)
    manifest = Manifest(n, shard_size, shard_format, shape, classes, made_by, _built_with(model))
    return manifest, Job(model, tableau, f"{sampler}", given, seed, size)


def _built_with(model: Model) -> dict[str, str]:
    """What decides the last bits beside the model: versions, and what computes."""
    device = model.device
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"ddim": __version__, "torch": torch.__version__, "device": kind}


def _digest(value: Tensor) -> str:
    plain = value.detach().cpu().contiguous()
    found = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}".encode())
    found.update(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return found.hexdigest()
