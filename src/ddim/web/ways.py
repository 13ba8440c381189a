"""How to make again, exactly, what the page shows: a command, and a few lines of Python."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddim.model.model import Model
    from ddim.samplers.sampler import Sampler

__all__ = ["Corner", "Origin", "decode_ways", "encode_ways", "sample_ways"]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model has come from, as commands spell it.

    Attributes:
        source: what ``--model`` was given.
        device: the same of ``--device``.
        backend: the same of ``--backend``.
        cast: whether it was brought to float32, in which it was not saved.
    """

    source: str
    device: str = "auto"
    backend: str = "auto"
    cast: bool = False

    def options(self) -> list[str]:
        """The options of a command that open the model so, defaults left out."""
        words = [] if self.source == "mnist" else ["--model", self.source]
        words += [] if self.device == "auto" else ["--device", self.device]
        return words + ([] if self.backend == "auto" else ["--backend", self.backend])

    def lines(self, model: Model, *, imports: Sequence[str] = ()) -> list[str]:
        """The lines of Python that open the model so."""
        load = f"model = ddim.load({_text(self.source)}"
        load += ")" if model.device.type == "cpu" else f", device={_text(str(model.device))})"
        load += ".to(dtype=torch.float32)" if self.cast else ""
        load += "" if self.backend == "auto" else f".with_backend({_text(self.backend)})"
        wanted = [*imports, *(["import torch"] if self.cast else [])]
        return ["import ddim", *wanted, "", load]


def _text(value: str) -> str:
    """A text as Python has it, in double quotes."""
    return json.dumps(value)


def sample_ways(
    origin: Origin,
    model: Model,
    sampler: Sampler,
    *,
    seed: int,
    images: int,
    labels: Sequence[int] | None,
    batch_size: int | None,
) -> dict[str, str]:
    """How to draw the images of a seed by a sampler, as a grid in ``samples.png``.

    Args:
        origin: where the model has come from.
        model: the model.
        sampler: which.
        seed: of the noise.
        images: how many.
        labels: of the images, repeated in turn; None for all classes.
        batch_size: as it was asked for; None for the default.
    """
    words = ["ddim", "sample", *origin.options(), "-n", str(images), "--method", str(sampler)]
    words += ["--seed", str(seed)] if seed else []
    words += ["--labels", *map(str, labels)] if labels else []
    words += ["--batch-size", str(batch_size)] if batch_size else []
    words += ["--scale", "1"]
    given = [_text(str(sampler)), f"seed={seed}"]
    given += [f"labels={list(labels)}"] if labels else []
    given += [f"batch_size={batch_size}"] if batch_size else []
    lines = origin.lines(model)
    lines.append(f"images = ddim.sample(model, {images}, {', '.join(given)})")
    lines.append('ddim.save_image("samples.png", images)')
    return {"command": shlex.join(words), "python": "\n".join(lines) + "\n"}


@dataclasses.dataclass(frozen=True)
class Corner:
    """How the latent of one image was made.

    Attributes:
        codec: that encoded it.
        steps: of the codec.
        label: of the image.
        shape: of the image, (C, H, W).
        clips: whether the model clips unless told otherwise.
        place: the seed and the number of a drawn image; None for one that was sent.
    """

    codec: str
    steps: int | None
    label: int | None
    shape: tuple[int, ...]
    clips: bool
    place: tuple[int, int] | None = None

    @property
    def noise(self) -> bool:
        """Whether the latent is the noise that the image is drawn from."""
        return self.place is not None and self.codec == "ddim"

    def drawing(self) -> str:
        """The sampler of a drawn image."""
        return f"ddim:steps={self.steps}"

    def options(self) -> list[str]:
        """The options of ``ddim encode``."""
        words = ["--codec", self.codec, "--steps", str(self.steps), "--batch-size", "1"]
        words += [] if self.label is None else ["--labels", str(self.label)]
        return words + (["--clip", "false"] if self.clips else [])

    def expression(self, file: str) -> str:
        """The latent, in Python that follows :func:`_helpers`."""
        label = "" if self.label is None else f", labels={self.label}"
        if self.place is None:
            images = f"read({_text(file)})"
        else:
            seed, image = self.place
            if self.noise:
                own = "" if self.label is None else f", condition=ddim.Condition({self.label})"
                return (
                    f"drawn_latents(model, [{image}], seed={seed}, steps={self.steps}{own}, "
                    "batch_size=1)"
                )
            drawn = f"ddim.sample(model, {image + 1}, {_text(self.drawing())}, seed={seed}{label})"
            images = f"ddim.from_pixels(ddim.to_pixels({drawn}[{image}:]))"
        clip = ", clip=False" if self.clips else ""
        how = f"codec={_text(self.codec)}, steps={self.steps}, batch_size=1{label}{clip}"
        return f"ddim.encode(model, {images}, {how})"


def encode_ways(origin: Origin, model: Model, corner: Corner) -> dict[str, str | None]:
    """How to encode an image and decode it again: from ``drawn.png``, or from its seed.

    What comes back is ``decoded.png``; of a drawn image's noise the last of ``samples.png``.

    Args:
        origin: where the model has come from.
        model: the model.
        corner: how the latent was made.
    """
    python = decode_ways(origin, model, [corner], (), None)["python"]
    own, commands, file = origin.options(), [], "drawn.png"
    if corner.place is not None:
        seed, image = corner.place
        draw = ["ddim", "sample", *own, "-n", str(image + 1), "--seed", str(seed)]
        draw += ["--method", corner.drawing()]
        draw += [] if corner.label is None else ["--labels", str(corner.label)]
        if corner.noise:
            draw += ["--batch-size", "1", "--scale", "1"]
            draw += ["--clip", "false"] if corner.clips else []
            return {"command": shlex.join(draw), "python": python}
        file = f"drawn/{image:06d}.png"
        commands.append([*draw, "--output", "drawn"])
    commands.append(["ddim", "encode", *own, "--data", file, "-n", "1", *corner.options()])
    commands.append(["ddim", "decode", *own])
    square = corner.shape[1] == corner.shape[2]
    return {"command": "\n".join(map(shlex.join, commands)) if square else None, "python": python}


def decode_ways(
    origin: Origin,
    model: Model,
    corners: Sequence[Corner],
    shares: Sequence[float],
    frames: int | None,
) -> dict[str, str | None]:
    """How to decode latents, or what lies between them, as ``decoded.png``.

    Images that were sent are read from ``drawn.png``, or from ``corner-1.png`` and so on.

    Args:
        origin: where the model has come from.
        model: the model.
        corners: how the latents were made: 1, 2 or 4.
        shares: where, as :class:`~ddim.web.asked.DecodeAsked` has them.
        frames: images along a line, or None.
    """
    files = [f"corner-{i}.png" for i in range(1, 5)] if len(corners) > 1 else ["drawn.png"]
    parts = [corner.expression(file) for corner, file in zip(corners, files, strict=False)]
    imports, helpers = _helpers(corners)
    lines = [*origin.lines(model, imports=imports), *helpers]
    if len(parts) == 1:
        lines.append(f"latents = {parts[0]}")
    else:
        lines += ["latents = ddim.Latents.join([", *(f"    {part}," for part in parts), "])"]
        where = str(list(shares))
        if frames is not None:
            where = f"[i / {frames - 1} for i in range({frames})]"
        which = tuple(range(len(parts)))
        row = "[2]" if len(parts) == 4 else ""
        lines.append(f"latents = ddim.interpolate(latents, {which}, {where}){row}")
    lines.append("images = ddim.decode(model, latents)")
    lines.append(f'ddim.save_image("decoded.png", images{f", {frames}" if frames else ""})')
    command = _line_command(origin, corners, frames)
    return {"command": command, "python": "\n".join(lines) + "\n"}


def _line_command(origin: Origin, corners: Sequence[Corner], frames: int | None) -> str | None:
    """The command for a line between two drawn images; None where there is none."""
    places = [corner.place for corner in corners if corner.noise and corner.place is not None]
    if frames is None or len(places) < 2 or places[0][0] != places[1][0]:
        return None
    words = ["ddim", "interpolate", *origin.options(), "--between", *(str(i) for _, i in places)]
    words += ["--frames", str(frames), "--seed", str(places[0][0])]
    words += ["--codec", "ddim", "--steps", str(corners[0].steps), "--batch-size", "1"]
    words += ["--scale", "1"]
    labels = [str(corner.label) for corner in corners if corner.label is not None]
    return shlex.join([*words, *(["--labels", *labels] if labels else [])])


def _helpers(corners: Sequence[Corner]) -> tuple[list[str], list[str]]:
    """The imports that the corners' expressions need, and the functions."""
    imports, lines = [], []
    if any(corner.place is None for corner in corners):
        channels, height, width = corners[0].shape
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        imports += ["import numpy as np", "from PIL import Image"]
        lines += [
            "",
            "def read(file):",
            f"    picture = Image.open(file).convert({_text(mode)})",
            f"    pixels = np.array(picture).reshape(1, {height}, {width}, {channels})",
            "    return ddim.from_pixels(pixels.transpose(0, 3, 1, 2))",
            "",
        ]
    if any(corner.noise for corner in corners):
        imports += ["from ddim.latents.drawn import drawn_latents"]
    return imports, lines
