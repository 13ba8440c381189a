"""``ddim convert``: a checkpoint of another program becomes a model folder."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing
from ddim.cli.options import parse
from ddim.cli.report import print_json, record

if TYPE_CHECKING:
    from ddim.checkpoints.record import Hints
    from ddim.interop.export import Export
    from ddim.model.model import Model
    from ddim.noise.schedule import Schedule

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
    scaled: bool = False
    """Whether β of --schedule linear are those of 1000 steps, times 1000/T."""
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
    steps: int | None = None
    """Make the folder's scheduler one that takes this many steps by --method on --nodes, as far as
    diffusers can follow it; what it cannot is said on stderr."""
    nodes: str = "uniform"
    """Nodes for --steps: a family's name, calibrated, or a list like 500,250,0."""
    method: str = "ddim"
    """Sampler for --steps: ddim, ddpm, dpmpp or unipc."""
    option: tuple[str, ...] = ()
    """The method's options for --steps, as KEY=VALUE."""
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
    refuse_existing(dest, force=options.force, other="another DEST")

    from ddim.model.opening import load

    model = load(
        options.source, weights=options.weights, schedule=_schedule(options), hints=_hints(options)
    )
    export = _export(options, model)
    if export is None:
        model.save(dest)
    else:
        model.save(dest, export.config)
        for warning in export.warnings:
            print(f"ddim convert: {warning}", file=sys.stderr)
    record(dest, "convert", dataclasses.replace(options, force=False, json=False))
    parameters = sum(p.numel() for p in model.net.parameters())
    facts = model.facts
    if options.json:
        print_json(
            {
                "folder": str(dest),
                "source": facts.get("source", "ddim"),
                "weights": facts.get("weights", "only" if _is_folder(options) else options.weights),
                "parameters": parameters,
                "shape": list(model.shape),
                "classes": model.classes,
                "target": model.target.value,
                "schedule": dict(model.schedule.spec),
                "learned_variance": facts.get("learned_variance", False),
                "assumed": list(facts.get("assumed", [])),
                "scheduler": None if export is None else dataclasses.asdict(export),
            }
        )
        return 0
    shape = " × ".join(map(str, model.shape))
    classes = f", {model.classes} classes" if model.classes else ""
    print(
        f"wrote {dest}: {facts.get('source', 'ddim')}, {parameters:,} parameters, {shape}"
        f"{classes}, predicts {model.target.value}, T={model.schedule.T}"
    )
    return 0


def _export(options: ConvertOptions, model: Model) -> Export | None:
    """The scheduler that is asked for, if one is."""
    from ddim.cli.sampler import SamplerOptions, make_sampler
    from ddim.interop.export import export_scheduler
    from ddim.model.sampler import calibration_of

    listed = options.nodes[:1].isdigit()
    if options.steps is None and not listed:
        if options.nodes != "uniform" or options.method != "ddim" or options.option:
            raise InputError("--nodes, --method and --option go with --steps")
        return None
    sampler = SamplerOptions(
        method=options.method, steps=options.steps, nodes=options.nodes, option=options.option
    )
    nodes, tableau = make_sampler(sampler, model, 0)
    method, chosen = options.method, dict(tableau.options)
    if options.nodes == "calibrated":
        found = calibration_of(model).samplers[len(nodes) - 1]
        method, chosen = found.method, dict(found.options)
    return export_scheduler(model, nodes, method, chosen)


def _is_folder(options: ConvertOptions) -> bool:
    """Whether the source is a model folder, which holds one set of weights."""
    from ddim.model.opening import shipped

    folder = Path(options.source)
    if (folder / "unet_ema").exists():
        return False
    names = ("model_index.json", "config.json")
    return options.source in shipped() or any((folder / name).exists() for name in names)


def _schedule(options: ConvertOptions) -> Schedule | None:
    from ddim.noise.schedule import Schedule

    betas = {"beta_start": options.beta_start, "beta_end": options.beta_end}
    betas = {key: value for key, value in betas.items() if value is not None}
    if options.schedule is None:
        if options.T is not None or betas or options.scaled:
            raise InputError("--T, --beta-start, --beta-end and --scaled go with --schedule")
        return None
    if options.scaled:
        if options.schedule != "linear":
            raise InputError(f"--scaled is for --schedule linear, not {options.schedule}")
        betas["scaled"] = True  # as the schedule's own record has it
    T = 1000 if options.T is None else options.T
    return Schedule.from_spec({"kind": options.schedule, "T": T, **betas})


def _hints(options: ConvertOptions) -> Hints | None:
    from ddim.checkpoints.record import Hints

    told = {field.name: getattr(options, field.name) for field in dataclasses.fields(Hints)}
    return Hints(**told) if any(value is not None for value in told.values()) else None
