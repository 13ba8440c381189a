"""Latents that the page may ask for again: in memory, for a while, under ids nobody guesses."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from typing import TYPE_CHECKING

from ddim.web.refused import Refused

if TYPE_CHECKING:
    from ddim.latents.record import Latents
    from ddim.web.ways import Corner

__all__ = ["Kept", "Known"]

MOST = 256
"""Latents."""
BYTES = 256_000_000
"""Of all of them."""
SECONDS = 3600.0
"""After which one that was not asked for goes."""


@dataclasses.dataclass(frozen=True)
class Known:
    """The latent of one image.

    Attributes:
        model: the model's name in requests.
        latents: of the image.
        corner: how to make it again.
    """

    model: str
    latents: Latents
    corner: Corner

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(x.numel() * x.element_size() for x in self.latents.tensors)


class Kept:
    """Latents by id; the oldest go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Known]] = {}

    def put(self, known: Known) -> str:
        """Keep one, and give it an id."""
        name = secrets.token_hex(16)
        with self._lock:
            self._known[name] = time.monotonic(), known
            self._tidy()
        return name

    def get(self, name: str, model: str) -> Known:
        """The latent of an id.

        Raises:
            Refused: there is none of this model, or no more.
        """
        with self._lock:
            self._tidy()
            _, known = self._known.pop(name, (0.0, None))
            if known is not None:
                self._known[name] = time.monotonic(), known
        if known is None or known.model != model:
            raise Refused("not-found", "this latent is not here any more: encode the image again")
        return known

    def _tidy(self) -> None:
        old = time.monotonic() - SECONDS
        size = sum(known.size for _, known in self._known.values())
        for name, (asked, known) in list(self._known.items()):
            if asked > old and len(self._known) <= MOST and size <= BYTES:
                return
            del self._known[name]
            size -= known.size
