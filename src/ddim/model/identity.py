"""What makes a model that model, and no other: weights, schedule, target, conventions."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from torch import nn

from ddim.denoisers.conventions import Adapted
from ddim.denoisers.target import Target
from ddim.nets.unet import UNet
from ddim.noise.schedule import Schedule

__all__ = ["bare", "digest_of", "versions_of"]


def digest_of(net: nn.Module, network: nn.Module, schedule: Schedule, target: Target) -> str:
    """SHA-256 of all that decides the images, in hexadecimal; see :attr:`ddim.Model.identity`.

    Args:
        net: the network as it was given.
        network: that, under our conventions.
        schedule: the noise schedule.
        target: what is predicted.
    """
    digest, own = hashlib.sha256(target.name.encode()), bare(net)
    if isinstance(own, UNet):  # heads and time scale are not in the weights
        digest.update(json.dumps(own.config.to_json(), sort_keys=True).encode())
    # The last bits of float64 are the processor's own: exp and log differ there.
    for values in (schedule.alpha, schedule.sigma):
        digest.update(values.astype(np.float32).tobytes())
    # Parts of it may be compiled, too.
    state = {n.replace("_orig_mod.", ""): v for n, v in own.state_dict().items()}
    if isinstance(network, Adapted):
        digest.update(network.description.encode())
        state |= {f"arguments.{n}": v for n, v in network.named_buffers(recurse=False)}
    for name, value in sorted(state.items()):
        plain = value.detach().cpu()
        plain = plain.float() if plain.is_floating_point() else plain
        digest.update(f"{name} {tuple(plain.shape)}".encode())
        digest.update(plain.contiguous().numpy().tobytes())
    return digest.hexdigest()


def versions_of(network: nn.Module) -> tuple[tuple[int, int], ...]:
    """What is other after weights were replaced, or changed in place."""
    return tuple(
        (id(value), 0 if value.is_inference() else value._version)
        for value in network.state_dict(keep_vars=True).values()
    )


def bare(net: nn.Module) -> nn.Module:
    """The network within what ``torch.compile`` or a parallel wrapper of torch put around it."""
    if isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return bare(net.module)
    # By name, because the class is in a module that takes a second to import.
    inner = getattr(net, "_orig_mod", None) if type(net).__name__ == "OptimizedModule" else None
    return bare(inner) if isinstance(inner, nn.Module) else net
