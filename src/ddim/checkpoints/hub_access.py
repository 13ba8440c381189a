"""The Hugging Face Hub through huggingface_hub: where it is, and what its refusals mean."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ddim import __version__
from ddim.base.errors import InputError, RunError
from ddim.base.lines import wanted
from ddim.base.quiet import quiet

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["SECONDS", "UnreachableError", "api", "asking", "check_installed", "endpoint", "offline"]

SECONDS = 10.0
"""Without an answer to a question; files have huggingface_hub's own patience."""

_TRUE = ("1", "ON", "YES", "TRUE")


class UnreachableError(RunError):
    """The Hub does not answer, or not as it should."""


def check_installed(what: str) -> None:
    """Refuse what needs huggingface_hub where that is not installed.

    Args:
        what: the sentence that the refusal begins with.

    Raises:
        InputError: it is not installed.
    """
    try:
        with quiet():
            import huggingface_hub  # noqa: F401
    except ImportError:
        raise InputError(f"{what} takes huggingface_hub: pip install 'ddim[hub]'") from None


def endpoint() -> str:
    """The address of the Hub: ``HF_ENDPOINT``, or its own."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def offline() -> bool:
    """Whether the user wants no network, by ``HF_HUB_OFFLINE``."""
    from huggingface_hub import constants

    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE or constants.HF_HUB_OFFLINE


def api() -> HfApi:
    """The Hub's interface, at :func:`endpoint`, by the user's token if there is one."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), library_name="ddim", library_version=__version__)


@contextlib.contextmanager
def asking(repo: str, revision: str | None = None) -> Iterator[None]:
    """Ask the Hub: without remarks of the library, and with errors in our own words.

    Args:
        repo: owner/name, for messages.
        revision: that is asked for.

    Raises:
        InputError: no such name or revision, no access, or ``HF_HUB_OFFLINE``.
        UnreachableError: the network, or the Hub itself, fails.
        OSError: of this machine's own files.
    """
    try:
        with quiet(), _silent():
            yield
    except (InputError, RunError):
        raise
    except Exception as error:
        raise (_said(error, repo, revision) or error) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The library's log goes nowhere, and its bars only where somebody watches."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    log = logging.getLogger("huggingface_hub")
    before, hide = log.level, not sys.stderr.isatty() or wanted()
    hide = hide and not are_progress_bars_disabled()
    log.setLevel(logging.CRITICAL + 1)
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(before)
        if hide:
            enable_progress_bars()


def _said(error: Exception, repo: str, revision: str | None) -> Exception | None:
    """An error of the library in our words; None for one of this machine's files."""
    from huggingface_hub import errors

    found: Exception | None = None
    if isinstance(error, errors.GatedRepoError):
        found = InputError(
            f"{repo} is gated: ask for access at {endpoint()}/{repo} and give a token of yours "
            "(HF_TOKEN, or `hf auth login`)"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        found = InputError(
            f"there is no model {repo} at {endpoint()}, nor a path of that name here; a "
            "private one needs a token that may see it (HF_TOKEN, or `hf auth login`)"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        found = InputError(f"{repo} has no revision {revision}: give a branch, a tag or a commit")
    elif isinstance(error, errors.OfflineModeIsEnabled):
        found = InputError(f"HF_HUB_OFFLINE is set, and {repo} has to be asked for at the Hub")
    elif isinstance(error, errors.HFValidationError):
        found = InputError(f"{repo} is no name of a model on the Hub, which is owner/name")
    elif isinstance(error, errors.HfHubHTTPError):
        return _by_status(error, repo)
    elif isinstance(error, OSError) and error.errno is not None:
        return None
    return found or UnreachableError(
        f"the Hub at {endpoint()} cannot be reached, or broke off: {_first_line(error)}"
    )


def _by_status(error: Exception, repo: str) -> Exception:
    """An answer of the server that has no class of its own."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    server = getattr(error, "server_message", None) or _first_line(error)
    if status in (401, 403):
        return InputError(
            f"the token (HF_TOKEN, or that of `hf auth login`) has no right to this at {repo}: "
            f"{_first_line(server)}"
        )
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        return InputError(f"the Hub refuses this for {repo}: {_first_line(server)}")
    return UnreachableError(
        f"the Hub at {endpoint()} fails with status {status}: {_first_line(server)}"
    )


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
