"""``ddim convert``: a checkpoint of another program becomes a model folder, or an ONNX file."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing
from ddim.cli.groups import ForceOptions, SamplerOptions, Switch, unset
from ddim.cli.options import parse
from ddim.cli.report import print_json, record

if TYPE_CHECKING:
    from ddim.checkpoints.record import Hints
    from ddim.interop.export import Export
    from ddim.interop.onnx import OnnxExport
    from ddim.model.model import Model
    from ddim.noise.schedule import Schedule

__all__ = ["ConvertOptions", "KnownOptions", "OnnxOptions", "main"]

ASSUMED = "the source's own, or its kind's"


@dataclasses.dataclass(frozen=True)
class KnownOptions:
    """What is known of the source, so that it is not assumed."""

    schedule: Annotated[
        Literal["linear", "scaled-linear", "cosine", "sigmoid"] | None, unset(ASSUMED)
    ] = None
    """Noise schedule that it was trained with."""
    T: Annotated[int | None, unset("1000", "INT")] = None
    """Number of noising steps of --schedule."""
    beta_start: Annotated[float | None, unset("0.0001", "FLOAT")] = None
    """First β of --schedule linear or scaled-linear."""
    beta_end: Annotated[float | None, unset("0.02", "FLOAT")] = None
    """Last β of --schedule linear or scaled-linear."""
    scaled: Switch = False
    """β of --schedule linear are those of 1000 steps, times 1000/T."""
    target: Annotated[Literal["eps", "x0", "v"] | None, unset(ASSUMED)] = None
    """What the network predicts."""
    image_size: Annotated[int | None, unset(ASSUMED, "INT")] = None
    """Height and width of an image."""
    heads: Annotated[int | None, unset(ASSUMED, "INT")] = None
    """Attention heads."""
    head_channels: Annotated[int | None, unset(ASSUMED, "INT")] = None
    """Channels of an attention head, instead of --heads."""
    qkv_order: Annotated[Literal["head", "whole"] | None, unset(ASSUMED)] = None
    """How guided-diffusion orders query, key and value: head by head, or all queries first."""
    rescale_times: Annotated[
        bool | None, tyro.conf.FlagConversionOff, unset(ASSUMED, "{true,false}")
    ] = None
    """Whether improved-diffusion scaled times to 0..1000."""

    def make_schedule(self) -> Schedule | None:
        """The schedule; None if nothing is said of it.

        Raises:
            InputError: options of a schedule that is not named, or that it does not have.
        """
        from ddim.noise.schedule import Schedule

        betas = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        betas = {key: value for key, value in betas.items() if value is not None}
        if self.schedule is None:
            if self.T is not None or betas or self.scaled:
                raise InputError("--T, --beta-start, --beta-end and --scaled go with --schedule")
            return None
        if self.scaled:
            if self.schedule != "linear":
                raise InputError(f"--scaled is for --schedule linear, not {self.schedule}")
            betas["scaled"] = True  # as the schedule's own record has it
        T = 1000 if self.T is None else self.T
        return Schedule.from_spec({"kind": self.schedule, "T": T, **betas})

    def hints(self) -> Hints | None:
        """The rest; None if nothing is said.

        Raises:
            InputError: as :class:`ddim.Hints`.
        """
        from ddim.checkpoints.record import Hints

        told = {field.name: getattr(self, field.name) for field in dataclasses.fields(Hints)}
        return Hints(**told) if any(value is not None for value in told.values()) else None


@dataclasses.dataclass(frozen=True)
class OnnxOptions:
    """An ONNX file instead of a folder."""

    onnx: Annotated[str | None, unset("none", "FILE")] = None
    """The file to write instead of DEST: network and sampler as one graph, noise to images."""
    network_only: Switch = False
    """Write the network alone to --onnx, without a sampler."""
    guidance: float = 1.0
    """Scale of classifier-free guidance in --onnx; 1 is none."""
    clip: Annotated[
        bool | None, tyro.conf.FlagConversionOff, unset("the model's default", "{true,false}")
    ] = None
    """Clip the predicted x0 to [-1, 1] in --onnx."""
    batch_size: Annotated[int | None, unset("any", "INT")] = None
    """Images at once in --onnx, where the number is to be fixed."""
    opset: int = 18
    """Version of the operators in --onnx."""


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """Write a model as a folder that ddim and diffusers open, or as an ONNX file.

    What the source does not say is assumed from the published models of its kind and reported on
    stderr, unless an option says it. A network that diffusers' UNet2DModel cannot express is
    refused with the reason, and can still be used as it is by every other verb. With --method,
    --steps or --nodes the folder's scheduler is one that does the same in diffusers, as far as it
    can be followed there; what cannot is said on stderr.

    With --onnx FILE the network and its sampler become one graph, which needs no torch to run; it
    is compared with ddim sample where onnxruntime is installed.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim convert model-790000.ckpt cifar10",
        "ddim convert mnist-cond --onnx digits.onnx --steps 10 --guidance 2",
    )

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A checkpoint of another program, a training run, a folder, a shipped model, OWNER/NAME."""
    dest: Annotated[tyro.conf.Positional[str | None], unset("none", "DEST")] = None
    """The folder to write."""
    weights: Literal["ema", "net"] = "ema"
    """The averaged weights, or the raw ones (net)."""
    known: KnownOptions = KnownOptions()
    scheduler: SamplerOptions = SamplerOptions()
    graph: OnnxOptions = OnnxOptions()
    output: ForceOptions = ForceOptions()
    json: Switch = False
    """Print one JSON document instead of text."""

    def check(self) -> Path:
        """The folder or the file, if it is one that can be written.

        Raises:
            InputError: it is not, or the options are not those of a folder or of a file.
        """
        graph = self.graph
        if graph.onnx is None:
            if self.dest is None:
                raise InputError("DEST is missing: the folder to write, or --onnx FILE")
            if graph != OnnxOptions():
                raise InputError(
                    "--network-only, --guidance, --clip, --batch-size and --opset go with --onnx"
                )
            dest = Path(self.dest)
            if dest.is_file():
                raise InputError(f"{dest} is a file: the model is written as a folder")
            refuse_existing(dest, force=self.output.force, other="another DEST")
            return dest
        if self.dest is not None:
            raise InputError(f"{self.dest} is a folder to write, and --onnx a file: give one")
        if graph.network_only and self.scheduler != SamplerOptions():
            raise InputError("--network-only writes no sampler: leave its options out")
        dest = Path(graph.onnx)
        if dest.is_dir():
            raise InputError(f"{dest} is a folder: --onnx takes a file")
        refuse_existing(dest, force=self.output.force, other="another --onnx")
        return dest


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`ConvertOptions`."""
    options = parse(ConvertOptions, "convert", argv)
    dest = options.check()
    sampler = options.scheduler.sampler()

    from ddim.model.opening import load

    model = load(
        options.source,
        weights=options.weights,
        schedule=options.known.make_schedule(),
        hints=options.known.hints(),
    )
    if options.graph.onnx is not None:
        from ddim.interop.onnx import export_onnx
        from ddim.model.condition import Condition

        graph = options.graph
        made = export_onnx(
            model,
            dest,
            None if graph.network_only else sampler,
            condition=Condition(guidance=graph.guidance, clip=graph.clip),
            batch_size=graph.batch_size,
            opset=graph.opset,
        )
        record(dest, "convert", options)
        _tell_onnx(options, model, made)
        return 0
    from ddim.interop.export import export_scheduler

    export = None
    if options.scheduler != SamplerOptions():
        export = export_scheduler(model, sampler)
    model.save(dest, None if export is None else export.config)
    record(dest, "convert", options)
    _tell(options, model, export)
    return 0


def _tell_onnx(options: ConvertOptions, model: Model, made: OnnxExport) -> None:
    if made.error is None:
        print(
            "ddim convert: not compared with ddim sample: onnxruntime is not installed",
            file=sys.stderr,
        )
    if options.json:
        print_json(
            {
                "file": str(made.path),
                "source": model.facts.source,
                "bytes": made.size,
                "inputs": dict(made.inputs),
                "output": made.output,
                "sampler": None if made.sampler is None else str(made.sampler),
                "calls": made.calls,
                "error": made.error,
            }
        )
        return
    what = "the network alone" if made.sampler is None else f"{made.sampler}, {made.calls} calls"
    off = "" if made.error is None else f", within {made.error:.1e} of ours in onnxruntime"
    print(f"wrote {made.path}: {model.name}, {what}, {made.size / 1e6:.1f} MB{off}")
    for name, about in made.inputs.items():
        print(f"  {name}: {about}")


def _tell(options: ConvertOptions, model: Model, export: Export | None) -> None:
    for warning in () if export is None else export.warnings:
        print(f"ddim convert: {warning}", file=sys.stderr)
    parameters = sum(p.numel() for p in model.net.parameters())
    facts = model.facts
    if options.json:
        print_json(
            {
                "folder": options.dest,
                "source": facts.source,
                "weights": facts.weights,
                "parameters": parameters,
                "shape": list(model.shape),
                "classes": model.classes,
                "target": model.target.value,
                "schedule": dict(model.schedule.spec),
                "learned_variance": facts.learned_variance,
                "assumed": list(facts.assumed),
                "scheduler": None if export is None else dataclasses.asdict(export),
            }
        )
        return
    shape = " × ".join(map(str, model.shape))
    classes = f", {model.classes} classes" if model.classes else ""
    print(
        f"wrote {options.dest}: {facts.source}, {parameters:,} parameters, {shape}"
        f"{classes}, predicts {model.target.value}, T={model.schedule.T}"
    )
