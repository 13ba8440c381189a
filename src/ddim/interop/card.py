"""What a model's card says: of the network, of its training, of its data, of how to use it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddim.checkpoints.calibration import CalibrationFile
from ddim.checkpoints.training import read_training
from ddim.model.model import Model
from ddim.nets.unet import UNet, count_flops
from ddim.noise.schedule import Schedule
from ddim.train.checkpoint import saved_config
from ddim.train.config import PRESETS, TrainConfig
from ddim.train.run import CHECKPOINT

__all__ = [
    "checksum_table",
    "command_of",
    "commands_of",
    "front_matter",
    "history",
    "model_card",
    "size_rows",
    "table",
]

_SILENT = (
    "data_root", "threads", "device", "save_every", "sample_every", "log_every", "tensorboard",
    "wandb", "prometheus",
)  # fmt: skip
"""Options that are of a machine, or decide nothing about the weights."""


def model_card(
    model: Model,
    name: str,
    pipeline: str,
    *,
    commands: Sequence[str] = (),
    calibration: CalibrationFile | None = None,
    pictures: Sequence[str] = (),
) -> str:
    """The README.md of a model on the Hub, with its front matter. No license is said.

    Args:
        model: the model.
        name: ``owner/name``.
        pipeline: the class of diffusers that opens it.
        commands: that trained it, one after the other.
        calibration: what was found for it.
        pictures: names, without ``.png``, of pictures beside the card.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ddim", "interop"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is Markdown
    )
    data, checksums = model.facts.data.get("name"), model.facts.data.get("sha256")
    checksums = checksums if isinstance(checksums, Mapping) else {}
    return environment.get_template("card.md.jinja").render(
        model=model,
        name=name,
        title=name.rpartition("/")[2],
        sentence=_sentence(model),
        table=table(_rows(model)),
        pipeline=pipeline,
        commands=commands,
        data=f"`{data}`. Checksums of its files:" if data else "Checksums of its files:",
        checksums=checksum_table(checksums) if checksums else "",
        calibrations=_calibration_table(calibration),
        pictures=pictures,
    )


def front_matter(card: str) -> str:
    """The lines of YAML that a card begins with; nothing where it begins with none.

    Example:
        >>> front_matter("---\\ntags:\\n- ddim\\n---\\n\\n# mine\\n")
        '---\\ntags:\\n- ddim\\n---\\n'
    """
    found = re.match(r"---\n.*?^---\n", card, re.M | re.S)
    return "" if found is None else found[0]


def history(run: Path) -> list[TrainConfig]:
    """The configurations of a run and of the runs that it started from, the first one first.

    Raises:
        InputError: a damaged checkpoint.
    """
    config = saved_config(read_training(run / CHECKPOINT))
    before = Path(config.init or "") / CHECKPOINT
    return [*(history(before.parent) if config.init and before.exists() else []), config]


def commands_of(run: Path) -> list[str]:
    """The commands of a run, and of those that it started from, each with its folder.

    Raises:
        InputError: a damaged checkpoint.
    """
    configs = history(run)
    outputs = [*(_bare(config.init) for config in configs[1:]), run.resolve().name]
    pairs = zip(configs, outputs, strict=True)
    return [f"{command_of(config)} --output {output}" for config, output in pairs]


def command_of(config: TrainConfig) -> str:
    """The shortest command that says a configuration, a preset and what differs from it.

    Of a path that leads from the root the last part is left.

    Example:
        >>> command_of(TrainConfig.preset("mnist"))
        'ddim train --preset mnist'
        >>> command_of(TrainConfig(data="/home/me/photos", size=32, flip=True))
        'ddim train --data photos --size 32 --flip'
    """
    bases = {f"--preset {name}": preset for name, preset in PRESETS.items()}
    commands = [" ".join(["ddim train", base, *_changes(config, p)]) for base, p in bases.items()]
    data = f"ddim train --data {_bare(config.data)}"
    own = " ".join([data, *_changes(config, TrainConfig(data=config.data))])
    # Of equals the preset, which says more.
    shortest = min([*commands, own], key=len)
    return shortest if config.threads is None else f"{shortest} --threads {config.threads}"


def _changes(config: TrainConfig, base: TrainConfig) -> list[str]:
    """The flags of what a configuration has other than another one."""
    before, words = base.to_json(), []
    for key, value in config.to_json().items():
        if value == before[key] or key in _SILENT:
            continue
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            parts = value if isinstance(value, list) else [value]
            words.append(" ".join([f"--{flag}", *map(_bare, parts)]))
    return words


def _bare(value: object) -> str:
    text = str(value)
    return Path(text).name if Path(text).is_absolute() else text


def size_rows(net: UNet) -> dict[str, str]:
    """Parameters and operations of a network, for :func:`table`."""
    parameters = sum(p.numel() for p in net.parameters())
    return {
        "parameters": f"{parameters:,} ({parameters * 4 / 1e6:.1f} MB)",
        "forward pass": f"{count_flops(net) / 1e9:.3f} GFLOP an image",
    }


def _rows(model: Model) -> dict[str, str]:
    """What is known of a model, as far as it is."""
    assert isinstance(model.net, UNet)
    more, rows = model.facts.more, size_rows(model.net)
    if isinstance(more.get("images_seen"), int):
        rows["images seen"] = f"{more['images_seen']:,}"
    if "seed" in more and "threads" in more:
        rows["seed, threads"] = f"{more['seed']}, {more['threads']}"
    if isinstance(more.get("init"), Mapping):
        rows["started from"] = f"`{more['init'].get('name')}`"
    if model.facts.source != "ddim":
        rows["converted from"] = model.facts.source
    if model.facts.assumed:
        rows["assumed"] = "; ".join(model.facts.assumed)
    weights = {"ema": "the moving average", "net": "the raw ones"}.get(model.facts.weights)
    if weights is not None:
        rows["weights"] = weights
    return {**rows, "identity": f"`{model.identity}`"}


def _sentence(model: Model) -> str:
    kind = f"A class-conditional ({model.classes} classes)" if model.classes else "An unconditional"
    channels, *size = model.shape
    what = {1: "grey ", 3: "colour "}.get(channels, "")
    predicts = {"eps": "ε", "x0": "x₀"}.get(model.target.value, model.target.value)
    schedule = _schedule(model.schedule)
    extent = "×".join(map(str, size))
    return f"{kind} DDPM of {extent} {what}images: {schedule}; it predicts {predicts}."


def _schedule(schedule: Schedule) -> str:
    spec: Mapping[str, Any] = schedule.spec
    kind, text = spec.get("kind"), f"T = {schedule.T}"
    if kind in ("linear", "scaled-linear") and not spec.get("scaled"):
        root = " in its root" if kind == "scaled-linear" else ""
        return f"{text}, β linear{root} from {spec['beta_start']:g} to {spec['beta_end']:g}"
    return f"{text}, {schedule}"


def _calibration_table(calibration: CalibrationFile | None) -> str:
    """Calls, and how far the calibrated sampler and uniform DDIM are from a fine solver."""
    lines = []
    for calls, entry in {} if calibration is None else calibration.entries.items():
        rms = entry.get("rms")
        if not isinstance(rms, Mapping):
            continue
        ours, theirs = rms.get("calibrated"), rms.get("ddim", rms.get("uniform"))
        if ours and theirs:
            lines.append(f"| {calls} | {ours[0]:.3f} | {theirs[0]:.3f} |")
    head = ["| network calls | calibrated | DDIM, uniform nodes |", "|---|---|---|"]
    return "\n".join([*head, *lines]) if lines else ""


def table(rows: Mapping[str, str]) -> str:
    """Two columns without a head."""
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])


def checksum_table(checksums: Mapping[str, str]) -> str:
    """Files of the data, and what they are told by."""
    lines = [f"| `{name}` | `{value}` |" for name, value in checksums.items()]
    return "\n".join(["| file | SHA-256 |", "|---|---|", *lines])
