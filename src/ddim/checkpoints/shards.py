"""Which files of a folder are its weights: shards with an index, variants, several formats."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from ddim.base.errors import InputError, quoted
from ddim.base.files import read_json
from ddim.base.records import checked, in_file
from ddim.checkpoints.containers import state_dict
from ddim.checkpoints.tensors import read_pickle, read_safetensors

__all__ = [
    "INDEX",
    "find_weights",
    "is_weights",
    "listing",
    "pick_weights",
    "read_shards",
    "shard_places",
]

INDEX = ".index.json"
_FILE = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model|pytorch_model)(\.(?P<variant>[\w-]+?))?"
    r"(-\d{5}-of-\d{5})?(\.(?P<old>\w+))?\.(?P<kind>safetensors|bin)"
)
_INDEX = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model|pytorch_model)(\.(?P<early>\w+))?"
    r"\.(?P<kind>safetensors|bin)\.index(\.(?P<variant>\w+))?\.json"
)
_PLAIN = ("", "fp32", "fp16", "bf16")
# The raw weights have a variant of their own where the plain file is the average, or the reverse.
_ORDER = {"ema": (("ema",), _PLAIN, ("non_ema",)), "net": (("non_ema",), _PLAIN)}


def find_weights(folder: Path, weights: str) -> tuple[Path, str]:
    """The file of a folder's weights, or the index of several.

    Args:
        folder: the folder.
        weights: ``ema`` or ``net``, where a folder has both as variants.

    Returns:
        the path, and ``ema``, ``net``, or ``only`` where no name says which.

    Raises:
        InputError: none, or none of a name that says what is meant; the files are listed.
    """
    picked = pick_weights((path.name for path in folder.iterdir()), weights)
    if picked is None:
        none = f"there are no weights {folder / 'diffusion_pytorch_model.safetensors'}"
        raise InputError(none + listing(folder))
    name, kind = picked
    return folder / name, kind


def pick_weights(names: Iterable[str], weights: str) -> tuple[str, str] | None:
    """The file of the weights among the names of a folder's files, as :func:`find_weights`.

    Returns:
        its name and what it holds; None where no name says that it is meant.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        index, file = _INDEX.fullmatch(name), _FILE.fullmatch(name)
        if index is not None:
            found.setdefault(index["variant"] or index["early"] or "", []).append(name)
        elif file is not None and re.search(r"-\d{5}-of-", name) is None:
            found.setdefault(file["variant"] or file["old"] or "", []).append(name)
    meant = next((names for names in _ORDER[weights] if found.keys() & set(names)), ())
    if not meant and len(found) == 1 and "ema" not in found:
        meant = tuple(found)  # whatever it is called, it is what there is
    if not meant:
        return None
    # Safetensors before pickles, then full precision, then one file before the index of several.
    _, variant, name = min(
        ((".bin" in name, rank, name.endswith(".json")), variant, name)
        for rank, variant in enumerate(meant)
        for name in found.get(variant, ())
    )
    return name, _kind(variant, found)


def is_weights(name: str) -> bool:
    """Whether a file is one of weights, or their index, by its name."""
    return (_FILE.fullmatch(name) or _INDEX.fullmatch(name)) is not None


def _kind(variant: str, found: Iterable[str]) -> str:
    """What weights a variant holds, beside those that are there."""
    if variant in ("ema", "non_ema"):
        return {"ema": "ema", "non_ema": "net"}[variant]
    if "non_ema" in found:
        return "ema"
    return "net" if "ema" in found else "only"


def listing(folder: Path) -> str:
    """The files of a folder that hold tensors, as the end of a message."""
    kinds = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", INDEX)
    names = [p.name for p in sorted(folder.iterdir()) if p.name.endswith(kinds)]
    return f": it has {quoted(', '.join(names))[1:-1]}" if names else ""


def shard_places(index: Path) -> dict[str, str]:
    """Which file beside an index holds each tensor.

    Raises:
        InputError: a damaged index, or one that leads out of its folder.
    """
    with in_file(index):
        places = checked("weight_map", read_json(index).get("weight_map"), dict[str, str])
        for name in set(places.values()):
            if Path(name).name != name or name in ("", ".."):
                raise InputError(f"{quoted(name)} is no file beside it")
    return places


def read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names, memory-mapped where they can be.

    Raises:
        InputError: a damaged index, one that leads out of its folder, a file that is not there, or
            one that holds other tensors than the index says.
    """
    places = shard_places(index)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        path = index.with_name(name)
        if not path.exists():
            raise InputError(f"{index} names {name}, and there is no such file: get all of them")
        if path.suffix == ".safetensors":
            held = read_safetensors(path)[0]
        else:
            held = state_dict(read_pickle(path)) or {}
        tensors |= {
            key: held[key] for key, place in places.items() if place == name and key in held
        }
    missing = sorted(places.keys() - tensors.keys())
    if missing:
        raise InputError(f"{index}: {places[missing[0]]} does not hold {quoted(missing[0])}")
    if not tensors:
        raise InputError(f"{index} names no tensors")
    return tensors
