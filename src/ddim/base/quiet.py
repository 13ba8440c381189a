"""Other libraries' warnings, kept from the user."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]

_lock = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings within, on one thread at a time: filters are the whole process's."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
