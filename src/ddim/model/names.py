"""What models that come with the package are called. No torch here."""

from __future__ import annotations

from importlib import resources

__all__ = ["shipped"]


def shipped() -> list[str]:
    """The names of the models that come with the package."""
    root = resources.files("ddim") / "shipped"
    return sorted(p.name for p in root.iterdir() if (p / "model_index.json").is_file())
