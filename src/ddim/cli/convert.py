"""``ddim convert``: a checkpoint of another program becomes a model folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ddim.cli.options import parse
from ddim.cli.report import print_json
from ddim.errors import InputError
from ddim.files import refuse_existing

if TYPE_CHECKING:
    from ddim.checkpoints import Hints
    from ddim.schedule import Schedule

__all__ = ["ConvertOptions", "main"]


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """Write a model as a folder that ddim and diffusers open.

    What the source does not say is assumed from the published models of its kind and reported on
    stderr; the options below say it instead. A network that diffusers' UNet2DModel cannot express
    is refused with the reason, and can still be used as it is by every other verb.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A checkpoint of another program, a training run, a model folder, a shipped model's name."""
    dest: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DEST")]
    """The folder to write."""
    weights: Literal["ema", "net"] = "ema"
    """The averaged weights, or the raw ones (net)."""
    schedule: Literal["linear", "scaled-linear", "cosine", "sigmoid"] | None = None
    """Noise schedule that the source was trained with."""
    T: int | None = None
    """Number of noising steps of --schedule; 1000 if it is not given."""
    beta_start: float | None = None
    """First β of --schedule linear or scaled-linear."""
    beta_end: float | None = None
    """Last β of --schedule linear or scaled-linear."""
    target: Literal["eps", "x0", "v"] | None = None
    """What the network predicts."""
    image_size: int | None = None
    """Height and width of an image."""
    heads: int | None = None
    """Attention heads."""
    head_channels: int | None = None
    """Channels of an attention head, instead of --heads."""
    qkv_order: Literal["head", "whole"] | None = None
    """How guided-diffusion orders query, key and value: head by head, or all queries first."""
    rescale_times: bool | None = None
    """Whether improved-diffusion scaled times to 0..1000."""
    force: bool = False
    """Write over what is there."""
    json: bool = False
    """Print a JSON document instead of a sentence."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`ConvertOptions`."""
    options = parse(ConvertOptions, "convert", argv)
    dest = Path(options.dest)
    if dest.is_file():
        raise InputError(f"{dest} is a file: the model is written as a folder")
    refuse_existing(dest, force=options.force)

    from ddim.pipeline import load

    pipeline = load(
        options.source, weights=options.weights, schedule=_schedule(options), hints=_hints(options)
    )
    pipeline.save(dest)
    parameters = sum(p.numel() for p in pipeline.net.parameters())
    facts = pipeline.facts
    if options.json:
        print_json(
            {
                "folder": str(dest),
                "source": facts.get("source", "ddim"),
                "weights": facts.get("weights", options.weights),
                "parameters": parameters,
                "shape": list(pipeline.shape),
                "classes": pipeline.classes,
                "target": pipeline.target.value,
                "schedule": dict(pipeline.schedule.spec),
                "learned_variance": facts.get("learned_variance", False),
                "assumed": list(facts.get("assumed", [])),
            }
        )
        return 0
    shape = " × ".join(map(str, pipeline.shape))
    classes = f", {pipeline.classes} classes" if pipeline.classes else ""
    print(
        f"wrote {dest}: {facts.get('source', 'ddim')}, {parameters:,} parameters, {shape}"
        f"{classes}, predicts {pipeline.target.value}, T={pipeline.schedule.T}"
    )
    return 0


def _schedule(options: ConvertOptions) -> Schedule | None:
    from ddim.schedule import Schedule

    betas = {"beta_start": options.beta_start, "beta_end": options.beta_end}
    betas = {key: value for key, value in betas.items() if value is not None}
    if options.schedule is None:
        if options.T is not None or betas:
            raise InputError("--T and --beta-start and --beta-end go with --schedule")
        return None
    T = 1000 if options.T is None else options.T
    return Schedule.from_spec({"kind": options.schedule, "T": T, **betas})


def _hints(options: ConvertOptions) -> Hints | None:
    from ddim.checkpoints import Hints

    told = {field.name: getattr(options, field.name) for field in dataclasses.fields(Hints)}
    return Hints(**told) if any(value is not None for value in told.values()) else None
