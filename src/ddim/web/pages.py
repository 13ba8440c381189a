"""The files of the page: a fixed table, read once. Nothing that a client says is ever a path."""

from __future__ import annotations

from importlib import resources

__all__ = ["read_page"]

KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""What may be sent, by suffix."""


def read_page() -> dict[str, tuple[bytes, str]]:
    """The content and the type of each file, by the path that a browser asks for."""
    found: dict[str, tuple[bytes, str]] = {}
    for file in (resources.files("ddim") / "web" / "page").iterdir():
        kind = KINDS.get(file.name.rpartition(".")[2])
        if kind is not None:
            path = "/" if file.name == "index.html" else f"/static/{file.name}"
            found[path] = file.read_bytes(), kind
    return found
