"""Images as latents: a record that says how to decode them, its file, and what lies between."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ddim.errors import InputError
from ddim.files import write_bytes
from ddim.latent import decoder, slerp, tensors_of
from ddim.pipeline import Pipeline
from ddim.schedule import Schedule

__all__ = ["DTYPES", "Latents", "interpolate"]

DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""What latents can be in."""
LEAD = 0.1  # of the logarithms of sizes
_FORMAT = "ddim-latents-2"


@dataclasses.dataclass(frozen=True)
class Latents:
    """What images became, and everything that it takes to make them images again.

    Attributes:
        tensors: one or two, each of shape (N, C, H, W).
        codec: see :data:`ddim.latent.CODECS`.
        nodes: of the decoder, falling.
        model: the model's name, for people.
        identity: the model's :attr:`~ddim.Pipeline.identity`.
        tile: images in one network call.
        labels: of each image, or None for a model without classes.
        guidance: classifier-free guidance scale of the encoding; 1 is none.
        calls: network calls that each image took.
        residual: of the ``implicit`` codec, for each image: the largest RMS, over the steps, by
            which DDIM's step from the state found misses the state that it must lead to; float64.
        tolerance: the residual up to which an image counts as solved.
        schedule: how the model's noise schedule is made, for people and other programs.
    """

    tensors: tuple[Tensor, ...]
    codec: str
    nodes: tuple[int, ...]
    model: str
    identity: str
    tile: int
    labels: tuple[int, ...] | None = None
    guidance: float = 1.0
    calls: int = 0
    residual: Tensor | None = None
    tolerance: float | None = None
    schedule: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.tensors) != tensors_of(self.codec):
            raise InputError(
                f"a latent of the codec {self.codec} has {tensors_of(self.codec)} tensors, "
                f"not {len(self.tensors)}: one alone does not lead back to the image"
            )

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, images: Sequence[int] | Sequence[bool] | slice | int | Tensor) -> Latents:
        if not isinstance(images, slice):
            images = torch.as_tensor(images)
            images = images if images.numel() else images.long()
        chosen = torch.arange(len(self))[images].flatten().tolist()
        return dataclasses.replace(
            self,
            tensors=tuple(x[chosen] for x in self.tensors),
            labels=None if self.labels is None else tuple(self.labels[i] for i in chosen),
            residual=None if self.residual is None else self.residual[chosen],
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors; decoding is done in it."""
        return self.tensors[0].dtype

    @property
    def unsolved(self) -> list[int]:
        """The images that the ``implicit`` codec did not converge on."""
        if self.residual is None or self.tolerance is None:
            return []
        return [i for i, r in enumerate(self.residual.tolist()) if not r <= self.tolerance]

    def check(self, pipeline: Pipeline) -> None:
        """Refuse a model that these latents are not of.

        Raises:
            InputError: another shape, or another model (weights, schedule or target).
        """
        shape = tuple(self.tensors[0].shape[1:])
        if shape != tuple(pipeline.shape):
            raise InputError(
                f"these latents are of shape {shape}; {pipeline.name} makes images of shape "
                f"{tuple(pipeline.shape)}"
            )
        if self.identity != pipeline.identity:
            raise InputError(
                f"these latents are of the model {self.model} ({self.identity[:12]}), not of "
                f"{pipeline.name} ({pipeline.identity[:12]}): decode them with the one that "
                "encoded them"
            )

    def save(self, path: Path | str) -> None:
        """Write a safetensors file that carries all of it, whole or not at all."""
        tensors = {f"latent.{i}": x.contiguous() for i, x in enumerate(self.tensors)}
        if self.residual is not None:
            tensors["residual"] = self.residual
        names = [f.name for f in dataclasses.fields(self) if f.name not in ("tensors", "residual")]
        facts = {name: getattr(self, name) for name in names}
        facts |= {"schedule": dict(self.schedule), "dtype": str(self.dtype).removeprefix("torch.")}
        text = json.dumps(facts)
        metadata = {"format": _FORMAT, "ddim": text, "sha256": _checksum(text)}
        write_bytes(Path(path), safetensors.torch.save(tensors, metadata))

    @classmethod
    def load(cls, path: Path | str) -> Latents:
        """Read a file that :meth:`save` wrote.

        Raises:
            InputError: no such file, a truncated one, or one of something else.
        """
        try:
            with safetensors.safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise InputError(f"{path} is not a file of latents of ddim")
                text = metadata.get("ddim", "")
                if metadata.get("sha256") != _checksum(text):
                    raise InputError(
                        f"{path} says other nodes, codec or model than it was written with: what "
                        "it decodes to would be another picture"
                    )
                facts: dict[str, Any] = json.loads(text)
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise InputError(f"there is no file {path}") from None
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is not a safetensors file, or is truncated: {error}"
            ) from None
        residual = tensors.pop("residual", None)
        for name in ("nodes", "labels"):
            facts[name] = None if facts[name] is None else tuple(facts[name])
        latents = tuple(tensors[key] for key in sorted(tensors))
        dtype = DTYPES[facts.pop("dtype")]
        if any(x.dtype != dtype or x.shape != latents[0].shape for x in latents):
            raise InputError(f"{path} holds tensors that are no latents")
        return cls(latents, residual=residual, **facts)


def interpolate(latents: Latents, corners: Sequence[int], shares: Sequence[float]) -> Latents:
    """Latents between two images or four, by :func:`ddim.latent.slerp`.

    Args:
        latents: of the images.
        corners: two images for a line; four for a square: top left, top right, bottom left,
            bottom right.
        shares: where to look along each side, such as (0, 0.5, 1).

    Of a pair the angle is that of the tensor whose size is nearest to the states' at its level:
    O-BELM extrapolates its first one, far where the first step is unlike the second.

    Returns:
        the latents of the line, or of the square row by row. Labels are those of the nearest
        corner, the earlier one of two as near.

    Raises:
        InputError: another number of corners, or images that are not there.
    """
    if len(corners) not in (2, 4):
        raise InputError(f"interpolation is between 2 images or 4, not {len(corners)}")
    if not shares or not all(map(math.isfinite, shares)):
        raise InputError(f"shares are finite numbers, at least one: {list(shares)}")
    for i in corners:
        if not 0 <= i < len(latents):
            raise InputError(f"there is no image {i}: the latents are of {len(latents)} images")

    lead = _lead(latents)

    def line(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        return [slerp(a, b, share, lead=lead) for share in shares]

    def join(parts: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    ends = [latents[[i]].tensors for i in corners]
    if len(ends) == 2:
        tensors = join(line(*ends))
        owners = [corners[share > 0.5] for share in shares]
    else:
        left, right = join(line(ends[0], ends[2])), join(line(ends[1], ends[3]))
        across = torch.stack([torch.stack(columns) for columns in line(left, right)])
        # (column, tensor, row, …) to one tensor row by row.
        tensors = tuple(across[:, i].transpose(0, 1).flatten(0, 1) for i in range(len(left)))
        owners = [corners[2 * (down > 0.5) + (over > 0.5)] for down in shares for over in shares]
    return dataclasses.replace(
        latents,
        tensors=tensors,
        labels=None if latents.labels is None else tuple(latents.labels[i] for i in owners),
        residual=None,
    )


def _lead(latents: Latents) -> int:
    """The tensor whose root mean square is nearest to what its level's states have."""
    if len(latents.tensors) == 1 or not latents.schedule:
        return 0
    schedule = Schedule.from_spec(latents.schedule)
    initial = decoder(schedule, latents.nodes, latents.codec).initial
    sizes = [float(x.double().square().mean().sqrt()) for x in latents.tensors]
    distances = [
        abs(math.log(max(size, 1e-30) / state.level.spread))
        for size, state in zip(sizes, initial, strict=True)
    ]
    # The second only where it is clearly the better one: it has less noise.
    return int(distances[1] + LEAD < distances[0])


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
