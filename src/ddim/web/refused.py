"""A request that is refused: one code and one line, which the page shows."""

from __future__ import annotations

__all__ = ["STATUS", "Refused"]

STATUS = {
    "bad-request": 400,
    "forbidden": 403,
    "not-found": 404,
    "too-large": 413,
    "unsupported": 415,
    "failed": 500,
    "busy": 503,
    "loading": 503,
}
"""The codes of errors, and the HTTP status of each."""


class Refused(Exception):  # noqa: N818
    """A request that is not done.

    Args:
        code: one of :data:`STATUS`.
        text: why, in one line.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, " ".join(text.split())

    def body(self) -> dict[str, object]:
        """What the client is sent."""
        return {"error": {"code": self.code, "text": self.text}}
