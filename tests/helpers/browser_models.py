"""A model whose network takes its time, for a server that is to be busy."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

import ddim

PAUSE = 0.05
"""Seconds of a network call."""


class Slow(nn.Module):
    """Says that all of the state is noise, after a pause."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time.sleep(PAUSE)
        return x * self.share


def slow_model() -> ddim.Model:
    """The model, of 8 x 8 pixels and T = 400: twenty seconds in all steps."""
    schedule = ddim.Schedule.linear(400, scaled=True)
    return ddim.Model(Slow().eval(), schedule, "eps", shape=(1, 8, 8), name="slow")
