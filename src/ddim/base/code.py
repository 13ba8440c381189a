"""Code of the user's, run because its name was given: ``FILE.py:NAME``."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

from ddim.base.errors import InputError, unknown

__all__ = ["Named", "is_named", "load_named"]


class Named(NamedTuple):
    """What a file holds under a name, and the SHA-256 of the file in hexadecimal."""

    value: object
    checksum: str


_LOADED: dict[tuple[Path, str], dict[str, object]] = {}


def is_named(text: str) -> bool:
    """Whether a text has the form ``FILE.py:NAME``.

    Example:
        >>> is_named("mine.py:third"), is_named("dpmpp:order=3")
        (True, False)
    """
    file, colon, name = text.rpartition(":")
    return bool(colon) and file.endswith(".py") and name.isidentifier()


def load_named(text: str) -> Named:
    """Run a file and return what it binds to a name. A file that has not changed runs once.

    Args:
        text: ``FILE.py:NAME``.

    Raises:
        InputError: no such file, a file that cannot be run, or no such name in it.
    """
    file, _, name = text.rpartition(":")
    path = Path(file).resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    checksum = hashlib.sha256(source).hexdigest()
    if (path, checksum) not in _LOADED:
        _LOADED[path, checksum] = _run(file, path, checksum)
    found = _LOADED[path, checksum]
    if name not in found:
        raise unknown(f"name in {file}", name, [key for key in found if not key.startswith("_")])
    return Named(found[name], checksum)


def _run(file: str, path: Path, checksum: str) -> dict[str, object]:
    spec = importlib.util.spec_from_file_location(f"_{path.stem}_{checksum[:12]}", path)
    assert spec is not None and spec.loader is not None  # its name ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for what it imports, when it is called too
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise InputError(f"{file} cannot be run: {type(error).__name__}: {error}") from error
    return vars(module)
