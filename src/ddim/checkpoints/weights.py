"""Filling a network from the tensors of a file, key by key, without holding both in memory."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ddim.base.errors import InputError
from ddim.nets.unet import UNetConfig

__all__ = ["Pick", "Shapes", "fill", "unfilled"]

Net = TypeVar("Net", bound=nn.Module)

_NAMED = 8
"""How many keys an error lists before it counts the rest."""


class Pick(NamedTuple):
    """Where a parameter is in a file.

    Attributes:
        key: its name there; None where the file has none because it is zero.
        tail: trailing dimensions of size 1, which a 1×1 convolution has and a linear map has not.
        third: of a joint projection, 0 for the query, 1 for the key, 2 for the value.
        groups: how many (query, key, value) triples follow one another in a joint projection: one,
            or one for each head.
    """

    key: str | None
    tail: int = 0
    third: int | None = None
    groups: int = 1

    def shape(self, own: torch.Size) -> tuple[int, ...]:
        """The shape in the file of a parameter whose own shape is given."""
        first = own[0] * (1 if self.third is None else 3)
        return (first, *own[1:], *(1,) * self.tail)

    def take(self, value: Tensor, own: torch.Size) -> Tensor:
        """The parameter, out of the file's tensor."""
        if self.third is not None:
            value = value.unflatten(0, (self.groups, 3, -1))[:, self.third].flatten(0, 1)
        return value.reshape(own)


class _Shape(tuple[int, ...]):
    """A shape whose missing dimensions, and empty ones, are an error that names the tensor."""

    where: str
    layout: str

    def __new__(cls, sizes: Iterable[int], where: str, layout: str) -> _Shape:
        made = super().__new__(cls, tuple(sizes))
        made.where, made.layout = where, layout
        return made

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and (index >= len(self) or tuple(self)[index] == 0):
            raise InputError(f"{self.where} has shape {tuple(self)}, which {self.layout} has not")
        return super().__getitem__(index)


class Shapes:
    """The shapes of a file's tensors, asked for by name, from which its network is inferred.

    A name that is missing is an error that names it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path, layout: str) -> None:
        self.tensors, self.path, self.layout = tensors, path, layout

    def __call__(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor, of at least one dimension."""
        if key not in self.tensors or self.tensors[key].ndim == 0:
            raise InputError(f"{self.path} does not fit {self.layout}: 1 missing ({key}) keys")
        return _Shape(self.tensors[key].shape, f"{self.path}: {key}", self.layout)

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def count(self, pattern: str) -> int:
        """One more than the largest index in the names that a pattern matches at their start.

        Raises:
            InputError: it matches none.
        """
        found = [re.match(pattern, key) for key in self.tensors]
        # No index is past the number of tensors, and those with more digits are no numbers here.
        indices = [int(match[1][:9]) for match in found if match is not None]
        if not indices:
            start = pattern.partition("(")[0].replace("\\", "")
            raise InputError(f"{self.path} does not fit {self.layout}: no key begins with {start}")
        if max(indices) >= len(self.tensors):
            raise InputError(f"{self.path} does not fit {self.layout}: no block {max(indices)}")
        return max(indices) + 1

    def channels(self, first: str, last: str, *, learned: bool) -> tuple[int, int]:
        """Channels in and out, from the names of the first and the last convolution's weights.

        Raises:
            InputError: unless they are equal or, with a learned variance, twice as many come out.
        """
        channels, out = self(first)[1], self(last)[0]
        if out != channels and not (learned and out == 2 * channels):
            allowed = f"{channels} or {2 * channels}" if learned else f"{channels}"
            raise InputError(
                f"{self.path}: {last} gives {out} channels for the {channels} that {first} takes; "
                f"{self.layout} gives {allowed}"
            )
        return channels, out

    def config(self, **values: Any) -> UNetConfig:
        """A network's configuration; what it refuses, it refuses in the file's name."""
        try:
            return UNetConfig(**values)
        except InputError as error:
            raise InputError(f"{self.path} does not fit {self.layout}: {error}") from None


def unfilled(build: Callable[[], Net]) -> Net:
    """A network without values, to be filled and used, not trained: none are drawn."""
    with torch.device("meta"), _Undrawn():
        net = build()
    return net.requires_grad_(False).eval()


class _Undrawn(TorchFunctionMode):
    """Draws no normal first values, for which torch would import its compiler, some seconds."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call everything else."""
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs)


def fill(
    net: nn.Module,
    tensors: Mapping[str, Tensor],
    path: Path,
    layout: str = "its config.json",
    picks: Mapping[str, Pick] | None = None,
) -> None:
    """Give a network the weights of a file, in float32 and in the memory format it runs in.

    The network may be :func:`unfilled`. Pages of a memory-mapped file are handed back to the
    system as soon as they are copied, so that the peak is little more than the network itself.

    Args:
        net: the network; its parameters are replaced.
        tensors: the file's tensors by name.
        path: the file, for errors.
        layout: what the file should fit, for errors.
        picks: where each parameter is in the file; None for the same names.

    Raises:
        InputError: missing or unexpected keys, all listed; another shape; values that are not
            finite. The file and the key are named, as the file names it.
    """
    own = net.state_dict()
    wanted = {key: Pick(key) for key in own} if picks is None else picks
    needed = {pick.key for pick in wanted.values() if pick.key is not None}
    _compare(needed, set(tensors), path, layout)
    for key, pick in wanted.items():
        if pick.key is None:
            continue
        value = tensors[pick.key]
        if not value.is_floating_point() or value.layout is not torch.strided or value.is_meta:
            raise InputError(
                f"{path}: {pick.key} holds {value.dtype} ({value.layout}), weights are dense "
                "floating-point numbers"
            )
        if value.shape != pick.shape(own[key].shape):
            raise InputError(
                f"{path}: {pick.key} has shape {tuple(tensors[pick.key].shape)}, {layout} asks "
                f"for {pick.shape(own[key].shape)}"
            )
    _check_held({key: tensors[key] for key in needed}, path)
    pages = _Pages(path)
    state = {}
    for key, pick in wanted.items():
        shape = own[key].shape
        if pick.key is None:
            state[key] = torch.zeros(shape)
            continue
        value = tensors[pick.key]
        layered = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        state[key] = torch.empty(shape, memory_format=layered).copy_(pick.take(value, shape))
        # As they are used: what single precision cannot hold is not finite either.
        if not _finite(state[key]):
            raise InputError(f"{path}: {pick.key} holds values that are not finite")
        pages.release(value)
    net.load_state_dict(state, assign=True)


def _check_held(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that say more numbers than there are: copies of one, or views of one another.

    Raises:
        InputError: filling a network with them would take more memory than the file has bytes.
    """
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in tensors.values()
    }
    said, held = sum(value.nbytes for value in tensors.values()), sum(storages.values())
    if said > held:
        raise InputError(f"{path}: its tensors say {said:,} bytes, and it holds {held:,} of them")


def _compare(needed: set[str], found: set[str], path: Path, layout: str) -> None:
    missing, unexpected = sorted(needed - found), sorted(found - needed)
    if missing or unexpected:
        parts = [f"{len(missing)} missing ({_listed(missing)})"] if missing else []
        parts += [f"{len(unexpected)} unexpected ({_listed(unexpected)})"] if unexpected else []
        raise InputError(f"{path} does not fit {layout}: {' and '.join(parts)} keys")


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + more


def _finite(value: Tensor) -> bool:
    """Whether all of it is; one that is not spoils the sum, and the sum is ten times as quick."""
    return bool(value.sum(dtype=torch.float32).isfinite()) or bool(value.isfinite().all())


class _Pages:
    """The pages of a file that this process has mapped, on Linux; nothing elsewhere."""

    def __init__(self, path: Path) -> None:
        self.ranges = list(_mappings(Path(path))) if sys.platform == "linux" else []
        self.libc = ctypes.CDLL(None) if self.ranges else None

    def release(self, value: Tensor) -> None:
        """Drop a tensor's pages from memory; whoever reads it again has them read again."""
        if self.libc is None or not value.is_contiguous():
            return
        start = value.data_ptr()
        end = start + value.nbytes
        if not any(a <= start and end <= b for a, b in self.ranges):
            return
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0:
            self.libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _mappings(path: Path) -> Iterator[tuple[int, int]]:
    """Where a file is mapped, from /proc. What nobody writes to can always be read again."""
    name = str(path.resolve())
    with contextlib.suppress(OSError), Path("/proc/self/maps").open(encoding="utf-8") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5] == name:
                start, _, end = fields[0].partition("-")
                yield int(start, 16), int(end, 16)
