"""A model made of any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ddim.base.errors import InputError
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.conventions import Adapted, Conventions
from ddim.denoisers.target import Target
from ddim.model.model import Model, bare
from ddim.nets.unet import UNet
from ddim.noise.schedule import Schedule

__all__ = ["Model"]


def Model(  # noqa: N802
    net: nn.Module,
    schedule: Schedule,
    target: Target | str,
    shape: tuple[int, ...],
    *,
    time: str = "index",
    offset: int = 0,
    data_range: tuple[float, float] = (-1.0, 1.0),
    arguments: Mapping[str, Any] | None = None,
    keep_variance: bool = True,
    time_dtype: torch.dtype | None = None,
    labels_as: str | None = None,
    classes: int | None = None,
    null_label: int | None = None,
    clipping: Clipping | None = None,
    name: str = "model",
    facts: Mapping[str, Any] | None = None,
) -> Model:
    """A model made of any network, each of whose habits is one option.

    The network is put into evaluation mode. It may return a tensor, a tuple that begins with one,
    or an object that has one as ``.sample``.

    =========================  ==================================================================
    ``time``                   what the network is given at node k of T
    =========================  ==================================================================
    ``index``                  k - 1, so 0 to T - 1
    ``one-based``              k
    ``fraction``               k/T
    ``fraction-from-zero``     (k - 1)/T: the index divided by T
    ``thousandths``            1000·k/T
    ``thousandths-from-zero``  1000·(k - 1)/T: improved-diffusion's rescaled times
    ``lambda``, ``log-snr``    log(α/σ), and twice that
    ``sigma``, ``rho``         σ, and σ/α
    =========================  ==================================================================

    Samplers with inner stages ask between the nodes: times follow k there, fractions included.

    Args:
        net: called as ``net(x, time)`` or ``net(x, time, labels)``, time of shape (N,).
        schedule: the noise schedule that it was trained with, on data of its own range.
        target: what it predicts: eps, x0, v or flow.
        shape: of one image, (C, H, W).
        time: see the table.
        offset: how many levels lower than usual its times lie: 1 where its first time means clean
            data, -1 where its first time means the level of node 2. A level without a time is
            left out, so that the model has fewer steps than the schedule.
        data_range: what black and white were when it was trained, such as (0, 1) or (-0.5, 0.5).
            Images in and out are in [-1, 1] all the same.
        arguments: given to the network by name at every call: numbers, text and tensors, also
            within lists and dictionaries. Tensors move with it and must fit any batch; what
            differs between images is a class, as docs/conventions.md shows.
        keep_variance: of a network that returns twice the channels: whether the second half
            interpolates a learned variance (Nichol and Dhariwal 2021, equation 15). False drops it.
        time_dtype: of the times; None for int64 where they are whole and floating point elsewhere.
            A whole type refuses times between nodes.
        labels_as: the argument by which a class-conditional network takes its labels; None if
            they are its third.
        classes: number of classes of a class-conditional network.
        null_label: its label for 'no class', which guidance needs.
        clipping: what is done to the predicted x0 by default; nothing if None.
        name: what outputs call it.
        facts: what is known of the training.

    Returns:
        a :class:`~ddim.Model`, for data in [-1, 1].

    Raises:
        InputError: not a module, unknown names, or options that contradict each other.

    Example:
        >>> import ddim
        >>> net = ddim.load("mnist").net  # predicts eps at k - 1
        >>> model = Model(net, ddim.Schedule.linear(500, scaled=True), "eps", (1, 28, 28))
        >>> ddim.sample(model, n=1, steps=2).shape
        torch.Size([1, 1, 28, 28])
    """
    if not isinstance(net, nn.Module):
        raise InputError(f"a model needs a torch.nn.Module, not a {type(net).__name__}")
    if not isinstance(schedule, Schedule):
        raise InputError(f"a model needs a ddim.Schedule, not a {type(schedule).__name__}")
    sizes = tuple(shape)
    if not sizes or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise InputError(f"shape is that of one image, such as (3, 32, 32), not {shape!r}")
    if not isinstance(offset, int):
        raise InputError(f"offset is a whole number of levels, not {offset!r}")
    if not isinstance(data_range, Sequence):
        raise InputError(f"data_range is two numbers, black and white, not {data_range!r}")
    if not (time_dtype is None or isinstance(time_dtype, torch.dtype)):
        raise InputError(f"time_dtype is a torch.dtype such as torch.long, not {time_dtype!r}")
    if classes is not None and classes < 1:
        raise InputError(f"classes must be at least 1, not {classes}")
    if null_label is not None and classes is None:
        raise InputError("null_label is for a class-conditional network: give classes too")
    if labels_as is not None and classes is None:
        raise InputError("labels_as is for a class-conditional network: give classes too")
    if labels_as is not None and labels_as in (arguments or {}):
        raise InputError(f"{labels_as} is among the arguments: labels cannot come under that name")
    target = Target.named(target)
    habits = Conventions(time, offset, tuple(data_range), keep_variance, time_dtype, labels_as)
    if time in ("lambda", "log-snr", "rho") and schedule.alpha[-1] == 0:
        raise InputError(
            f"the time {time!r} is infinite at the last level, where α = 0: make the schedule of "
            "the levels below it"
        )
    # A network of our own, used as we use it, stays what it is: fast, and fit to be saved.
    plain = isinstance(bare(net), UNet) and habits == Conventions() and not arguments
    return Model(
        net.eval() if plain else Adapted(net, schedule, target, habits, arguments).eval(),
        habits.outside(schedule),
        target,
        sizes,
        classes=classes,
        null_label=null_label,
        clipping=clipping or Clipping(),
        name=name,
        facts=dict(facts or {}),
    )
