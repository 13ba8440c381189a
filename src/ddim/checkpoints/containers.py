"""State dicts in the containers that training programs save them in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ddim.base.errors import InputError, quoted

__all__ = ["select", "state_dict"]

_AVERAGE = re.compile(r"(?<![a-z])(ema|swa)(?![a-z])|ema_?model|averag|shadow", re.IGNORECASE)
_DEPTH = 3
"""Levels of containers that weights are looked for in."""

Known = Callable[[Mapping[str, Tensor]], bool]


class _Found(NamedTuple):
    """Weights, and the keys that lead to them."""

    name: str
    tensors: dict[str, Tensor]

    @property
    def average(self) -> bool:
        return _AVERAGE.search(self.name) is not None and not self.copied

    @property
    def copied(self) -> bool:
        """Whether ema-pytorch keeps them beside its average: the raw ones once more."""
        return self.name.endswith("online_model")


def state_dict(value: object) -> dict[str, Tensor] | None:
    """A state dict as a new dict, without what wrappers add to its names; None if it is not one.

    DataParallel and AveragedModel put ``module.`` before all names, torch.compile ``_orig_mod.``
    before those of the part that was compiled.
    """
    if not isinstance(value, Mapping) or not value:
        return None
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        return None
    plain = {key.replace("_orig_mod.", ""): tensor for key, tensor in value.items()}
    tensors = plain if len(plain) == len(value) else dict(value)
    counted = {k: v for k, v in tensors.items() if k != "n_averaged"}
    while counted and all(key.startswith("module.") for key in counted):
        tensors = counted = {key.removeprefix("module."): v for key, v in counted.items()}
    return tensors


def select(
    value: object, weights: str, path: Path, known: Known, layout: str
) -> tuple[dict[str, Tensor], str]:
    """The weights that were asked for, out of whatever a file holds.

    Args:
        value: what the file holds.
        weights: ``ema`` or ``net``; where there is no average, ``ema`` takes the raw ones too.
        path: the file, for messages.
        known: whether a state dict is of a layout that can be read.
        layout: what such layouts are called, for messages.

    Returns:
        the state dict, and whether it is ``ema``, ``net`` or the ``only`` one.

    Raises:
        InputError: nothing that is known, more than one network, or an average that was asked for
            and is not understood; what the file holds is listed.
    """
    found = list(_search(value, known))
    raw = [one for one in found if not one.average]
    averages = [one for one in found if one.average]
    if len(raw) > 1:
        raw = [one for one in raw if not one.copied]
    if isinstance(value, list | tuple) and len(raw) == 2:
        raw, averages = raw[:1], raw[1:]  # model, optimizer, epoch, step and the average
    if len(raw) == 1 and weights == "ema" and not averages:
        averages = [*_shadow(value, raw[0], path)]
    for several in (raw, averages if weights == "ema" else []):
        if len(several) > 1:
            names = ", ".join(one.name for one in several)
            raise InputError(f"{path} holds more than one network ({names}): save one of them")
    if averages and weights == "ema":
        return averages[0].tensors, "ema"
    if raw:
        return raw[0].tensors, "net" if raw[0].name else "only"
    if averages:
        raise InputError(f"{path} holds an average ({averages[0].name}) and no raw weights")
    flat = state_dict(value)
    if flat is not None:
        return flat, "only"
    raise InputError(f"{path} holds no state_dict of {layout}{_contents(value)}")


def _search(value: object, known: Known, name: str = "", depth: int = 0) -> Iterator[_Found]:
    """All weights of a layout that is known, an optimizer's state excepted."""
    if isinstance(value, list | tuple) and depth < _DEPTH and len(value) < 10:
        for i, part in enumerate(value):
            yield from _search(part, known, f"{name}[{i}]", depth + 1)
    if not isinstance(value, Mapping) or "param_groups" in value:
        return
    tensors = state_dict({k: v for k, v in value.items() if isinstance(v, Tensor)})
    if tensors is not None:
        yield from _known_part(tensors, known, name)
    if depth < _DEPTH:
        for key, part in value.items():
            yield from _search(part, known, f"{name}.{key}" if name else str(key), depth + 1)


def _known_part(
    tensors: dict[str, Tensor], known: Known, name: str, depth: int = 0
) -> list[_Found]:
    """A state dict, or the networks whose names come before those of their tensors in it."""
    if known(tensors):
        return [_Found(name, tensors)]
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        first, dot, rest = key.partition(".")
        groups.setdefault(first if dot else "", {})[rest if dot else key] = value
    if depth == _DEPTH:
        return []
    alone = len(groups) == 1
    return [
        one
        for key, part in groups.items()
        if key
        for one in _known_part(
            part, known, name if alone else f"{name}.{key}".strip("."), depth + 1
        )
    ]


def _shadow(value: object, raw: _Found, path: Path) -> Iterator[_Found]:
    """The average that a file keeps as a list of parameters, named after the raw ones.

    Raises:
        InputError: there is one, as a list or otherwise, that does not fit.
    """
    for name, part in _averages(value):
        listed = part.get("shadow_params") if isinstance(part, Mapping) else part
        if not (isinstance(listed, list | tuple) and all(isinstance(x, Tensor) for x in listed)):
            raise InputError(
                f"{path}: {name} holds other keys than {raw.name or 'the weights'}"
                f"{_contents(part)}; the raw weights can be read (weights 'net')"
            )
        for keys in (list(raw.tensors), [k for k in raw.tensors if k.startswith("model.")]):
            shapes = [raw.tensors[key].shape for key in keys]
            if shapes == [tensor.shape for tensor in listed]:
                named = dict(zip(keys, listed, strict=True))
                yield _Found(name, {**raw.tensors, **named})
                return
        raise InputError(
            f"{path}: {name} lists {len(listed)} parameters without names, which are not those of "
            f"{raw.name or 'the weights'}; the raw weights can be read (weights 'net')"
        )


def _averages(value: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """What is called an average and holds tensors."""
    if not isinstance(value, Mapping) or "param_groups" in value or depth == _DEPTH:
        return
    for key, part in value.items():
        inner = f"{name}.{key}" if name else str(key)
        if _AVERAGE.search(str(key)) and _holds_tensors(part):
            yield inner, part
        else:
            yield from _averages(part, inner, depth + 1)


def _holds_tensors(value: object, depth: int = 0) -> bool:
    if isinstance(value, Tensor):
        return depth > 0  # one number, such as a decay, is no average
    parts = value.values() if isinstance(value, Mapping) else value
    if depth == _DEPTH or not isinstance(value, Mapping | list | tuple):
        return False
    return any(_holds_tensors(part, depth + 1) for part in parts)  # pyright: ignore[reportGeneralTypeIssues]


def _contents(value: Any) -> str:
    """What there is instead, for messages."""
    if isinstance(value, Mapping) and "param_groups" in value:
        return ": it is the state of an optimizer, whose network is in another file"
    if isinstance(value, Mapping) and value:
        some = [str(key) for key in list(value)[:12]]
        more = f" and {len(value) - 12} more" if len(value) > 12 else ""
        return f": it has {quoted(', '.join(some))[1:-1]}{more}"
    length = f" of {len(value)}" if isinstance(value, list | tuple) else ""
    return f": it is a {type(value).__name__}{length}"
