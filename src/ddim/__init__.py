"""Denoising diffusion implicit models: train, sample in any number of steps, invert, measure.

The public names are those of ``__init__.pyi``. Each is imported when it is first used, so that the
command can answer without torch.
"""

from __future__ import annotations

import re
from importlib import import_module, resources

__version__ = "0.1.0"

_STUB = resources.files(__name__).joinpath("__init__.pyi").read_text(encoding="utf-8")
_MODULES = {
    name: module for module, name in re.findall(r"^from (\S+) import (\w+) as \2$", _STUB, re.M)
}
_FOLDERS = re.findall(r"^import ddim\.(\w+) as \1\b", _STUB, re.M)

__all__ = ["__version__", *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _FOLDERS:
        return import_module(f"ddim.{name}")
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'ddim' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_FOLDERS])
