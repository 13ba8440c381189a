"""Whether the processes of a job are about to draw the same images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddim.base.ranks import here
from ddim.model.model import Model

__all__ = ["agree_on"]


def agree_on(model: Model, **facts: object) -> None:
    """Refuse processes with other models, or with other facts.

    Args:
        model: the model.
        facts: by what they are called, with spaces for underscores; tensors, and what holds some,
            are compared by checksums.

    Raises:
        InputError: the first thing in which they differ.
    """
    ranks = here()
    if ranks.count == 1:
        return
    own = {
        "the model": f"{model.name} ({model.identity[:12]})",
        "the kind of device": model.device.type,
        "the precision": str(model.dtype),
        "the back end": model.runs_on,
    }
    ranks.agree({**own, **{name.replace("_", " "): _short(fact) for name, fact in facts.items()}})


def _short(value: object) -> object:
    """What is short as it is, and a checksum of the rest."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()[:12]


def _add(digest: Any, value: object) -> None:
    if isinstance(value, Tensor):
        digest.update(repr((tuple(value.shape), value.dtype)).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _add(digest, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        for key in sorted(value):
            digest.update(repr(key).encode())
            _add(digest, value[key])
    elif isinstance(value, list | tuple | range):
        digest.update(f"{len(value)}".encode())
        for part in value:
            _add(digest, part)
    else:
        digest.update(f"{value!r};".encode())
