"""The groups of options that verbs share, each declared once. No torch here.

A verb's dataclass has groups as fields, with other defaults where it needs them; their names stay
flat on the command line and in a file. A field whose None or nothing stands for something says what
by :func:`unset`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ddim.base.errors import InputError

if TYPE_CHECKING:
    from ddim.latents.coding import Coding
    from ddim.model.condition import Condition
    from ddim.model.model import Model
    from ddim.samplers.sampler import Sampler

__all__ = [
    "CodecOptions",
    "ConditionOptions",
    "Count",
    "DataConditionOptions",
    "DataOptions",
    "DeviceOptions",
    "ForceOptions",
    "GridOptions",
    "GuidanceOptions",
    "ModelArgument",
    "ModelOptions",
    "NamedModelOptions",
    "NetworkOptions",
    "OutputOptions",
    "PictureOptions",
    "ReportOptions",
    "RunOptions",
    "SamplerOptions",
    "SweepOptions",
    "Switch",
    "unset",
]


def unset(meaning: str, metavar: str | None = None) -> object:
    """The mark of an option whose None or nothing stands for something, which its help shows.

    Args:
        meaning: what no value stands for.
        metavar: what the help calls a value.
    """

    def hint(shown: str) -> str:
        return f"(default: {meaning if shown in _NOTHING else shown})"

    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


_NOTHING = ("None", "", "''")
Switch = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
"""The type of a field that is a plain switch."""

Count = Annotated[int, tyro.conf.arg(aliases=("-n",))]
"""The type of a field ``n``, which is also written -n."""


@dataclasses.dataclass(frozen=True)
class NamedModelOptions:
    """Which network."""

    model: str = "mnist"
    """Shipped model, folder, training run, checkpoint, FILE.py:NAME, or OWNER/NAME on the Hub."""
    null_label: Annotated[int | None, unset("the model's own", "LABEL")] = None
    """The label that stands for no class, which guidance needs."""

    def open(self, run: NetworkOptions, dtype: str = "float32") -> Model:
        """The model, on the device that is asked for and in a precision.

        Raises:
            InputError: as :func:`ddim.load`; or several processes that open different ones.
        """
        import torch

        from ddim.base.device import set_threads
        from ddim.model.agreement import agree_on
        from ddim.model.opening import load

        set_threads(run.threads)
        model = load(self.model, device=run.device, null_label=self.null_label)
        model = model.to(dtype=getattr(torch, dtype)).with_backend(run.backend)
        agree_on(model)
        return model


@dataclasses.dataclass(frozen=True)
class ModelOptions(NamedModelOptions):
    """Which network, and how it is taken."""

    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Precision of the network; the states are at least float32."""

    def open(self, run: NetworkOptions, dtype: str | None = None) -> Model:
        """The model, in the precision that is asked for unless another is given.

        Raises:
            InputError: as :func:`ddim.load`.
        """
        return super().open(run, dtype or self.dtype)


@dataclasses.dataclass(frozen=True)
class ModelArgument(ModelOptions):
    """Which network, and how it is taken."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = "mnist"
    """Shipped model, folder, training run, checkpoint, FILE.py:NAME, or OWNER/NAME on the Hub."""


@dataclasses.dataclass(frozen=True)
class SamplerOptions:
    """Method, steps and nodes."""

    method: str = "ddim"
    """Sampler, with its options: ddim, ddpm, dpmpp:order=3, ..., calibrated or FILE.py:NAME."""
    steps: Annotated[int | None, unset("50", "INT")] = None
    """Steps, from 1 to T; a list of nodes has its own number of them."""
    nodes: Annotated[tuple[str, ...], unset("uniform", "NAME|K ...")] = ()
    """Where the steps stop: uniform, quadratic, log-snr and so on, or a list like 500,250,0."""
    eta: Annotated[float | None, unset("the method's own", "FLOAT")] = None
    """DDIM's η: 0 is deterministic, 1 is as random as DDPM."""
    order: Annotated[int | None, unset("the method's own", "INT")] = None
    """Order, for methods that have several."""
    option: Annotated[tuple[str, ...], unset("none", "KEY=VALUE ...")] = ()
    """Other options of the method: variance=large for ddpm."""

    def sampler(self) -> Sampler:
        """What they spell.

        Raises:
            InputError: as :meth:`ddim.Sampler.parse`.
        """
        from ddim.samplers.sampler import Sampler

        text = ":".join([self.method, *self.option])
        nodes = "-".join(self.nodes) or None
        return Sampler.parse(text, self.steps, nodes, eta=self.eta, order=self.order)


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Which samplers: every combination of these lists, written 5,10,20 or 5 10 20."""

    methods: Annotated[tuple[str, ...], unset("none", "METHOD ...")] = ("ddim",)
    """Samplers, with their options as in dpmpp:order=3."""
    steps: Annotated[tuple[str, ...], unset("none", "INT ...")] = ("5", "10", "20", "50")
    """Numbers of steps; numbers above T are capped at T."""
    eta: Annotated[tuple[str, ...], unset("the method's own", "FLOAT ...")] = ()
    """DDIM's η: 0 is deterministic, 1 is DDPM's, sigma-hat is DDPM's larger variance."""
    nodes: Annotated[tuple[str, ...], unset("uniform", "NODES ...")] = ()
    """Families of nodes, or lists, each like 500-250-0."""

    def samplers(self, model: Model) -> list[Sampler]:
        """Every combination that there is for a model.

        Raises:
            InputError: as :func:`ddim.evaluate.sweep.plan.plan_samplers`.
        """
        from ddim.cli.options import numbers
        from ddim.evaluate.sweep.plan import SIGMA_HAT, plan_samplers

        counts = numbers(self.steps, int, "--steps")
        etas = numbers(self.eta, float, "--eta", (SIGMA_HAT,))
        return plan_samplers(model, self.methods, counts, self.nodes, etas)


@dataclasses.dataclass(frozen=True)
class CodecOptions:
    """Codec, steps and nodes."""

    codec: str = "obelm"
    """obelm, ddim, implicit, edict or bdia; also with steps and nodes: obelm:steps=20."""
    steps: Annotated[int | None, unset("50", "INT")] = None
    """Steps, from 1 to T; a list of nodes has its own number of them."""
    nodes: Annotated[tuple[str, ...], unset("uniform", "NAME|K ...")] = ()
    """Where the steps stop: uniform, quadratic, log-snr and so on, or a list like 500,250,1."""

    def coding(self) -> Coding:
        """What they spell.

        Raises:
            InputError: as :meth:`ddim.latents.coding.Coding.parse`.
        """
        from ddim.latents.coding import Coding

        return Coding.parse(self.codec, self.steps, "-".join(self.nodes) or None)


@dataclasses.dataclass(frozen=True)
class GuidanceOptions:
    """Which classes, and how much they count."""

    labels: Annotated[tuple[int, ...], unset("every class in turn", "LABEL ...")] = ()
    """Classes, repeated in this order."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none."""


@dataclasses.dataclass(frozen=True)
class DataConditionOptions(GuidanceOptions):
    """What images of a data set are conditioned on."""

    labels: Annotated[tuple[int, ...], unset("those of the data", "LABEL ...")] = ()
    """Classes instead of the data's, repeated in this order."""

    def condition(self, found: Sequence[int] | None, clip: bool | None = False) -> Condition:
        """What they say.

        Args:
            found: the labels of the data, if they have any.
            clip: clip the predicted x0, or do not; None for the model's default.

        Raises:
            InputError: as :class:`ddim.Condition`.
        """
        from ddim.model.condition import Condition

        return Condition(self.labels or found, guidance=self.guidance, clip=clip)


@dataclasses.dataclass(frozen=True)
class ConditionOptions(GuidanceOptions):
    """What the images are conditioned on."""

    clip: Annotated[
        bool | None, tyro.conf.FlagConversionOff, unset("the model's default", "{true,false}")
    ] = None
    """Clip the predicted x0 to [-1, 1]."""

    def condition(self) -> Condition:
        """What they say.

        Raises:
            InputError: as :class:`ddim.Condition`.
        """
        from ddim.model.condition import Condition

        return Condition(self.labels or None, guidance=self.guidance, clip=self.clip)


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which images."""

    data: Annotated[str, unset("none")] = "mnist"
    """Data set's name, image, folder of images, of IDX or of CIFAR-10 files, or .npz."""
    data_root: Annotated[str | None, unset("the user's cache", "FOLDER")] = None
    """The folder that named data sets are kept in and downloaded to."""
    split: Annotated[str | None, unset("test where there is one", "NAME")] = None
    """The part of the data set: train or test."""
    skip_broken: Switch = False
    """Leave out image files that cannot be read, and say which: all are decoded first."""


@dataclasses.dataclass(frozen=True)
class ForceOptions:
    """What may be written over."""

    force: Switch = False
    """Write over what is there."""


@dataclasses.dataclass(frozen=True)
class _Output:
    output: Annotated[str, unset("none", "PATH")]
    """The file or folder to write."""


@dataclasses.dataclass(frozen=True)
class OutputOptions(ForceOptions, _Output):
    """Where to write."""


@dataclasses.dataclass(frozen=True)
class PictureOptions:
    """How large the picture is."""

    scale: Annotated[int | None, unset("what makes it 512 pixels wide or more", "INT")] = None
    """Pixels of the picture along each side of an image's pixel."""

    def check(self, shape: Sequence[int], columns: int, rows: int) -> None:
        """Refuse a picture that cannot be drawn, before anything is.

        Args:
            shape: of one image.
            columns: images in a row.
            rows: of images.

        Raises:
            InputError: a scale below 1, or more pixels than a picture may have.
        """
        from ddim.data.sheet import pixel_scale

        if self.scale is not None and self.scale < 1:
            raise InputError(f"--scale must be at least 1, not {self.scale}")
        height, width = (1, 1, *shape)[-2:]
        pixel_scale(columns * (width + 2), rows * (height + 2), self.scale)


@dataclasses.dataclass(frozen=True)
class GridOptions(PictureOptions):
    """How the picture is laid out: of one image, and of edited ones, with pixels of their own."""

    columns: Annotated[int | None, unset("a square", "INT")] = None
    """Images in a row of the grid."""

    def check_output(self, output: Path, kinds: Sequence[str]) -> None:
        """Refuse what is for a grid where none is written.

        Args:
            output: the file or folder.
            kinds: suffixes of grids.

        Raises:
            InputError: there is no grid, or it would have no columns.
        """
        if self.columns is not None and self.columns < 1:
            raise InputError(f"--columns must be at least 1, not {self.columns}")
        if self.scale is not None and self.scale < 1:
            raise InputError(f"--scale must be at least 1, not {self.scale}")
        if output.suffix.lower() in kinds:
            return
        named = ", ".join(kinds[:-1]) + (" or " if kinds[1:] else "") + kinds[-1]
        for name in ("columns", "scale"):
            if getattr(self, name) is not None:
                raise InputError(f"--{name} is for a grid ({named}), not {output.name}")

    def check_grid(self, shape: Sequence[int], count: int) -> None:
        """As :meth:`check`, for so many images."""
        columns = min(self.columns or math.ceil(math.sqrt(count)), count)
        self.check(shape, columns, -(-count // columns))


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """Where the network runs."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    threads: Annotated[int | None, unset("torch's own", "INT")] = None
    """CPU threads: so many batches run side by side. They do not change the images."""


@dataclasses.dataclass(frozen=True)
class NetworkOptions(DeviceOptions):
    """How the network is called."""

    batch_size: Annotated[
        int | None,
        unset(
            "by ncnn 1; else on a CPU 8 up to 64 x 64 pixels, 1 above; on a GPU what fills it",
            "INT",
        ),
    ] = None
    """Images in one network call; it decides the last bits. 1 has the lowest latency."""
    backend: str = "auto"
    """auto, the fastest exact one; torch, ncnn, openvino; on CUDA cuda-graph or compile."""


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What is printed."""

    json: Switch = False
    """Print one JSON document instead of text."""
    quiet: Switch = False
    """Show no progress bars."""
    log: Switch = False
    """Print a line of JSON every ten seconds instead of progress bars."""


# The fields of the last base come first.
@dataclasses.dataclass(frozen=True)
class RunOptions(ReportOptions, NetworkOptions):
    """How to run."""
