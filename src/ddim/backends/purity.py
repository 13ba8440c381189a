"""Whether a network's answer depends on its state alone: no memory of calls, no training mode."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from types import CellType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from ddim.base.errors import InputError

__all__ = ["Memory", "check_evaluation"]

_OWN = frozenset(vars(nn.Module()))


class Memory:
    """What a network could remember a call by, as it is now.

    That is the attributes and buffers of its modules, and the global and enclosing variables that
    their functions name; dictionaries, lists and plain objects one level deep.

    Args:
        net: any network.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._before = dict(_things(net))

    def changed(self) -> str | None:
        """The name of something that is other than it was; None if nothing is."""
        for name, now in _things(self.net):
            before = self._before.get(name)
            if before is None or not _same(before, now):
                return name
        return None


def _things(net: nn.Module) -> Iterator[tuple[str, list[Any]]]:
    kinds: dict[type, None] = {}
    for name, module in net.named_modules():
        kinds[type(module)] = None
        where = name or type(module).__name__
        for key, value in vars(module).items():
            if key == "_buffers" or key not in _OWN:
                yield f"{where}.{key}", _parts(value)
    bases = itertools.chain.from_iterable(
        itertools.takewhile(lambda base: base is not nn.Module, kind.__mro__) for kind in kinds
    )
    for kind in dict.fromkeys(bases):
        for function in vars(kind).values():
            if isinstance(function, FunctionType) and not _is_torchs(function):
                yield from _variables(function)


def _is_torchs(function: FunctionType) -> bool:
    return function.__module__.partition(".")[0] == "torch"


def _variables(function: FunctionType) -> Iterator[tuple[str, list[Any]]]:
    code = function.__code__
    for name in code.co_names:
        if name in function.__globals__:
            yield f"{function.__module__}.{name}", _parts(function.__globals__[name])
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield f"{function.__qualname__}.{name}", _parts(cell)


def _parts(value: Any) -> list[Any]:
    """A value and what it holds, one level deep; kept, so that nothing new takes their place."""
    if isinstance(value, Tensor):
        return [value, *_version(value)]
    if isinstance(value, dict):
        held = list(value.values())
    elif isinstance(value, list | set):
        held = list(value)
    elif isinstance(value, CellType):
        held = [value.cell_contents] if value != CellType() else []
    elif isinstance(value, FunctionType | ModuleType | type | nn.Module):
        held = []
    else:
        held = list(getattr(value, "__dict__", {}).values())
    return [value, *itertools.chain.from_iterable((item, *_version(item)) for item in held)]


def _version(value: Any) -> tuple[int, ...]:
    return (value._version,) if isinstance(value, Tensor) and not value.is_inference() else ()


def _same(before: list[Any], now: list[Any]) -> bool:
    return len(before) == len(now) and all(
        a is b or (type(a) is type(b) is int and a == b) for a, b in zip(before, now, strict=True)
    )


def check_evaluation(net: nn.Module) -> None:
    """Refuse a network in training mode, where what it says is another thing at every call.

    Raises:
        InputError: it is, and something of it reads the mode.
    """
    for name, module in net.named_modules():
        share = vars(module).get("p", vars(module).get("dropout", 1))
        if module.training and _reads_mode(type(module)) and share:
            raise InputError(
                f"the network is in training mode, where {name or type(module).__name__} makes "
                "every call another one: call net.eval() first"
            )


@functools.cache
def _reads_mode(kind: type[nn.Module]) -> bool:
    """Whether a module does something else in training, as dropout and batch normalisation do."""
    own = itertools.takewhile(lambda base: base is not nn.Module, kind.__mro__)
    functions = (f for base in own for f in vars(base).values() if isinstance(f, FunctionType))
    return any("training" in f.__code__.co_names for f in functions if f.__name__ != "__init__")
