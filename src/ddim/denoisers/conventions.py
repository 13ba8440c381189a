"""Networks with other conventions: of the time, of the data's range, of arguments and outputs.

A small module around such a network takes t = k - 1 and data in [-1, 1] from outside. Samplers,
codecs and losses then know nothing of the conventions.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ddim.base.errors import InputError, quoted, unknown
from ddim.denoisers.network import ask
from ddim.denoisers.target import Target
from ddim.noise.schedule import Schedule

__all__ = ["TIMES", "WHOLE_TIMES", "Adapted", "Conventions"]

TIMES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "index": lambda t, T: t,
    "one-based": lambda t, T: t + 1,
    "fraction": lambda t, T: (t + 1) / T,
    "fraction-from-zero": lambda t, T: t / T,
    "thousandths": lambda t, T: 1000 * (t + 1) / T,
    "thousandths-from-zero": lambda t, T: 1000 * t / T,
}
"""What a network is given as its time at node k = t + 1 of T."""

LEVEL_TIMES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "lambda": lambda alpha, sigma: (alpha / sigma).log(),
    "log-snr": lambda alpha, sigma: 2 * (alpha / sigma).log(),
    "sigma": lambda alpha, sigma: sigma,
    "rho": lambda alpha, sigma: sigma / alpha,
}
"""The same for networks that are told the noise level itself."""

PLAIN = (int, float, complex, str, bytes, np.generic, torch.dtype, torch.device, enum.Enum)
"""What an argument may be beside a tensor: what is written out whole, and alike everywhere."""

WHOLE_TIMES = ("index", "one-based")
"""Those that are whole numbers, as a table of embeddings needs."""


@dataclasses.dataclass(frozen=True)
class Conventions:
    """The conventions of a network; :class:`ddim.Model` says what each means.

    Raises:
        InputError: unknown names, an empty range, or choices that contradict each other.
    """

    time: str = "index"
    offset: int = 0
    data_range: tuple[float, ...] = (-1.0, 1.0)
    keep_variance: bool = True
    time_dtype: torch.dtype | None = None
    labels_as: str | None = None

    def __post_init__(self) -> None:
        if self.time not in TIMES and self.time not in LEVEL_TIMES:
            raise unknown("time", self.time, [*TIMES, *LEVEL_TIMES])
        if self.offset and self.time in LEVEL_TIMES:
            raise InputError(f"an offset means nothing to a network that is told {self.time}")
        if len(self.data_range) != 2:
            raise InputError(f"a data range is two numbers, not {quoted(self.data_range)}")
        low, high = self.data_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"a data range is two finite numbers that rise, not {low}, {high}")
        if self.whole and self.time not in WHOLE_TIMES:
            raise InputError(
                f"the time {quoted(self.time)} is no whole number: {self.time_dtype} loses it"
            )

    @property
    def whole(self) -> bool:
        """Whether the network takes whole times only."""
        return self.time_dtype is not None and not self.time_dtype.is_floating_point

    @property
    def scale(self) -> float:
        """Half the width of the data's range."""
        return (self.data_range[1] - self.data_range[0]) / 2

    @property
    def centre(self) -> float:
        """The middle of the data's range."""
        return (self.data_range[1] + self.data_range[0]) / 2

    def outside(self, schedule: Schedule) -> Schedule:
        """The schedule as it is for data in [-1, 1] and for t = k - 1.

        With data y = m·x0 + c the network's states are α·y + σ·ε = m·(α·x0 + (σ/m)·ε) + α·c, so
        that σ becomes σ/m. The factor m is the same at every level, so every step of every
        sampler is exactly what it was; what sampling starts from is told of m
        (:attr:`ddim.Level.spread`). Levels for which the network has no time are left out.

        Raises:
            InputError: an offset that leaves no level.
        """
        if abs(self.offset) >= schedule.T:
            raise InputError(
                f"an offset of {self.offset} leaves none of {schedule.T} levels to a network"
            )
        if self.offset:
            first, last = max(1, 1 - self.offset), schedule.T - max(0, self.offset)
            kept = [0, *range(first, last + 1)]
            schedule = Schedule.from_alpha_sigma(schedule.alpha[kept], schedule.sigma[kept])
        if self.scale == 1:
            return schedule
        return Schedule.from_alpha_sigma(schedule.alpha, schedule.sigma / self.scale, self.scale)


class Adapted(nn.Module):
    """A network of other conventions, called as ``net(x, t)`` or ``net(x, t, labels)``.

    Args:
        net: the network.
        schedule: as it was trained, before :meth:`Conventions.outside`.
        target: what it predicts.
        conventions: its own.
        arguments: given to it by name at every call: numbers, text and tensors, also within
            lists and dictionaries; tensors move with it.

    Raises:
        InputError: arguments that are other objects.
    """

    beyond_diffusers = ("conventions of its own for time, data range or arguments",)

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        target: Target,
        conventions: Conventions,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.target, self.conventions = net, target, conventions
        if next(net.parameters(), None) is None:  # a model is where its parameters are
            place = next((buffer.device for buffer in net.buffers()), None)
            self.anchor = nn.Parameter(torch.empty(0, device=place), requires_grad=False)
        self.times = schedule.T
        self.schedule = conventions.outside(schedule)
        leaves, self.arguments = pytree.tree_flatten(dict(sorted((arguments or {}).items())))
        # Tensors move with the network.
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self.register_buffer(f"argument_{i}", leaf)
        for leaf in self.leaves:
            if not (leaf is None or isinstance(leaf, PLAIN)):
                raise InputError(
                    "arguments are numbers, text and tensors, alone or in lists and dictionaries: "
                    f"give a {type(leaf).__name__} to a module of your own that calls the network"
                )
        self._tables: dict[torch.device, tuple[Tensor, ...]] = {}

    @property
    def description(self) -> str:
        """What decides the output beside weights and tensors, for the model's identity."""
        if self.conventions == Conventions() and not self.leaves:
            return ""
        return repr((self.conventions, self.leaves, str(self.arguments), self.times))

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, **condition: Tensor
    ) -> Tensor:
        """The output for a state with data in [-1, 1].

        Args:
            x: states, shape (N, C, *).
            t: k - 1 of each, shape (N,); whole, or between nodes.
            labels: class indices, shape (N,), for a class-conditional network.
            condition: tensors for the network's arguments of these names, a row for each state.

        Returns:
            the target for data in [-1, 1], shape (N, C, *), or (N, 2C, *) with a variance.

        Raises:
            InputError: a time between nodes for a network that takes whole ones only, or an
                output that is not a tensor of the right shape.
        """
        scale, centre = self.conventions.scale, self.conventions.centre
        if scale == 1 and centre == 0:
            return self.ask(x, t, labels, condition)
        alpha, sigma = (part.view(-1, *(1,) * (x.ndim - 1)).to(x.dtype) for part in self.level(t))
        seen = scale * x + alpha * centre
        output = self.ask(seen, t, labels, condition)
        output, variance = output[:, : x.shape[1]], output[:, x.shape[1] :]
        if self.target is Target.X0:
            output = (output - centre) / scale
        elif self.target is not Target.EPS:  # ε is the same ε outside
            p, q = self.target.coefficients(alpha, scale * sigma)
            d = alpha * q - scale * sigma * p
            x0 = ((q * seen - scale * sigma * output) / d - centre) / scale
            output = self.target.of(x0, (alpha * output - p * seen) / d, alpha, sigma)
        return torch.cat([output, variance], dim=1)

    def ask(
        self,
        seen: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """What the network says to a state as it was trained on, at t = k - 1.

        Returns:
            shape of ``seen``, or twice its channels with a variance.
        """
        return self.call(seen, self.time(t, seen.dtype), labels, condition)

    def call(
        self,
        seen: Tensor,
        time: Tensor,
        labels: Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """What :meth:`ask` returns, for times of the network's own, as :meth:`time` makes them."""
        given = [seen, time]
        leaves = [getattr(self, f"argument_{i}", leaf) for i, leaf in enumerate(self.leaves)]
        arguments = pytree.tree_unflatten(leaves, self.arguments)
        if labels is not None and self.conventions.labels_as is None:
            given.append(labels)
        elif labels is not None:
            arguments[self.conventions.labels_as] = labels
        output = ask(self.net, *given, **arguments, **(condition or {}))
        return output if self.conventions.keep_variance else output[:, : seen.shape[1]]

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) of the outside schedule at t = k - 1, float64, the shape of t.

        Between nodes as :meth:`~ddim.Schedule.level_at` has them: log α is linear in k.
        """
        alpha, sigma, log_alpha, lam = self._table(t.device)
        below = t.long().clamp(0, len(alpha) - 1)
        if not t.is_floating_point():
            return alpha[below], sigma[below]
        above = (below + 1).clamp(max=len(alpha) - 1)
        share = t.double() - below
        log = torch.lerp(log_alpha[below], log_alpha[above], share)
        if self.schedule.variance_preserving:
            noise = (-torch.expm1(2 * log)).sqrt()
        else:
            noise = (log - torch.lerp(lam[below], lam[above], share)).exp()
        whole = share == 0  # where α may be 0, and its logarithm infinite
        return torch.where(whole, alpha[below], log.exp()), torch.where(whole, sigma[below], noise)

    def time(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """What the network is told at t = k - 1, for states of that dtype; the shape of t."""
        own = self.conventions
        if t.is_floating_point() and own.whole:
            raise InputError(
                "this network takes whole times only: use a method without inner stages, or "
                "inner='node'"
            )
        if own.time in LEVEL_TIMES:
            alpha, sigma = self.level(t)
            time = LEVEL_TIMES[own.time](alpha, own.scale * sigma)
        else:
            exact = t if own.time in WHOLE_TIMES else t.double()
            time = TIMES[own.time](exact + max(own.offset, 0), self.times)
        if own.time_dtype is not None:
            return time.to(own.time_dtype)
        if not time.is_floating_point():
            return time
        return time.to(torch.float64 if dtype is torch.float64 else torch.float32)

    def _table(self, device: torch.device) -> tuple[Tensor, ...]:
        # Not buffers, which a change of precision would round.
        if device not in self._tables:
            with np.errstate(divide="ignore"):
                log_alpha = np.log(self.schedule.alpha)
            columns = (self.schedule.alpha, self.schedule.sigma, log_alpha, self.schedule.lam)
            self._tables[device] = tuple(
                torch.from_numpy(column[1:].copy()).to(device) for column in columns
            )
        return self._tables[device]
