"""Images as latents: a record that says how to decode them, its file, and what lies between."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ddim.base.display import facts_table, shown
from ddim.base.errors import InputError
from ddim.base.records import in_file, parse_json, record
from ddim.checkpoints.tensors import read_safetensors, write_safetensors
from ddim.data.sheet import shown_as_html
from ddim.latents.codecs import tensors_of
from ddim.model.condition import Condition
from ddim.model.model import Model

__all__ = ["DTYPES", "Latents"]

DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""What latents can be in."""
_FORMAT = "ddim-latents-3"


@shown
@dataclasses.dataclass(frozen=True)
class Latents:
    """What images became, and everything that it takes to make them images again.

    Attributes:
        tensors: one or two, each of shape (N, C, H, W).
        codec: see :data:`ddim.latents.codecs.CODECS`.
        nodes: of the decoder, falling.
        model: the model's name, for people.
        identity: the model's :attr:`~ddim.Model.identity`.
        batch_size: images in one network call.
        backend: what ran the network.
        condition: of the encoding, a row for each image.
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
    batch_size: int
    condition: Condition = dataclasses.field(default_factory=Condition)
    calls: int = 0
    residual: Tensor | None = None
    tolerance: float | None = None
    backend: str = "torch"
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
            condition=self.condition[chosen],
            residual=None if self.residual is None else self.residual[chosen],
        )

    @classmethod
    def join(cls, parts: Sequence[Latents]) -> Latents:
        """Latents of several images, encoded one by one, as one.

        Args:
            parts: at least one; of one model, codec, nodes and precision.

        Raises:
            InputError: none, or some that differ in more than their images.

        Example:
            >>> import ddim, torch
            >>> model = ddim.load("mnist")
            >>> one = ddim.encode(model, torch.zeros(1, 1, 28, 28), steps=2, batch_size=1)
            >>> len(Latents.join([one, one]))
            2
        """
        if not parts:
            raise InputError("there are no latents to join")
        first = parts[0]
        for name in ("codec", "nodes", "identity", "batch_size", "backend", "dtype", "tolerance"):
            found = list(dict.fromkeys(str(getattr(part, name)) for part in parts))
            if len(found) > 1:
                what = "set of nodes" if name == "nodes" else name.replace("_", " ")
                raise InputError(
                    f"latents of one {what} can be joined, not of {found[0]} and {found[1]}"
                )
        residuals = [part.residual for part in parts if part.residual is not None]
        return dataclasses.replace(
            first,
            tensors=tuple(map(torch.cat, zip(*(part.tensors for part in parts), strict=True))),
            condition=Condition.join([part.condition for part in parts]),
            residual=torch.cat(residuals) if residuals else None,
            calls=max(part.calls for part in parts),
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

    @property
    def caveat(self) -> str | None:
        """Why decoding does not give the images back, in a sentence; None where it does.

        Latents that were drawn, and not encoded, are of no image.
        """
        if self.codec == "ddim" and self.calls:
            return (
                "the codec ddim is approximate: its images come back changed, in "
                f"{len(self.nodes) - 1} steps more than in many"
            )
        if self.unsolved:
            return (
                f"the encoding did not converge on {len(self.unsolved)} of {len(self)} images, "
                "which come back changed"
            )
        return None

    def _facts(self) -> dict[str, object]:
        facts = {
            "images": len(self),
            "shape": tuple(self.tensors[0].shape[1:]),
            "codec": self.codec,
            "steps": len(self.nodes) - 1,
            "model": self.model,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        return {**facts, "unsolved": self.unsolved} if self.unsolved else facts

    def _repr_html_(self) -> str:
        more = {"network calls": self.calls, "back end": self.backend, "caveat": self.caveat}
        facts = {**self._facts(), **{k: v for k, v in more.items() if v}}
        first = self.tensors[0][:16].float()
        # Noise of ±3 standard deviations fits into the scale of pictures.
        grid = shown_as_html(first / 3, "the first latents") if first.isfinite().all() else ""
        return facts_table("Latents", facts, grid)

    def check(self, model: Model) -> Model:
        """The model as it encoded, by the same back end; others are refused.

        Raises:
            InputError: another shape, or another model (weights, schedule or target); another back
                end than ``auto`` or that of the encoding, or one that is not here.
        """
        shape = tuple(self.tensors[0].shape[1:])
        if shape != tuple(model.shape):
            raise InputError(
                f"these latents are of shape {shape}; {model.name} makes images of shape "
                f"{tuple(model.shape)}"
            )
        if self.identity != model.identity:
            raise InputError(
                f"these latents are of the model {self.model} ({self.identity[:12]}), not of "
                f"{model.name} ({model.identity[:12]}): decode them with the one that "
                "encoded them"
            )
        if model.backend not in ("auto", self.backend):
            raise InputError(
                f"these latents were encoded by {self.backend}, which decodes them to the last "
                f"digit, and not by {model.backend}"
            )
        return model if model.runs_on == self.backend else model.with_backend(self.backend)

    def save(self, path: Path | str) -> None:
        """Write a safetensors file that carries all of it, whole or not at all."""
        tensors = {f"latent.{i}": x for i, x in enumerate(self.tensors)}
        if self.residual is not None:
            tensors["residual"] = self.residual
        tensors |= {f"condition.{k}": x for k, x in self.condition.tensors.items()}
        tensors |= {f"null.{k}": x for k, x in self.condition.null.items()}
        facts = {name: getattr(self, name) for name in _shared()}
        facts |= {"labels": self.condition.labels, "guidance": self.condition.guidance}
        facts |= {"rescale": self.condition.rescale}
        facts |= {"dtype": str(self.dtype).removeprefix("torch.")}
        text = json.dumps(facts, default=dict)
        write_safetensors(
            Path(path), tensors, {"format": _FORMAT, "ddim": text, "sha256": _checksum(text)}
        )

    @classmethod
    def load(cls, path: Path | str) -> Latents:
        """Read a file that :meth:`save` wrote.

        Raises:
            InputError: no such file, a truncated one, or one of something else.
        """
        tensors, metadata = read_safetensors(Path(path))
        if metadata.get("format") != _FORMAT:
            raise InputError(f"{path} is not a file of latents of ddim")
        text = metadata.get("ddim", "")
        if metadata.get("sha256") != _checksum(text):
            raise InputError(
                f"{path} says other nodes, codec or model than it was written with: what "
                "it decodes to would be another picture"
            )
        with in_file(path):
            facts = record(_Facts, parse_json(text, "its record"))
            residual = tensors.pop("residual", None)
            named = {kind: _taken(tensors, f"{kind}.") for kind in ("latent", "condition", "null")}
            condition = Condition(
                facts.labels,
                named["condition"],
                facts.guidance,
                null=named["null"],
                rescale=facts.rescale,
            )
            latents = tuple(named["latent"].values())
            shapes = {(x.dtype, x.shape) for x in latents}
            if shapes != {(DTYPES[facts.dtype], latents[0].shape if latents else None)}:
                raise InputError("it holds tensors that are no latents")
            condition = condition.rows(len(latents[0]))
            if residual is not None and residual.shape != (len(latents[0]),):
                raise InputError("its residuals are not one for each image")
            own = {name: getattr(facts, name) for name in _shared()}
            return cls(latents, condition=condition, residual=residual, **own)


@dataclasses.dataclass(frozen=True)
class _Facts:
    """The JSON that stands beside the tensors: fields of the latents and of the condition."""

    codec: str
    nodes: tuple[int, ...]
    model: str
    identity: str
    batch_size: int
    calls: int
    tolerance: float | None
    schedule: dict[str, Any]
    labels: tuple[int, ...] | None
    guidance: float
    dtype: Literal["float32", "float64"]
    rescale: float = 0.0
    backend: str = "torch"


def _shared() -> list[str]:
    """The fields that latents and their file have in common; the rest is the condition's."""
    own = {field.name for field in dataclasses.fields(Latents)}
    return [field.name for field in dataclasses.fields(_Facts) if field.name in own]


def _taken(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): tensors[k] for k in sorted(tensors) if k.startswith(prefix)}


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
