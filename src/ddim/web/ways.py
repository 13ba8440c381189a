"""How to make again, exactly, what the page shows: a command, and a few lines of Python."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddim.model.model import Model
    from ddim.samplers.sampler import Sampler

__all__ = ["Origin"]


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
        load = f"model = ddim.load({self.source!r}"
        load += ")" if model.device.type == "cpu" else f", device={str(model.device)!r})"
        load += ".to(dtype=torch.float32)" if self.cast else ""
        load += "" if self.backend == "auto" else f".with_backend({self.backend!r})"
        wanted = sorted({*imports, *(["import torch"] if self.cast else [])})
        return ["import ddim", *wanted, "", load]


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
    given = [f'"{sampler}"' if '"' not in str(sampler) else repr(str(sampler))]
    given += [f"seed={seed}"]
    given += [f"labels={list(labels)}"] if labels else []
    given += [f"batch_size={batch_size}"] if batch_size else []
    lines = origin.lines(model)
    lines.append(f"images = ddim.sample(model, {images}, {', '.join(given)})")
    lines.append('ddim.save_image("samples.png", images)')
    return {"command": shlex.join(words), "python": "\n".join(lines) + "\n"}
