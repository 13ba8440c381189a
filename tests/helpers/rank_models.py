"""Models for jobs of several processes, as ``FILE.py:NAME``, and features for them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import nn

import ddim
from tiny import tiny_unet

RANK = int(os.environ.get("RANK", "0"))
SCHEDULE = ddim.Schedule.linear(40)
SHAPE = (1, 8, 8)


def plain() -> ddim.Model:
    return ddim.Model(tiny_unet(), SCHEDULE, "eps", SHAPE, name="plain")


def classes() -> ddim.Model:
    net = tiny_unet(10)
    return ddim.Model(net, SCHEDULE, "eps", SHAPE, classes=10, null_label=10, name="classes")


def differs() -> ddim.Model:
    return ddim.Model(tiny_unet(seed=RANK), SCHEDULE, "eps", SHAPE, name="differs")


class Layer(nn.Module):
    """A user's network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.linspace(-0.2, 0.3, 9).view(1, 1, 3, 3))
            self.conv.bias.fill_(0.1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(x)) + 0.001 * t[:, None, None, None]


class Remembers(Layer):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x, t) + 0.01 * self.calls


class Breaks(Layer):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if RANK == 1:
            raise ValueError("this network is broken")
        return super().forward(x, t)


class Large(Layer):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if RANK == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x, t)


class Dies(Layer):
    """Kills process 1 at the third step of another cell than the first, if a file says so."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        flag = Path("kill")
        if RANK == 1 and int(t[0]) == 12 and flag.exists():
            flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x, t)


def _of(kind: type[nn.Module]) -> ddim.Model:
    return ddim.Model(kind(), SCHEDULE, "eps", SHAPE, name=kind.__name__.lower())


def own() -> ddim.Model:
    return _of(Layer)


def remembers() -> ddim.Model:
    return _of(Remembers)


def breaks() -> ddim.Model:
    return _of(Breaks)


def large() -> ddim.Model:
    return _of(Large)


def dies() -> ddim.Model:
    return _of(Dies)


def features(images: torch.Tensor) -> torch.Tensor:
    """(N, 8): the mean of each row."""
    return images.mean(dim=(1, 3))
