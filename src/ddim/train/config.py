"""What a training run is: one flat, frozen record, and the presets. No torch here.

The record is made of groups, by which ``ddim train --help`` is laid out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from ddim.base.display import shown
from ddim.base.errors import InputError, quoted, unknown
from ddim.base.records import check_fields, record

if TYPE_CHECKING:
    from ddim.noise.schedule import Schedule

__all__ = [
    "PRESETS",
    "Data",
    "Diffusion",
    "Network",
    "Optimisation",
    "Record",
    "TrainConfig",
    "check_signal",
]

_LONGEST = 1_000_000
"""The most steps of a schedule, which is arrays of that many numbers."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images."""

    data: str = "mnist"
    """A data set's name, a folder of images, of IDX or of CIFAR-10 files, or an .npz file."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    size: int | None = None
    """Images are resized and cropped to this (folders of images only)."""
    image_channels: int | None = None
    """Channels of images in a folder: 1 or 3; None for 1 where none has colours, else 3."""
    skip_broken: bool = False
    """Leave out image files that cannot be read, and say which: all are decoded first."""


@dataclasses.dataclass(frozen=True)
class Network:
    """Which network."""

    channels: tuple[int, ...] = (32, 64, 64)
    """Channels at each resolution; each is half of the one before."""
    blocks: int = 2
    """Residual blocks at each resolution."""
    attention: tuple[int, ...] = ()
    """Resolutions, in pixels, with attention after each block; the middle always has one."""
    head_dim: int | None = None
    """Channels of an attention head; None for a single head."""
    groups: int = 32
    """Groups of each group normalisation."""
    dropout: float = 0.0
    """Dropout probability within the residual blocks."""
    classes: bool = False
    """Condition on the class labels of the data."""
    label_dropout: float = 0.1
    """Share of labels replaced by 'none', which classifier-free guidance needs."""
    init: str | None = None
    """Start from these weights: a shipped name, a folder, a run, a checkpoint, OWNER/NAME."""


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """What it learns."""

    T: int = 1000
    """Number of noising steps."""
    schedule: Literal["linear", "scaled-linear", "cosine", "sigmoid"] = "linear"
    """Noise schedule."""
    beta_start: float = 1e-4
    """First β of a linear schedule."""
    beta_end: float = 0.02
    """Last β of a linear schedule."""
    scaled: bool = False
    """Multiply both β of a linear schedule by 1000/T, which keeps the noise at T for any T."""
    zero_snr: bool = False
    """Rescale the schedule to no signal at T, which needs the target v or x0."""
    target: Literal["eps", "x0", "v"] = "eps"
    """What the network predicts."""
    weighting: Literal["uniform", "min-snr"] = "uniform"
    """How the noise levels weigh in the loss."""
    gamma: float = 5.0
    """γ of the min-SNR weighting."""
    antithetic: bool = True
    """Draw noise levels in mirrored pairs."""
    focus: tuple[int, ...] = ()
    """First and last node of a range that half of the noise levels are drawn from. These weigh more
    in the objective and in the logged losses."""

    @property
    def has_beta(self) -> bool:
        """Whether the first and last β are what the schedule is made of."""
        return self.schedule in ("linear", "scaled-linear")


@dataclasses.dataclass(frozen=True)
class Optimisation:
    """How it learns."""

    images: int = 600_000
    """Training images to see in all."""
    batch_size: int = 128
    """Images a step, of all processes together."""
    accumulate: int = 1
    """Equal parts of a batch, seen by the network one after the other: less memory, for the same
    weights within rounding (dropout draws other masks). A resumed run may change it."""
    optimizer: Literal["adam", "adamw", "muon"] = "adam"
    """Optimizer; adamw decouples the weight decay, muon orthogonalises the updates of matrices."""
    lr: float = 2e-4
    """Learning rate after the warm-up."""
    weight_decay: float = 0.0
    """Weight decay."""
    warmup_images: int = 0
    """Images over which the learning rate rises from zero."""
    decay_images: int = 0
    """Images at the end over which the learning rate falls to zero. A run that is shorter than its
    warm-up and this together shortens both alike."""
    clip: float | None = 1.0
    """Largest gradient norm."""
    ema: float = 0.9999
    """Decay of the moving average of the weights, a step; lower while the run is young."""
    flip: bool = False
    """Mirror images left to right, half of the time."""
    skip_bad_batches: bool = False
    """Leave out steps whose loss or gradient is not finite, and count them; ten may be in a row.
    Otherwise the first ends the run."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's arithmetic; bfloat16 is autocast, weights stay float32."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads; the weights' last bits depend on it."""
    seed: int = 0
    """Everything random follows from it."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What is kept of the run."""

    save_every: int = 50_000
    """Images between checkpoints."""
    sample_every: int = 100_000
    """Images between sample grids; 0 for none."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = False
    """Write TensorBoard events too."""
    wandb: str | None = None
    """Log to this project of Weights & Biases too; WANDB_MODE=offline needs no connection."""
    prometheus: str | None = None
    """Keep the latest metrics in this file, NAME.prom, for Prometheus' node exporter."""


# The fields of the last base come first.
@shown
@dataclasses.dataclass(frozen=True)
class TrainConfig(Record, Optimisation, Diffusion, Network, Data):
    """Every number that a training run depends on.

    Two runs of one configuration on one machine with as many threads see the same images in the
    same order with the same noise, and end with the same weights.
    """

    def __post_init__(self) -> None:
        for name in ("channels", "attention", "focus"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        check_fields(self)
        self._check_numbers()
        self._check_use()
        from ddim.noise.schedule import Schedule

        check_signal(Schedule.from_spec(self.schedule_spec()), self.target)

    def _check_numbers(self) -> None:
        for name in (
            "T", "images", "batch_size", "accumulate", "blocks", "groups", "save_every", "log_every"
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("size", "head_dim", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("warmup_images", "decay_images", "sample_every", "seed", "weight_decay"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative: {getattr(self, name)}")
        for name in ("dropout", "label_dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in ("lr", "gamma", "clip"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                none = ", or None" if name == "clip" else ""
                raise InputError(f"{name} must be positive{none}, not {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"accumulate = {self.accumulate} does not divide a batch_size of "
                f"{self.batch_size} into equal parts: give a divisor"
            )
        if self.seed >= 2**64:
            raise InputError(f"seed must be from 0 to 2⁶⁴ - 1, not {self.seed}")
        if self.T > _LONGEST:
            raise InputError(f"T must be at most {_LONGEST:,}, not {self.T}")
        if not self.channels or min(self.channels) < 1:
            raise InputError(f"channels must name at least one resolution: {quoted(self.channels)}")
        if not 0 < self.beta_start <= self.beta_end <= 1:
            raise InputError(f"β must rise within (0, 1]: {self.beta_start} to {self.beta_end}")
        if self.focus and not (
            len(self.focus) == 2 and 1 <= self.focus[0] <= self.focus[1] <= self.T
        ):
            raise InputError(
                f"focus must be the first and last of nodes 1..{self.T}: {quoted(self.focus)}"
            )

    def _check_use(self) -> None:
        """Refuse what would have no effect beside the other options."""
        beta = "linear and scaled-linear schedules"
        for name, used, where in (
            ("beta_start", self.has_beta, beta),
            ("beta_end", self.has_beta, beta),
            ("scaled", self.schedule == "linear", "the linear schedule"),
            ("gamma", self.weighting == "min-snr", "the weighting min-snr"),
            ("label_dropout", self.classes, "training with classes"),
            ("focus", self.batch_size > 1, "batches of two or more, half of which it draws"),
        ):
            if not used and getattr(self, name) != _DEFAULTS[name]:
                raise InputError(
                    f"{name} is for {where}, and would have no effect here: leave it at "
                    f"{_DEFAULTS[name]}"
                )

    def said_of_schedule(self) -> dict[str, Any]:
        """What the configuration says of the schedule beside T: what is not left as it is."""
        names = ("schedule", "beta_start", "beta_end", "scaled", "zero_snr")
        return {n: getattr(self, n) for n in names if getattr(self, n) != _DEFAULTS[n]}

    @property
    def steps(self) -> int:
        """Optimizer steps in all; the last batch is full."""
        return -(-self.images // self.batch_size)

    def schedule_spec(self) -> dict[str, Any]:
        """The schedule as :meth:`ddim.Schedule.from_spec` reads it."""
        spec: dict[str, Any] = {"kind": self.schedule, "T": self.T}
        if self.has_beta:
            spec |= {"beta_start": self.beta_start, "beta_end": self.beta_end}
        if self.schedule == "linear":
            spec["scaled"] = self.scaled
        return spec | ({"zero_terminal_snr": True} if self.zero_snr else {})

    def to_json(self) -> dict[str, Any]:
        """Plain values, every field."""
        values = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_json`; fields that are absent keep their defaults.

        Raises:
            InputError: an unknown field, with the nearest one offered, or a value that is none.
        """
        return record(cls, values)

    @classmethod
    def preset(cls, name: str) -> TrainConfig:
        """The preset of that name.

        Raises:
            InputError: unknown name, with the nearest one offered.
        """
        if name not in PRESETS:
            raise unknown("preset", name, PRESETS)
        return PRESETS[name]


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}


def check_signal(schedule: Schedule, target: str) -> None:
    """Refuse ε as the target where a node has no signal, whichever way the schedule came to that.

    What is trained on is α·x0 + σ·ε in float32. Where α is 0 there, ε is the input, and the output
    says nothing about the image.

    Raises:
        InputError: the first such node is named.
    """
    silent = (schedule.alpha.astype("float32") == 0).nonzero()[0]
    if target == "eps" and len(silent):
        raise InputError(
            f"α = 0 at node {silent[0]} of {schedule.T} (zero SNR), where ε says nothing about the "
            "image: give the target v or x0, or a schedule that keeps some signal"
        )


_MNIST = TrainConfig(
    data="mnist",
    channels=(32, 32, 80),
    blocks=1,
    groups=8,
    head_dim=20,
    T=500,
    beta_start=2e-4,
    beta_end=0.04,
    weighting="min-snr",
    batch_size=64,
    images=960_000,
    optimizer="muon",
    lr=3e-3,
    warmup_images=12_800,
    decay_images=560_000,
    ema=0.999,
    precision="bfloat16",
)

# The official configuration of the DDIM paper's CIFAR-10 and CelebA networks: 800,000 steps of 128
# and 500,000 steps of 128 (Ho et al. 2020, appendix B).
_CIFAR10 = TrainConfig(
    data="cifar10",
    channels=(128, 256, 256, 256),
    attention=(16,),
    dropout=0.1,
    images=800_000 * 128,
    flip=True,
    save_every=1_280_000,
    sample_every=1_280_000,
)

PRESETS: dict[str, TrainConfig] = {
    "mnist": _MNIST,
    "mnist-cond": dataclasses.replace(
        _MNIST,
        classes=True,
        images=660_000,
        optimizer="adamw",
        lr=1.5e-3,
        decay_images=180_000,
    ),
    # Not mirrored: its shoes all point to the left.
    "fashion": dataclasses.replace(_MNIST, data="fashion-mnist"),
    "digits": dataclasses.replace(
        _MNIST, data="digits", channels=(32, 64), head_dim=32, images=300_000, save_every=20_000
    ),
    "cifar10": _CIFAR10,
    "celeba": dataclasses.replace(
        _CIFAR10, data="celeba", size=64, channels=(128, 256, 256, 256, 512), images=500_000 * 128
    ),
}
"""Configurations by name; ``cifar10`` and ``celeba`` are the official ones."""
