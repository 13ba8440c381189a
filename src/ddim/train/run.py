"""A training run in a folder: data, network, checkpoints, metrics, and resuming."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim.base.barrier import barrier
from ddim.base.device import pick_device, set_threads
from ddim.base.errors import InputError, RunError
from ddim.base.files import locked
from ddim.base.ranks import apart, here
from ddim.base.records import checked, in_file
from ddim.checkpoints.record import Facts
from ddim.checkpoints.training import read_training
from ddim.data import pixels as images
from ddim.data.load import load_data
from ddim.data.sheet import enlarged
from ddim.denoisers.target import Target
from ddim.model.drawing import sample
from ddim.model.model import Model
from ddim.model.opening import load
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.schedule import Schedule
from ddim.train.checkpoint import (
    check_resumed,
    digest,
    load_checkpoint,
    save_checkpoint,
    saved_config,
)
from ddim.train.config import TrainConfig
from ddim.train.faults import NotFinite
from ddim.train.loop import TrainState, TrainStep, fit
from ddim.train.metrics import METRICS, Metrics
from ddim.train.replica import check_batch
from ddim.train.scaled import Scaled
from ddim.train.watchers import TENSORBOARD, WANDB, WANDB_ID

__all__ = ["CHECKPOINT", "RECORD", "Run", "unet_config"]

CHECKPOINT = "checkpoint.safetensors"
RECORD = "run.toml"
"""The command's options, which it writes as soon as there is a run."""


def unet_config(
    config: TrainConfig, shape: tuple[int, int, int], classes: int | None
) -> UNetConfig:
    """The UNet that a configuration asks for, for images of that shape.

    Time embedding, normalisation eps and downsampling are those of the official DDPM network.
    The label after the last class stands for 'none'.

    Raises:
        InputError: images that are not square or cannot be halved often enough, or attention at a
            resolution that there is none of.
    """
    channels, height, width = shape
    factor = 2 ** (len(config.channels) - 1)
    if height != width or height % factor:
        raise InputError(
            f"images of {height}×{width} cannot pass through {len(config.channels)} resolutions: "
            f"they must be square and divisible by {factor}"
        )
    sizes = [height // 2**i for i in range(len(config.channels))]
    if not set(config.attention) <= set(sizes):
        raise InputError(
            f"attention is at one of the resolutions {', '.join(map(str, sizes))}, not at "
            f"{', '.join(map(str, config.attention))}"
        )
    attends = [size in config.attention for size in sizes]
    down = tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends)
    up = tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends))
    try:
        return UNetConfig(
            sample_size=height,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=config.channels,
            layers_per_block=config.blocks,
            down_block_types=down,
            up_block_types=up,
            attention_head_dim=config.head_dim,
            norm_num_groups=config.groups,
            norm_eps=1e-6,
            dropout=config.dropout,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            num_class_embeds=classes + 1 if classes is not None else None,
        )
    except InputError as error:
        raise InputError(f"channels, groups or head_dim do not fit: {error}") from None


class Run:
    """One training run and its folder.

    ``metrics.jsonl`` gets a line every ``log_every`` steps; ``checkpoint.safetensors`` the whole
    state; ``model/`` the averaged weights as a model folder; ``samples/`` grids drawn with them.
    From its making to the end of :meth:`steps` the run keeps every other out of its folder.

    Of several processes (:mod:`ddim.base.ranks`) each makes the run and reads its part of every
    batch; the first writes, and the others wait for it however long that takes.

    Args:
        config: the run.
        output: its folder; made if need be.
        resume: go on from the folder's checkpoint; a run without one, since it was killed before
            the first, begins again.

    Raises:
        InputError: bad data, a network that does not fit it, a checkpoint that is damaged or of
            another run, a folder that another run is writing; processes that do not see the same
            data and the same checkpoint.
        RunError: another process is gone.
    """

    def __init__(self, config: TrainConfig, output: Path, *, resume: bool = False) -> None:
        self.config = config
        self.output = Path(output)
        self._ranks = here()
        check_batch(config, self._ranks)
        with contextlib.ExitStack() as stack:
            with barrier(self._ranks):
                stack.enter_context(locked(self.output, folder=True))
                self._open(resume)
            self._ranks.agree(self._common())
            with barrier(self._ranks):
                self._begin()
            self._lock = stack.pop_all()

    def _open(self, resume: bool) -> None:
        """Read the data, make the network, and take the state of a checkpoint or begin anew."""
        config = self.config
        set_threads(config.threads)
        self.device = pick_device(config.device)
        root = Path(config.data_root) if config.data_root else None
        self.data = load_data(
            config.data,
            size=config.size,
            channels=config.image_channels,
            root=root,
            skip_broken=config.skip_broken,
        )
        if config.classes and self.data.classes is None:
            raise InputError(f"{config.data} has no labels, which a class-conditional model needs")
        self.schedule = Schedule.from_spec(config.schedule_spec())
        classes = self.data.classes if config.classes else None
        self.unet = unet_config(config, self.data.shape, classes)
        # Without dropped labels the network never sees the label that stands for none.
        self.null_label = classes if config.label_dropout else None
        self.origin: dict[str, str] | None = None
        self._resumed = resume and (self.output / CHECKPOINT).exists()
        self.state = self._fresh_state(None if self._resumed else config.init)
        self.metrics = Metrics(self.output, config)
        if self._resumed:
            self._load(self.output / CHECKPOINT)

    def _common(self) -> dict[str, object]:
        """What all processes must have alike; it is compared before anything is written."""
        options = {f"the option {key}": value for key, value in self.config.to_json().items()}
        return {
            **options,
            "the data": sorted(self.data.checksums.values()),
            "the step of the checkpoint": self.state.step,
            "the weights": digest(self.state) if self._ranks.count > 1 else None,
        }

    def _begin(self) -> None:
        """Make the folder ready; nothing is refused from here on."""
        if not self._resumed and self._ranks.first:
            self._clear()
        self.metrics.begin(self.state.step)

    def _clear(self) -> None:
        """Remove an older run, its checkpoint last: until then it can be resumed."""
        for name in ("model", "samples", TENSORBOARD, WANDB):
            shutil.rmtree(self.output / name, ignore_errors=True)
        for name in (METRICS, RECORD, WANDB_ID, CHECKPOINT):
            (self.output / name).unlink(missing_ok=True)

    def _load(self, checkpoint: Path) -> None:
        """Take the state of a checkpoint, if it is one of this run."""
        saved = read_training(checkpoint)
        check_resumed(saved_config(saved), self.config)
        with in_file(f"{checkpoint}: its header is damaged"):
            data = checked("data", saved.facts.get("data"), Mapping[str, Any])
            before = checked("sha256", data.get("sha256"), Mapping[str, str])
            self.origin = checked("init", saved.facts.get("init"), Mapping[str, str] | None)
            interval = checked("interval", saved.facts.get("interval"), list[float])
            if len(interval) != 2:
                raise InputError(f"interval has {len(interval)} numbers")
            skipped = checked("skipped", saved.facts.get("skipped", 0), int)
            in_a_row = checked("in_a_row", saved.facts.get("in_a_row", 0), int)
        if sorted(before.values()) != sorted(self.data.checksums.values()):
            raise InputError(f"{self.config.data} is not the data that the run was begun with")
        load_checkpoint(saved, self.state)
        self.state.skipped, self.state.in_a_row = skipped, in_a_row
        self.metrics.interval = interval

    def _fresh_state(self, init: str | None) -> TrainState:
        with torch.random.fork_rng([]):
            torch.manual_seed(self.config.seed)
            net = UNet(self.unet)
        if init is not None:
            net.load_state_dict(self._initial(init))
        net = net.to(self.device)
        if self.device.type == "cuda":
            net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return TrainState.start(net, self.config)

    def _initial(self, source: str) -> dict[str, Tensor]:
        """The weights to start from, of a network just like this one."""
        model = load(source)
        if not isinstance(model.net, UNet):
            raise InputError(f"{source} is not a UNet of this package, which training starts from")
        other, own = model.net.config.to_json(), self.unet.to_json()
        # Dropout and the recorded size of images are not in the weights.
        for key in sorted(own.keys() | other.keys()):
            if own.get(key) != other.get(key) and key not in ("dropout", "sample_size"):
                raise InputError(
                    f"{source} has {key} = {other.get(key)} and this run {own.get(key)}: give the "
                    "network of the model to start from"
                )
        self.origin = {"name": model.name, "identity": model.identity}
        return model.net.state_dict()

    @property
    def facts(self) -> dict[str, Any]:
        """What a model folder says of the training, which diffusers has no field for."""
        return {
            "data": {"name": self.data.name, "sha256": self.data.checksums},
            "images_seen": self.state.step * self.config.batch_size,
            "seed": self.config.seed,
            "threads": torch.get_num_threads(),
            **({} if self.origin is None else {"init": self.origin}),
        }

    def steps(self, stop: Callable[[], bool] | None = None) -> Generator[TrainStep, None, None]:
        """Train to the end of the configuration, saving as it goes.

        The state is saved too when the caller stops early, by ``stop`` or, where there is one
        process alone, by closing the iterator. See :func:`~ddim.train.loop.fit`. For more steps
        after the end, make the run again.

        Args:
            stop: as :func:`~ddim.train.loop.fit` takes it.

        Raises:
            NotFinite: a RunError, as there; it names the last good checkpoint.
            RunError: as there.
        """
        with self._lock:
            yield from self._steps(stop)

    def _steps(self, stop: Callable[[], bool] | None) -> Generator[TrainStep, None, None]:
        config, metrics, whole = self.config, self.metrics, False
        if self._resumed:
            with metrics.aside():
                self._catch_up()
        saved = self.state.step if self._resumed else None
        data = Scaled(self.data)
        steps = fit(self.state, data, self.schedule, config, self.null_label, stop=stop)
        try:
            for step in steps:
                metrics.add(step, self.state.skipped)
                with metrics.aside():
                    if step.step == config.steps or self._crosses(step.step, config.save_every):
                        self.save()
                        saved = step.step
                    if self._due(step.step):
                        self._draw()
                yield step
            whole = True
        except NotFinite as error:
            there = "no checkpoint was saved before"
            if saved is not None:
                there = f"{self.output / CHECKPOINT} is the last good one, of step {saved}"
            saved = self.state.step
            raise NotFinite(f"{error}; {there}", error.step, error.images) from error
        except (KeyboardInterrupt, RunError):
            # In the middle of a step, perhaps: only what was saved before is good.
            saved = self.state.step
            raise
        finally:
            metrics.close()
            if self.state.step != (saved or 0):
                # After a failure nobody waits: the others do not know of it.
                self.save() if whole else self._write()

    def _catch_up(self) -> None:
        """Write what a kill after the last checkpoint has kept from being written.

        That is the model folder and the grid of its step, and a configuration of this call that no
        checkpoint knows yet.
        """
        self.save()
        if self._due(self.state.step) and not all(self._ranks.gather(self._drawn())):
            self._draw()

    def _drawn(self) -> bool:
        """Whether there is a grid of this step."""
        return self._grid(self.state.step).exists()

    def _due(self, step: int) -> bool:
        """Whether samples are drawn after that step."""
        every = self.config.sample_every
        return every > 0 and step > 0 and (step == self.config.steps or self._crosses(step, every))

    def _grid(self, step: int) -> Path:
        return self.output / "samples" / f"{step * self.config.batch_size:09d}.png"

    def _crosses(self, step: int, every: int) -> bool:
        """Whether this step is the first at or past a multiple of ``every`` images."""
        if every == 0:
            return False
        size = self.config.batch_size
        return step * size // every > (step - 1) * size // every

    def save(self) -> None:
        """Write the checkpoint, and the averaged weights as a model folder."""
        with barrier(self._ranks):
            self._write()

    def _write(self) -> None:
        if not self._ranks.first:
            return
        facts = {
            **self.facts,
            "unet": self.unet.to_json(),
            "schedule": dict(self.schedule.spec),
            "target": self.config.target,
            "classes": self.data.classes if self.config.classes else None,
            "interval": self.metrics.interval,
            "skipped": self.state.skipped,
            "in_a_row": self.state.in_a_row,
        }
        save_checkpoint(self.output / CHECKPOINT, self.state, self.config, facts)
        self.model().save(self.output / "model")

    def model(self) -> Model:
        """The averaged weights as a model."""
        classes = self.data.classes if self.config.classes else None
        return Model(
            self.state.ema,
            self.schedule,
            Target.named(self.config.target),
            self.data.shape,
            classes=classes,
            null_label=self.null_label,
            name=self.output.resolve().name,
            facts=Facts.of(self.facts),
        )

    def _draw(self) -> None:
        """A grid of samples by the averaged weights, always from the same latents."""
        with barrier(self._ranks):
            if not self._ranks.first:
                return
            with apart():
                drawn = sample(self.model(), 64, steps=min(50, self.schedule.T), clip=True)
            grid = images.grid(drawn)
            images.save_image(self._grid(self.state.step), enlarged(grid))
            self.metrics.picture(grid, self.state.step * self.config.batch_size)
