"""Sets of images that many processes draw together: ``draw``, ``open``, ``verify``, ``merge``.

Each function is imported when it is first used.
"""

from importlib import import_module

_PLACES = {
    "draw": ("ddim.shards.drawing", "draw"),
    "open": ("ddim.data.sharded", "ShardData"),
    "verify": ("ddim.shards.checking", "verify"),
    "merge": ("ddim.shards.merging", "merge"),
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'ddim.shards' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(_PLACES)
