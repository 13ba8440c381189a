"""What models on the Hugging Face Hub are called. No torch here."""

from __future__ import annotations

import dataclasses
import re

__all__ = ["HubName", "named"]

_NAME = re.compile(r"(?P<repo>\w[\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>[\w./+-]{1,200}))?")
_FILES = (".bin", ".ckpt", ".json", ".npz", ".onnx", ".pt", ".pth", ".py", ".safetensors")


@dataclasses.dataclass(frozen=True)
class HubName:
    """A model on the Hub.

    Attributes:
        repo: ``owner/name``.
        revision: a branch, a tag or a commit; None for the branch main.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def named(text: str) -> HubName | None:
    """The name that a text is, if it could be one: a path of more parts, or to a file, is none.

    Example:
        >>> str(named("google/ddpm-cifar10-32@main"))
        'google/ddpm-cifar10-32@main'
        >>> [named(t) for t in ("mnist", "./runs/mnist", "runs/a/model", "runs/model-10.pt")]
        [None, None, None, None]
    """
    match = _NAME.fullmatch(text)
    if match is None or ".." in match["repo"] or "--" in match["repo"]:
        return None
    if match["revision"] is None and match["repo"].endswith(_FILES):
        return None
    return HubName(match["repo"], match["revision"])
