"""A loaded model: network, schedule, target, and what the data was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddim.base.errors import InputError
from ddim.checkpoints.diffusers import write_folder
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.guidance import Guided
from ddim.denoisers.network import NetworkDenoiser
from ddim.denoisers.prediction import Denoiser
from ddim.denoisers.target import Target
from ddim.nets.unet import UNet
from ddim.noise.schedule import Schedule

__all__ = ["Model", "bare"]


@dataclasses.dataclass(frozen=True)
class Model:
    """A network and what is needed to sample it.

    Attributes:
        net: called as ``net(x, t)``, or ``net(x, t, labels)`` where ``classes`` is set; in
            evaluation mode, where that makes a difference.
        schedule: the noise schedule that it was trained with.
        target: what it predicts, or its name.
        shape: of one image, (C, H, W) for a UNet.
        classes: number of classes, or None.
        null_label: the label for 'no class', which guidance needs; or None.
        clipping: what is done to the predicted x0 by default.
        name: what outputs call it.
        facts: what is known of the training.
        calibration: the file where its calibration is or will be kept; None for a model that was
            not opened from a file.

    Raises:
        InputError: an unknown target, or a network in training mode whose dropout or batch
            normalisation would make every call another one.
    """

    net: nn.Module
    schedule: Schedule
    target: Target
    shape: tuple[int, ...]
    classes: int | None = None
    null_label: int | None = None
    clipping: Clipping = dataclasses.field(default_factory=Clipping)
    name: str = "model"
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    calibration: Path | None = None
    _known: dict[str, Any] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", Target.named(self.target))
        restless = nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm
        for name, module in self.net.named_modules():
            if module.training and isinstance(module, restless) and getattr(module, "p", 1):
                raise InputError(
                    f"the network is in training mode, where {name or type(module).__name__} makes "
                    "every call another one: call net.eval() first"
                )

    @property
    def device(self) -> torch.device:
        """Where the network is; the CPU for one without parameters."""
        parameter = next(self.net.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest of the network's floating-point types; float32 for one without any."""
        found = {p.dtype for p in self.net.parameters() if p.is_floating_point()}
        return max(found, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)

    @property
    def identity(self) -> str:
        """SHA-256 of what decides the images: weights, schedule and target, in hexadecimal.

        The same on every machine and device, in every precision that holds the weights whole, and
        of a network before and after ``torch.compile``. Latents and other files that are only good
        for one model carry it. It is computed again when weights were changed, as by an optimizer;
        what is written through ``.data`` goes unseen.
        """
        versions = self._versions()
        if self._known.get("versions") != versions:
            digest = hashlib.sha256(self.target.name.encode())
            net = bare(self.net)
            if isinstance(net, UNet):  # heads and time scale are not in the weights
                digest.update(json.dumps(net.config.to_json(), sort_keys=True).encode())
            # The last bits of float64 are the processor's own: exp and log differ there.
            for values in (self.schedule.alpha, self.schedule.sigma):
                digest.update(values.astype(np.float32).tobytes())
            # Parts of it may be compiled, too.
            weights = {n.replace("_orig_mod.", ""): v for n, v in net.state_dict().items()}
            for name, value in sorted(weights.items()):
                plain = value.detach().cpu()
                plain = plain.float() if plain.is_floating_point() else plain
                digest.update(f"{name} {tuple(plain.shape)}".encode())
                digest.update(plain.contiguous().numpy().tobytes())
            self._known.update(versions=versions, identity=digest.hexdigest())
        return self._known["identity"]

    def _versions(self) -> tuple[tuple[int, int], ...]:
        """What is other after weights were replaced, or changed in place."""
        return tuple(
            (id(value), 0 if value.is_inference() else value._version)
            for value in self.net.state_dict(keep_vars=True).values()
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Model:
        """The same model elsewhere, or in another precision; the network itself is moved.

        While it is in 16 bits a model keeps its identity, and with it the calibration that was
        made for it. Brought back from there its weights are rounded ones, and it is another model.
        """
        low = torch.finfo(dtype or self.dtype).bits == 16
        identity = self.identity if low else None
        moved = dataclasses.replace(self, net=self.net.to(device=device, dtype=dtype))
        if low:
            moved._known.update(versions=moved._versions(), identity=identity)
        if moved.dtype is torch.bfloat16 and moved.device.type == "cpu":
            # There torch's bfloat16 group norm is 20 times slower in channels_last, which costs
            # more than the convolutions gain by it.
            moved.net.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        return moved

    def denoiser(
        self,
        labels: Tensor | None = None,
        guidance: float = 1.0,
        clip: bool | None = None,
        *,
        network: NetworkDenoiser | None = None,
        grad: bool = False,
    ) -> Denoiser:
        """The denoiser for a batch.

        Args:
            labels: class indices, shape (N,), for a class-conditional model.
            guidance: classifier-free guidance scale; 1 is none.
            clip: clip x0 to [-1, 1], or do not; None for the model's own habit.
            network: one that an earlier batch used, to share what it computed for the times.
            grad: let gradients through, as for :class:`~ddim.denoisers.network.NetworkDenoiser`.

        Raises:
            InputError: labels for a model without classes or the reverse, guidance without a
                label for 'no class' or by a scale that is not finite.
        """
        if (labels is None) != (self.classes is None):
            raise InputError(
                f"{self.name} is class-conditional: give labels"
                if labels is None
                else f"{self.name} has no classes, so labels mean nothing to it"
            )
        network = network or NetworkDenoiser(self.net, self.target, grad=grad)
        denoiser: Denoiser = network.with_labels(labels)
        if guidance != 1.0:
            if labels is None or self.null_label is None:
                raise InputError(
                    f"{self.name} was not trained for guidance: it has no 'none' label"
                )
            if not math.isfinite(guidance):
                raise InputError(f"guidance must be a finite number, not {guidance}")
            null = torch.full_like(labels, self.null_label)
            denoiser = Guided(denoiser, network.with_labels(null), guidance)
        clipping = self.clipping
        if clip is not None:
            clipping = Clipping("clip") if clip else Clipping()
        return clipping.wrap(denoiser)

    def save(self, folder: Path | str, scheduler: Mapping[str, Any] | None = None) -> None:
        """Write a model folder that this package and diffusers open.

        Args:
            folder: where to.
            scheduler: the ``scheduler_config.json``, as :func:`ddim.export_scheduler` makes it;
                that of diffusers' DDIM if None.

        Raises:
            InputError: the network or its schedule is not one that diffusers has; nothing is
                written then.
        """
        if not isinstance(self.net, UNet):
            why = ", ".join(getattr(self.net, "beyond_diffusers", ["another architecture"]))
            raise InputError(
                f"diffusers' UNet2DModel cannot express a {type(self.net).__name__} ({why}), so it "
                "has no model folder: use it as it is"
            )
        facts = {"name": self.name, "classes": self.classes, "null_label": self.null_label}
        write_folder(
            Path(folder),
            self.net.config,
            self.net.state_dict(),
            self.schedule,
            self.target,
            self.clipping,
            {**self.facts, **facts},
            scheduler,
        )


def bare(net: nn.Module) -> nn.Module:
    """The network within what ``torch.compile`` or a parallel wrapper of torch put around it."""
    if isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return bare(net.module)
    # By name, because the class is in a module that takes a second to import.
    inner = getattr(net, "_orig_mod", None) if type(net).__name__ == "OptimizedModule" else None
    return bare(inner) if isinstance(inner, nn.Module) else net
