"""Images to latents and back, and between latents.

A codec is an encoder and a decoder that belong together. All but one are tableaux, run by the one
loop: the encoder of a reversible method is its table's inverse, exact to rounding for any network.
``implicit`` has one latent and DDIM itself for a decoder; its encoder solves every step of DDIM
for the step's input.
"""

from __future__ import annotations

import dataclasses

from ddim.base.errors import InputError, unknown
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Schedule
from ddim.samplers.methods.ddim import ddim
from ddim.samplers.methods.reversible import bdia, edict, obelm
from ddim.samplers.tableau import Row, Tableau

__all__ = ["CODECS", "decoder", "encoder", "tensors_of"]

CODECS = ("obelm", "ddim", "implicit", "edict", "bdia")
"""Codecs by name, the default first."""

_REVERSIBLE = {"obelm": obelm, "edict": edict, "bdia": bdia}


def tensors_of(codec: str) -> int:
    """How many tensors a codec's latent has."""
    _known(codec)
    return 2 if codec in _REVERSIBLE else 1


def decoder(schedule: Schedule, nodes: Nodes, codec: str = "obelm") -> Tableau:
    """The tableau from a codec's latent to the image, which is its first output.

    Args:
        schedule: the noise schedule.
        nodes: falling. For ``implicit`` the last node must be at least 1: the jump to the data
            cannot be inverted, so the image is taken for the state at the lowest noise.
        codec: see :data:`CODECS`.

    Raises:
        InputError: unknown codec, rising nodes, or too few of them.
    """
    _known(codec)
    if nodes[-1] > nodes[0]:
        raise InputError("the nodes of a codec fall, from the latent to the image")
    if codec in _REVERSIBLE:
        return _REVERSIBLE[codec](schedule, nodes, pair=True)
    if codec == "implicit" and nodes[-1] == 0:
        raise InputError("the implicit codec ends at node 1: the jump to node 0 has no inverse")
    return ddim(schedule, nodes)


def encoder(schedule: Schedule, nodes: Nodes, codec: str = "obelm") -> Tableau:
    """The tableau from an image to a codec's latent; ``implicit`` has none.

    Args:
        schedule: the noise schedule.
        nodes: falling, as for :func:`decoder`.
        codec: see :data:`CODECS`. ``ddim`` is the paper's equation 14, exact only in the limit of
            many steps.

    Raises:
        InputError: as for :func:`decoder`, and for ``implicit``.
    """
    decode = decoder(schedule, nodes, codec)
    if codec == "implicit":
        raise InputError("the implicit codec has no table for encoding: use solve_encoding")
    if codec == "ddim":
        return ddim(schedule, tuple(reversed(nodes)))
    # The inverse starts from two states, the newest first. The second is made from the image:
    # a copy for EDICT, whose two are at one level, else a step of DDIM towards the noise.
    (image, second), rows, returns = decode.inverse_parts()
    if codec == "edict":
        first = Row(second.level, second.at, second.k, states=((0, 1.0),))
    else:
        seen = schedule.level(max(image.k, 1))
        image = dataclasses.replace(image, at=seen)
        level = second.level
        first = Row(level, second.at, second.k, (), ((0, level.alpha),), ((0, level.sigma),))
    return Tableau(
        f"{codec} encoder",
        (image,),
        (first, *rows),
        returns,
        options=decode.options,
    )


def _known(codec: str) -> None:
    if codec not in CODECS:
        raise unknown("codec", codec, CODECS)
