"""Where a run's metrics go beside its own file: TensorBoard, Weights & Biases, Prometheus."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ddim.base.errors import InputError, RunError
from ddim.base.exposition import Metric, check_exposition, write_exposition
from ddim.base.files import write_bytes
from ddim.base.ranks import here
from ddim.train.config import TrainConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TENSORBOARD", "WANDB", "WANDB_ID", "Watcher", "watchers"]

TENSORBOARD = "tensorboard"
WANDB = "wandb"
WANDB_ID = "wandb-id"
"""The file that keeps the id of the run at Weights & Biases, so that it is resumed as one."""

_CURVES = ("loss", "grad_norm", "lr", "images_per_s")


class Watcher(Protocol):
    """One of them. It is made before anything is written, and refuses what it cannot do."""

    def begin(self, step: int) -> None:
        """Open what is written to, for a run that goes on after that step."""
        ...

    def line(self, line: Mapping[str, Any]) -> None:
        """A line of the metrics."""
        ...

    def picture(self, grid: Tensor, images: int) -> None:
        """Samples, shape (C, H, W), after that many training images."""
        ...

    def flush(self) -> None:
        """Write what is held back."""
        ...

    def close(self) -> None:
        """The run has ended, or stopped."""
        ...


def watchers(output: Path, config: TrainConfig) -> list[Watcher]:
    """Those that a configuration asks for; of several processes the first has them.

    Raises:
        InputError: one is not installed, or its file cannot be written.
    """
    found: list[Watcher] = []
    if not here().first:
        return found
    if config.tensorboard:
        found.append(_TensorBoard(output, config))
    if config.wandb is not None:
        found.append(_Wandb(output, config, config.wandb))
    if config.prometheus is not None:
        found.append(_Prometheus(output, config, Path(config.prometheus)))
    return found


class _TensorBoard:
    def __init__(self, output: Path, config: TrainConfig) -> None:
        try:
            self._kind = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError:
            raise InputError(
                "TensorBoard is not installed: pip install 'ddim[tensorboard]'"
            ) from None
        self._folder, self._size = output / TENSORBOARD, config.batch_size
        self._board: SummaryWriter

    def begin(self, step: int) -> None:
        self._board = self._kind(str(self._folder), purge_step=step * self._size + 1)

    def line(self, line: Mapping[str, Any]) -> None:
        for name in _CURVES:
            if line[name] is not None:
                self._board.add_scalar(name, line[name], line["images"])

    def picture(self, grid: Tensor, images: int) -> None:
        self._board.add_image("samples", grid, images)

    def flush(self) -> None:
        self._board.flush()

    def close(self) -> None:
        self._board.flush()


class _Wandb:
    """One run at Weights & Biases, however often the training is interrupted."""

    def __init__(self, output: Path, config: TrainConfig, project: str) -> None:
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError:
            raise InputError(
                "Weights & Biases is not installed: pip install 'ddim[wandb]'"
            ) from None
        self._output, self._config, self._project = output, config, project
        self._run: Any = None

    def begin(self, step: int) -> None:
        path = self._output / WANDB_ID
        if not path.exists():
            write_bytes(path, f"{secrets.token_hex(4)}\n".encode())
        try:
            self._run = self._wandb.init(
                project=self._project,
                name=self._output.resolve().name,
                id=path.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(self._output),
                config=self._config.to_json(),
                settings=self._wandb.Settings(silent=True, console="off", save_code=False),
            )
        except self._wandb.Error as error:
            raise RunError(
                f"Weights & Biases cannot be reached: {error}; WANDB_MODE=offline needs no "
                "connection"
            ) from error

    def line(self, line: Mapping[str, Any]) -> None:
        self._run.log(dict(line), step=line["step"])

    def picture(self, grid: Tensor, images: int) -> None:
        shown = self._wandb.Image(grid.permute(1, 2, 0).numpy())
        self._run.log({"samples": shown}, step=images // self._config.batch_size)

    def flush(self) -> None:
        pass  # its own process writes at once

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class _Prometheus:
    def __init__(self, output: Path, config: TrainConfig, path: Path) -> None:
        check_exposition(path)
        self._path, self._steps = path, config.steps
        self._labels = {"run": output.resolve().name}

    def begin(self, step: int) -> None:
        pass

    def line(self, line: Mapping[str, Any]) -> None:
        step, images = line["step"], line["images"]
        speed = line["images_per_s"]
        left = (self._steps - step) * (images / step) / speed if speed else float("inf")
        known = {
            "ddim_train_step": Metric(step, "Steps done."),
            "ddim_train_steps": Metric(self._steps, "Steps that the run is to have."),
            "ddim_train_images_total": Metric(images, "Training images seen.", "counter"),
            "ddim_train_loss": Metric(_or_nan(line["loss"]), "Mean loss since the last update."),
            "ddim_train_grad_norm": Metric(
                _or_nan(line["grad_norm"]), "Norm of the last gradient."
            ),
            "ddim_train_learning_rate": Metric(line["lr"], "Learning rate of the last step."),
            "ddim_train_images_per_second": Metric(speed, "Speed since the last update."),
            "ddim_train_seconds_left": Metric(round(left, 1), "Time left at that speed, seconds."),
            "ddim_train_skipped_steps_total": Metric(
                line.get("skipped", 0), "Steps skipped, since they were not finite.", "counter"
            ),
            "ddim_train_processes": Metric(here().count, "Processes that train together."),
        }
        write_exposition(self._path, known, self._labels)

    def picture(self, grid: Tensor, images: int) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
