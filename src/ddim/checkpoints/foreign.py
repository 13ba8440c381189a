"""Which program wrote a file of tensors, by looking at it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddim.base.errors import InputError, quoted, unknown
from ddim.base.files import read_json
from ddim.checkpoints.lucid import read_lucid
from ddim.checkpoints.official import read_official
from ddim.checkpoints.openai import read_openai
from ddim.checkpoints.openai_layout import NOTEBOOK, OPENAI
from ddim.checkpoints.record import Hints, Loaded
from ddim.checkpoints.tensors import is_pickle, read_pickle, read_safetensors, tensors_of
from ddim.noise.schedule import Schedule

__all__ = ["read_foreign"]

KNOWN = (
    "official DDIM and DDPM, improved-diffusion, guided-diffusion, denoising-diffusion-pytorch and "
    "the MNIST notebook"
)


def read_foreign(
    path: Path,
    weights: str = "ema",
    schedule: Schedule | None = None,
    hints: Hints | None = None,
) -> Loaded:
    """Read a checkpoint of another program.

    Args:
        path: a torch checkpoint, or a safetensors file with a state dict in one of the layouts.
        weights: ``ema`` or ``net`` (the raw ones), of a file that has both. Of one that has no
            average the raw ones are taken, and ``facts`` says so.
        schedule: the noise schedule, where the file has none or another.
        hints: what else the file does not say. Where neither is given, a file of the same name
            with ``.json`` added is asked: the fields of :class:`Hints` and ``schedule``, a spec.

    Raises:
        InputError: code in the file, a damaged one, an unknown layout, weights that do not fit or
            are not finite; one line that names the file and the key.
    """
    path = Path(path)
    if schedule is None and hints is None:
        schedule, hints = _notes(path.with_name(f"{path.name}.json"))
    value = read_pickle(path) if is_pickle(path) else read_safetensors(path)[0]
    tensors, kind = _select(value, weights, path)
    loaded = _read(tensors, path, hints or Hints(), schedule)
    assumed = loaded.facts.assumed
    if kind == "net" and weights == "ema":
        assumed = (*assumed, "raw weights, for it holds no average")
    facts = dataclasses.replace(loaded.facts, weights=kind, assumed=assumed)
    return dataclasses.replace(loaded, facts=facts)


def _notes(path: Path) -> tuple[Schedule | None, Hints | None]:
    """What the owner of a checkpoint wrote down beside it."""
    if not path.exists():
        return None, None
    values = read_json(path)
    spec = values.pop("schedule", None)
    if not (spec is None or isinstance(spec, dict)):
        raise InputError(
            f'{path}: schedule is an object such as {{"kind": "linear", "T": 1000}}, '
            f"not {quoted(spec)}"
        )
    try:
        for key in values.keys() - (known := {field.name for field in dataclasses.fields(Hints)}):
            raise unknown("key", key, ["schedule", *sorted(known)])
        return None if spec is None else Schedule.from_spec(spec), Hints(**values)
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None


def _select(value: object, weights: str, path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict that was asked for, and whether it is ``ema``, ``net`` or the ``only`` one."""
    flat = tensors_of(value)
    if flat is not None:
        return flat, "only"
    raw = average = None
    if isinstance(value, list) and 4 <= len(value) <= 5:
        # model, optimizer, epoch, step and, where one was kept, the average
        raw, average = tensors_of(value[0]), tensors_of(value[-1])
    elif isinstance(value, dict):
        raw, average = tensors_of(value.get("model")), tensors_of(value.get("ema"))
        if average is not None:
            prefix = "ema_model."
            named = {k[len(prefix) :]: v for k, v in average.items() if k.startswith(prefix)}
            if not named and raw is not None and average.keys() != raw.keys():
                raise InputError(f"{path}: ema holds other keys than model, and none {prefix}*")
            average = named or average
    if raw is None:
        raise InputError(f"{path} holds no state_dict of {KNOWN}")
    return (average, "ema") if average and weights == "ema" else (raw, "net")


def _read(
    tensors: Mapping[str, Tensor], path: Path, hints: Hints, schedule: Schedule | None
) -> Loaded:
    def some_key(*starts: str) -> bool:
        return any(key.startswith(starts) for key in tensors)

    if some_key("temb.dense."):
        return read_official(tensors, path, hints, schedule)
    if some_key("init_conv.", "model.init_conv."):
        return read_lucid(tensors, path, hints, schedule)
    if some_key("time_embed."):
        names = NOTEBOOK if some_key("up_blocks.") else OPENAI
        return read_openai(tensors, path, hints, schedule, names)
    if some_key("down_blocks.0.resnets."):
        raise InputError(
            f"{path} is the weights of a diffusers folder: give the folder, whose config.json "
            "and scheduler_config.json they need"
        )
    some = ", ".join(sorted(tensors)[:3])
    raise InputError(
        f"{path} is not a training checkpoint of ddim, nor one of {KNOWN}: its keys begin with "
        f"{some}"
    )
