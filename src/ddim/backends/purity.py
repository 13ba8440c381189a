"""Whether a network's answer depends on its state alone: no memory of calls, no training mode."""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
from collections.abc import Iterator
from types import CellType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from ddim.base.errors import InputError

__all__ = ["Memory", "check_evaluation", "has_hooks"]

_OWN = frozenset(vars(nn.Module()))


class Memory:
    """What a network could remember a call by, as it is now.

    That is the attributes and buffers of its modules, and the global and enclosing variables of the
    functions that a call runs; dictionaries, lists and plain objects one level deep.

    Args:
        net: any network.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._functions = list(_reached(net))
        self._before = dict(self._things())

    def changed(self) -> str | None:
        """What tells that the network may remember a call; None if nothing does.

        Hooks do, and an attribute or a global that a call writes, also one that it resets.
        """
        if has_hooks(self.net):
            return "it has hooks"
        for function in self._functions:
            for step in dis.get_instructions(function):
                if step.opname in _WRITES:
                    return f"{function.__qualname__} writes {step.argval}"
        for name, now in self._things():
            before = self._before.get(name)
            if before is None or not _same(before, now):
                return f"{name} has changed"
        return None

    def _things(self) -> Iterator[tuple[str, list[Any]]]:
        for name, module in self.net.named_modules():
            where = name or type(module).__name__
            for key, value in list(vars(module).items()):
                if key == "_buffers" or key not in _OWN:
                    yield f"{where}.{key}", _parts(value)
        for function in self._functions:
            yield from _variables(function)


_WRITES = ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL")


def has_hooks(net: nn.Module) -> bool:
    """Whether something else runs when the network or a part of it is called."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def _reached(net: nn.Module) -> Iterator[FunctionType]:
    """The functions outside torch that a call may run, by the names that stand in them."""
    seen: set[object] = set()
    for module in net.modules():
        kind = type(module)
        left: list[Any] = [vars(module).get("forward", kind.forward)]
        while left:
            found = left.pop()
            function = inspect.unwrap(getattr(found, "__func__", found))
            if (function, kind) in seen or not isinstance(function, FunctionType):
                continue
            seen.add((function, kind))
            if (function.__module__ or "").partition(".")[0] == "torch":
                continue
            yield function
            for name in function.__code__.co_names:
                named = getattr(kind, name, None) or function.__globals__.get(name)
                left += [named] if isinstance(named, FunctionType) else []


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
