"""Which program wrote a file of tensors, by looking at it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from ddim.base.errors import InputError, quoted, unknown
from ddim.base.files import read_json
from ddim.checkpoints.containers import select
from ddim.checkpoints.lucid import read_lucid
from ddim.checkpoints.official import read_official
from ddim.checkpoints.openai import read_openai
from ddim.checkpoints.openai_layout import NOTEBOOK, OPENAI
from ddim.checkpoints.record import Hints, Loaded
from ddim.checkpoints.shards import INDEX, read_shards
from ddim.checkpoints.tensors import is_pickle, read_pickle, read_safetensors
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
    if path.name.endswith(INDEX):
        value = read_shards(path)
    else:
        value = read_pickle(path) if is_pickle(path) else read_safetensors(path)[0]
    tensors, kind = select(value, weights, path, _known, KNOWN)
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
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _reader(tensors: Mapping[str, Tensor]) -> Callable[..., Loaded] | None:
    """The reader of the layout that names of tensors show."""

    def some_key(*starts: str) -> bool:
        return any(key.startswith(starts) for key in tensors)

    if some_key("temb.dense."):
        return read_official
    if some_key("init_conv.", "model.init_conv."):
        return read_lucid
    if some_key("time_embed."):
        return functools.partial(read_openai, names=NOTEBOOK if some_key("up_blocks.") else OPENAI)
    return None


def _known(tensors: Mapping[str, Tensor]) -> bool:
    return _reader(tensors) is not None or _is_diffusers(tensors)


def _is_diffusers(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("down_blocks.0.resnets.") for key in tensors)


def _read(
    tensors: Mapping[str, Tensor], path: Path, hints: Hints, schedule: Schedule | None
) -> Loaded:
    reader = _reader(tensors)
    if reader is not None:
        return reader(tensors, path, hints, schedule)
    if _is_diffusers(tensors):
        raise InputError(
            f"{path} is the weights of a diffusers folder: give the folder, whose config.json "
            "and scheduler_config.json they need"
        )
    some = ", ".join(sorted(tensors)[:3])
    raise InputError(
        f"{path} is not a training checkpoint of ddim, nor one of {KNOWN}: its keys begin with "
        f"{some}"
    )
