"""The fields of a model, checked as it is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ddim.backends.names import BACKENDS
from ddim.backends.workers import worker_count
from ddim.base.errors import InputError, quoted, unknown
from ddim.denoisers.clipping import Clipping
from ddim.noise.schedule import Schedule

if TYPE_CHECKING:
    from ddim.model.model import Model

__all__ = ["check_fields"]


def check_fields(model: Model) -> None:
    """Refuse fields of another type, out of range, or that contradict each other.

    Raises:
        InputError: the first that is found.
    """
    if not isinstance(model.net, nn.Module):
        raise InputError(f"a model needs a torch.nn.Module, not a {type(model.net).__name__}")
    if not isinstance(model.schedule, Schedule):
        raise InputError(f"a model needs a ddim.Schedule, not a {type(model.schedule).__name__}")
    sizes = tuple(model.shape) if isinstance(model.shape, Sequence) else ()
    if not sizes or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise InputError(
            f"shape is that of one image, such as (3, 32, 32), not {quoted(model.shape)}"
        )
    if not isinstance(model.offset, int):
        raise InputError(f"offset is a whole number of levels, not {quoted(model.offset)}")
    if not (
        isinstance(model.data_range, Sequence)
        and len(model.data_range) == 2
        and all(isinstance(bound, int | float) for bound in model.data_range)
    ):
        raise InputError(
            f"data_range is two numbers, black and white, not {quoted(model.data_range)}"
        )
    if not (model.time_dtype is None or isinstance(model.time_dtype, torch.dtype)):
        raise InputError(
            f"time_dtype is a torch.dtype such as torch.long, not {quoted(model.time_dtype)}"
        )
    if not isinstance(model.classes, int | None) or not isinstance(model.null_label, int | None):
        raise InputError(
            f"classes and null_label are whole numbers, not {model.classes!r}, {model.null_label!r}"
        )
    if model.classes is not None and model.classes < 1:
        raise InputError(f"classes must be at least 1, not {model.classes}")
    for name in ("null_label", "labels_as"):
        if getattr(model, name) is not None and model.classes is None:
            raise InputError(f"{name} is for a class-conditional network: give classes too")
    if model.backend not in BACKENDS:
        raise unknown("backend", model.backend, BACKENDS)
    worker_count(torch.device("cpu"), model.workers)
    if not isinstance(model.clipping, Clipping | None):
        raise InputError(f"clipping is a ddim.Clipping, not {model.clipping!r}")
    if model.labels_as is not None and model.labels_as in (model.arguments or {}):
        raise InputError(
            f"{model.labels_as} is among the arguments: labels cannot come under that name"
        )
    for name, value in (model.arguments or {}).items():
        if isinstance(value, Tensor) and value.ndim and len(value) != 1:
            raise InputError(
                f"the argument {name} has {len(value)} rows: what differs between images is "
                f"given when they are drawn, condition={{{name!r}: tensor}}; what is the same "
                "for all has a first dimension of 1"
            )
    if model.time in ("lambda", "log-snr", "rho") and model.schedule.alpha[-1] == 0:
        raise InputError(
            f"the time {model.time!r} is infinite at the last level, where α = 0: make the "
            "schedule of the levels below it"
        )
