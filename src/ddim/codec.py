"""Images to latents and back with a model: what :mod:`ddim.latent` does, in tiles and in files."""

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

from ddim.denoiser import NetworkDenoiser
from ddim.errors import InputError
from ddim.files import replacing
from ddim.generate import check_images, check_labels, default_tile, generate, tiles
from ddim.latent import decoder, encoder, slerp, solve_encoding, tensors_of
from ddim.nodes import check_nodes, make_nodes
from ddim.pipeline import Pipeline

__all__ = ["Latents", "codec_nodes", "decode", "encode", "interpolate"]

_FORMAT = "ddim-latents-2"
FARTHEST = 2.0  # samples and decoded images overshoot [-1, 1] by less
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


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

    def __getitem__(self, images: Sequence[int] | slice | int) -> Latents:
        images = [images] if isinstance(images, int) else images
        chosen = list(range(len(self)))[images] if isinstance(images, slice) else list(images)
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
        with replacing(Path(path)) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata=metadata)

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
        dtype = _DTYPES[facts.pop("dtype")]
        if any(x.dtype != dtype or x.shape != latents[0].shape for x in latents):
            raise InputError(f"{path} holds tensors that are no latents")
        return cls(latents, residual=residual, **facts)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def codec_nodes(
    pipeline: Pipeline,
    codec: str,
    nodes: str | Sequence[int] = "uniform",
    steps: int | None = None,
) -> tuple[int, ...]:
    """The nodes of a codec: as for sampling, but that ``implicit`` ends at node 1.

    Args:
        pipeline: the model.
        codec: see :data:`ddim.latent.CODECS`.
        nodes: a family's name or the nodes themselves, falling.
        steps: S; if None 50, or as many as the listed nodes are.

    Raises:
        InputError: unknown names, or nodes that the codec cannot use.
    """
    explicit = not isinstance(nodes, str) or nodes[:1].isdigit()
    if steps is None and not explicit:
        steps = min(50, pipeline.schedule.T)
    listed = make_nodes(pipeline.schedule, nodes, steps)
    if codec == "implicit" and not explicit:
        # The jump to the data has no inverse. At S = T node 1 is there already.
        listed = listed[:-1] if listed[-2] == 1 else (*listed[:-1], 1)
        if len(listed) < 2:
            raise InputError("the implicit codec needs at least two nodes above the data")
    decoder(pipeline.schedule, listed, codec)
    return listed


def encode(
    pipeline: Pipeline,
    images: Tensor,
    *,
    steps: int | None = None,
    codec: str = "obelm",
    nodes: str | Sequence[int] = "uniform",
    labels: Sequence[int] | None = None,
    guidance: float = 1.0,
    clip: bool | None = None,
    tile: int | None = None,
    dtype: torch.dtype = torch.float32,
    tolerance: float | None = None,
    iterations: int = 60,
    progress: bool = False,
) -> Latents:
    """Images to latents.

    Args:
        pipeline: the model, in the precision of ``dtype``: ``pipeline.to(dtype=…)``.
        images: shape (N, C, H, W) in [-1, 1].
        steps: S, from 1 to T; if None 50, or as many as the listed nodes are.
        codec: ``obelm`` (exact, a pair of tensors), ``ddim`` (the paper's, approximate, one),
            ``implicit`` (DDIM solved backwards, one), ``edict`` or ``bdia`` (exact, pairs).
        nodes: a family's name or the nodes themselves, falling from the latent to the image.
        labels: one for each image, for a class-conditional model.
        guidance: classifier-free guidance scale; 1 is none.
        clip: must come out as off, since clipping cannot be undone; None for the model's habit.
        tile: images in one network call.
        dtype: of the states, float32 or float64.
        tolerance: of ``implicit``; see :func:`ddim.latent.solve_encoding`.
        iterations: likewise.
        progress: show a bar on stderr.

    Raises:
        InputError: clipping that is on, images or labels that do not fit, unknown names.

    Example:
        >>> import ddim, torch
        >>> model = ddim.load("mnist")
        >>> latents = ddim.encode(model, torch.zeros(1, 1, 28, 28), steps=3)
        >>> bool(ddim.decode(model, latents).abs().max() < 1e-3)
        True
    """
    _refuse_clipping(pipeline, clip)
    if dtype not in _DTYPES.values():
        raise InputError(f"latents are float32 or float64, not {dtype}")
    check_images(pipeline, images, len(images))
    if images.abs().max() > FARTHEST:
        raise InputError(
            f"images are in [-1, 1]; these reach {images.abs().max():.4g} (ddim.from_pixels makes "
            "them of bytes)"
        )
    listed = codec_nodes(pipeline, codec, nodes, steps)
    size = default_tile(pipeline.shape, pipeline.device) if tile is None else tile
    latents = Latents(
        (images,) * tensors_of(codec),
        codec,
        listed,
        pipeline.name,
        pipeline.identity,
        size,
        None if labels is None else tuple(int(label) for label in labels),
        guidance,
        schedule=pipeline.schedule.spec,
    )
    if codec == "implicit":
        return _solve(pipeline, images, latents, dtype, tolerance, iterations, progress)
    tableau = encoder(pipeline.schedule, listed, codec)
    parts = _run(pipeline, tableau, latents, (images,), dtype, progress, f"{codec} encode")
    return dataclasses.replace(latents, tensors=parts, calls=tableau.calls * _evaluations(latents))


def decode(
    pipeline: Pipeline,
    latents: Latents,
    *,
    labels: Sequence[int] | None = None,
    guidance: float | None = None,
    tile: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Latents to images.

    Nodes, codec and precision are those of the encoding. Other labels, or another guidance scale,
    edit the images.

    Args:
        pipeline: the model that encoded, in the precision of ``latents.dtype``.
        latents: as :func:`encode` or :meth:`Latents.load` returns them.
        labels: one for each image; those of the encoding if None.
        guidance: likewise.
        tile: likewise; another one changes the last bits.
        progress: show a bar on stderr.

    Returns:
        On the CPU, in ``latents.dtype``, shape (N, C, H, W), nominally in [-1, 1].

    Raises:
        InputError: latents of another model or shape, labels that do not fit.
    """
    latents.check(pipeline)
    nodes = check_nodes(pipeline.schedule, latents.nodes)
    changes: dict[str, Any] = {"labels": labels, "guidance": guidance, "tile": tile}
    changes = {key: value for key, value in changes.items() if value is not None}
    latents = dataclasses.replace(latents, **changes)
    tableau = decoder(pipeline.schedule, nodes, latents.codec)
    label = f"{latents.codec} decode"
    return _run(pipeline, tableau, latents, latents.tensors, latents.dtype, progress, label)[0]


def interpolate(latents: Latents, corners: Sequence[int], shares: Sequence[float]) -> Latents:
    """Latents between two images or four, by :func:`ddim.latent.slerp`.

    Args:
        latents: of the images.
        corners: two images for a line; four for a square: top left, top right, bottom left,
            bottom right.
        shares: where to look along each side, such as (0, 0.5, 1).

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

    def line(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        return [slerp(a, b, share) for share in shares]

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


def _evaluations(latents: Latents) -> int:
    """Network calls for one prediction: guidance asks with the label and without."""
    return 1 if latents.guidance == 1 else 2


def _refuse_clipping(pipeline: Pipeline, clip: bool | None) -> None:
    if clip or (clip is None and pipeline.clipping.kind != "none"):
        by = "" if clip else f", which {pipeline.name} does by habit"
        raise InputError(
            f"clipping x0{by}, cannot be undone: many states lead to one image; switch it off "
            "(--clip False, or clip=False)"
        )


def _run(
    pipeline: Pipeline,
    tableau: Any,
    latents: Latents,
    start: Sequence[Tensor],
    dtype: torch.dtype,
    progress: bool,
    label: str,
) -> tuple[Tensor, ...]:
    """A codec's tableau over all images; its outputs on the CPU."""
    n = len(start[0])
    drawn = generate(
        pipeline,
        tableau,
        range(n),
        labels=latents.labels,
        guidance=latents.guidance,
        clip=False,
        tile=latents.tile,
        dtype=dtype,
        start=start,
    )
    total = -(-n // latents.tile) * len(tableau.rows)
    ends = [e.outputs for e in _bar(drawn, total, label, progress) if e.outputs]
    return tuple(torch.cat(parts).cpu() for parts in zip(*ends, strict=True))


def _bar(items: Any, total: int, label: str, progress: bool) -> Any:
    if not progress:
        return items
    from tqdm import tqdm

    return tqdm(items, total=total, desc=label, unit="step")


def _solve(
    pipeline: Pipeline,
    images: Tensor,
    latents: Latents,
    dtype: torch.dtype,
    tolerance: float | None,
    iterations: int,
    progress: bool,
) -> Latents:
    """The implicit codec: Anderson acceleration, tile by tile."""
    n, device = len(images), pipeline.device
    labels = check_labels(pipeline, latents.labels, n)
    network = NetworkDenoiser(pipeline.net, pipeline.target)
    found: list[Tensor] = []
    residuals: list[Tensor] = []
    calls = 0
    if tolerance is None:
        tolerance = 100 * torch.finfo(dtype).eps
    total = -(-n // latents.tile) * (len(latents.nodes) - 1)
    bar = _bar(None, total, "implicit encode", progress)
    for positions, count in tiles(n, latents.tile):
        chosen = None if labels is None else labels[positions].to(device)
        denoiser = pipeline.denoiser(chosen, latents.guidance, False, network=network)
        x = images[positions].to(device, dtype)
        worst = torch.zeros(len(positions), device=device, dtype=torch.float64)
        for solved in solve_encoding(
            denoiser,
            pipeline.schedule,
            latents.nodes,
            x,
            tolerance=tolerance,
            iterations=iterations,
        ):
            x, calls = solved.x, calls + solved.calls * count
            worst = torch.maximum(worst, solved.residual.double().nan_to_num(nan=math.inf))
            if bar is not None:
                bar.update()
        found.append(x[:count].cpu())
        residuals.append(worst[:count].cpu())
    if bar is not None:
        bar.close()
    return dataclasses.replace(
        latents,
        tensors=(torch.cat(found),),
        calls=round(calls / n) * _evaluations(latents),
        residual=torch.cat(residuals),
        tolerance=tolerance,
    )
