"""Who draws: this package by one of its back ends, or another program with the same weights."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor

from ddim.base.errors import InputError, RunError, quoted
from ddim.model.condition import Condition
from ddim.model.drawing import pick_batch_size, sample
from ddim.model.model import Model
from ddim.noise.schedule import Level

__all__ = ["Contestant", "Diffusers", "Ours", "back_ends", "halved", "open_diffusers", "threads"]


class Contestant(Protocol):
    """Who draws images from noise, always by the same network."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def draw(self, noise: Tensor, steps: int, batch_size: int) -> Tensor:
        """Images of shape (N, C, *) in [0, 1] by DDIM with η = 0, float32 on the CPU.

        Args:
            noise: standard normal, shape (N, C, *).
            steps: S.
            batch_size: images in one network call.
        """
        ...

    def output(self, x: Tensor, level: Level) -> Tensor:
        """What the network says to states of shape (N, C, *), float64."""
        ...


class Ours:
    """This package: :func:`ddim.sample` by one back end.

    Args:
        model: with that back end.
        name: what tables call it.
    """

    def __init__(self, model: Model, name: str) -> None:
        self.model, self.name = model, name

    @property
    def batch_size(self) -> int:
        """How many images one network call sees by default."""
        return pick_batch_size(self.model, None)

    def draw(self, noise: Tensor, steps: int, batch_size: int) -> Tensor:
        """See :class:`Contestant`."""
        images = sample(
            self.model, len(noise), steps=steps, eta=0.0, noise=noise, batch_size=batch_size
        )
        return images.div(2).add_(0.5).clamp_(0, 1)

    def output(self, x: Tensor, level: Level) -> Tensor:
        """See :class:`Contestant`."""
        condition = Condition(clip=False).check(self.model, len(x), every_class=True)
        said = self.model.denoiser(condition)(x.to(self.model.device, torch.float64), level)
        return self.model.target.of(said.x0, said.eps, level.alpha, level.sigma).cpu()


class Diffusers:
    """``DDIMPipeline`` of diffusers, in float32 or under autocast.

    Args:
        pipeline: the pipeline.
        half: whether its network runs under bfloat16 autocast.
    """

    def __init__(self, pipeline: Any, *, half: bool = False) -> None:
        self.pipeline, self.half = pipeline, half
        self.name = "diffusers, autocast" if half else "diffusers"

    def draw(self, noise: Tensor, steps: int, batch_size: int) -> Tensor:
        """See :class:`Contestant`."""
        parts = []
        for part in noise.to(self.pipeline.device).split(batch_size):
            with self._autocast(), _drawn_instead(part):
                found = self.pipeline(len(part), num_inference_steps=steps, output_type="np").images
            parts.append(torch.from_numpy(found).permute(0, 3, 1, 2))
        return torch.cat(parts)

    def output(self, x: Tensor, level: Level) -> Tensor:
        """See :class:`Contestant`."""
        times = torch.full((len(x),), level.t, device=self.pipeline.device)
        with self._autocast(), torch.no_grad():
            said = self.pipeline.unet(x.to(self.pipeline.device, torch.float32), times).sample
        return said.double().cpu()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        kind = self.pipeline.device.type
        return torch.autocast(kind, torch.bfloat16) if self.half else contextlib.nullcontext()


def _drawn_instead(noise: Tensor) -> contextlib.AbstractContextManager[object]:
    """Give the pipeline this noise where it would draw its own."""
    return mock.patch("diffusers.pipelines.ddim.pipeline_ddim.randn_tensor", return_value=noise)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many CPU threads for torch, and so for a back end; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def back_ends(device: torch.device) -> tuple[str, ...]:
    """The names of those that are for a device, plain torch first."""
    kinds = {"cpu": ("ncnn", "openvino"), "cuda": ("cuda-graph", "compile")}
    return ("torch", *kinds.get(device.type, ()))


def halved(model: Model) -> Model:
    """A copy of a model in bfloat16; the model itself stays as it is."""
    return model.replace(net=copy.deepcopy(model.net)).to(dtype=torch.bfloat16)


def open_diffusers(model: Model) -> Diffusers:
    """The pipeline of a model's weights, schedule and conventions.

    Raises:
        InputError: diffusers is not installed, cannot express the model, or cannot draw from it.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise InputError("diffusers is not installed (pip install diffusers)")
    if model.classes is not None:
        raise InputError("its DDIMPipeline takes no class labels, which this model needs")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(folder)
        try:
            return _opened(folder, model)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise InputError(f"its DDIMPipeline cannot draw from it: {quoted(why)}") from error


def _opened(folder: str, model: Model) -> Diffusers:
    from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pipeline = DDIMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    made = Diffusers(pipeline.to(model.device))
    if made.draw(torch.zeros(1, *model.shape), 1, 1).shape != (1, *model.shape):
        raise RunError("images of another shape")
    return made
