"""What models that come with the package are called. No torch here."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ddim.base.errors import InputError, unknown
from ddim.checkpoints.names import HubName, named

__all__ = ["hub_name", "shipped"]


def shipped() -> list[str]:
    """The names of the models that come with the package."""
    root = resources.files("ddim") / "shipped"
    return sorted(p.name for p in root.iterdir() if (p / "model_index.json").is_file())


def hub_name(source: str | Path) -> HubName:
    """What is no path, as a name on the Hub.

    Raises:
        InputError: it is none, or looks like a path that was mistyped.
    """
    name = named(source) if isinstance(source, str) else None
    if name is None:
        raise InputError(f"{unknown('model', str(source), shipped())} and there is no such path")
    owner = Path(name.repo).parent
    if name.revision is None and owner.is_dir():
        raise InputError(
            f"there is no {source} in the folder {owner}, which is here: write {source}@main for "
            "the model of that name on the Hub"
        )
    return name
