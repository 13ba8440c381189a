"""The files of a model on the Hugging Face Hub: ``owner/name`` or ``owner/name@revision``.

Only the files that its reader needs are fetched, into huggingface_hub's own cache. The list of a
commit's files, which never changes, is kept in ours, so that a commit whose files are there takes
no network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from ddim.base.errors import InputError
from ddim.base.files import read_json, write_bytes, write_json
from ddim.base.records import checked
from ddim.checkpoints.calibration import CALIBRATED
from ddim.checkpoints.description import SCHEDULER, describe
from ddim.checkpoints.hub_access import (
    SECONDS,
    UnreachableError,
    api,
    asking,
    check_installed,
    endpoint,
    offline,
)
from ddim.checkpoints.names import HubName, named
from ddim.checkpoints.shards import INDEX, pick_weights, shard_places

__all__ = ["RECORDS", "Snapshot", "fetch", "in_words_of", "pinned"]

log = logging.getLogger("ddim")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT = re.compile(r"[0-9a-f]{7,39}")
RECORDS = (
    "config.json",
    "unet/config.json",
    "unet_ema/config.json",
    SCHEDULER,
    f"scheduler/{SCHEDULER}",
    "model_index.json",
    "ddim.json",
    CALIBRATED,
)
"""What a model has beside its weights, small all of it."""

_COMMITS: dict[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The files of a model at one commit, in the Hub's cache.

    Attributes:
        name: what was asked for.
        commit: what it was resolved to, 40 hexadecimal digits.
        folder: a model folder.
    """

    name: HubName
    commit: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.name.repo}@{self.commit[:12]}"


def pinned(text: str) -> str:
    """A model as a record names it: of a name that this process has fetched, with its commit.

    Example:
        >>> pinned("mnist")
        'mnist'
    """
    commit = _COMMITS.get(text)
    name = named(text)
    return text if commit is None or name is None else f"{name.repo}@{commit}"


def fetch(name: HubName, weights: str = "ema") -> Snapshot:
    """Get the files of a model: those in the cache as they are, the others from the Hub.

    A branch or tag is asked for each time; where the Hub cannot be reached, it is what it was when
    it was last asked for, and a line of the log says so. ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN``
    and ``HF_HUB_OFFLINE`` are huggingface_hub's.

    Args:
        name: of the model.
        weights: ``ema`` or ``net``, where it has both.

    Raises:
        InputError: huggingface_hub is not installed; no such model or revision, no access, not a
            model that :mod:`ddim.checkpoints.diffusers` reads; or ``HF_HUB_OFFLINE`` is set and
            something is not in the cache.
        RunError: the network fails, and something is not in the cache.
    """
    check_installed(f"there is no path {name.repo} here, and a name on the Hub")
    commit, files = _files(name)
    snapshot = Snapshot(name, commit, _cache(name.repo) / "snapshots" / commit)
    records = [file for file in RECORDS if file in files]
    if not any(file.endswith("config.json") and file != SCHEDULER for file in records):
        raise InputError(f"{name} is no diffusion model that ddim reads: it has no config.json")
    for file in records:
        _get(snapshot, file)
    with in_words_of(snapshot):
        for file in ("config.json", "unet/config.json"):
            if file in files and "_class_name" not in read_json(snapshot.folder / file):
                raise InputError(f"{file} names no class of diffusers, so it is none of its models")
        unet = describe(snapshot.folder, weights).unet
    for file in _weights(snapshot, unet, files, weights):
        _get(snapshot, file)
    _COMMITS[str(name)] = commit
    return snapshot


@contextlib.contextmanager
def in_words_of(snapshot: Snapshot) -> Iterator[None]:
    """Let refusals name the model, and its files without the place of the cache.

    Raises:
        InputError: that refusal.
    """
    try:
        yield
    except InputError as error:
        text = str(error)
        for folder in (f"{snapshot.folder}/", str(snapshot.folder)):
            text = text.replace(folder, "" if folder.endswith("/") else snapshot.name.repo)
        raise InputError(f"{snapshot.name}: {text}") from None


def _weights(snapshot: Snapshot, unet: Path, files: Collection[str], weights: str) -> Iterator[str]:
    """The weights' files, the index of several first."""
    within = unet.relative_to(snapshot.folder).as_posix()
    place = "" if within == "." else f"{within}/"
    beside = [f.removeprefix(place) for f in files if f.startswith(place)]
    picked = pick_weights((file for file in beside if "/" not in file), weights)
    if picked is None:
        raise InputError(f"{snapshot.name} has no weights {place}diffusion_pytorch_model")
    yield place + picked[0]
    if picked[0].endswith(INDEX):
        with in_words_of(snapshot):
            places = shard_places(snapshot.folder / (place + picked[0]))
        for file in sorted(set(places.values())):
            if file not in beside:
                raise InputError(f"{snapshot.name}: {picked[0]} names {file}, which it has not")
            yield place + file


def _get(snapshot: Snapshot, file: str) -> None:
    """Have a file in the cache."""
    if (snapshot.folder / file).exists():
        return
    repo = snapshot.name.repo
    if offline():
        raise InputError(f"HF_HUB_OFFLINE is set, and {file} of {snapshot} is not in the cache")
    with asking(repo, snapshot.name.revision):
        api().hf_hub_download(repo, file, revision=snapshot.commit)


def _files(name: HubName) -> tuple[str, list[str]]:
    """The commit of a name, and the names of its files.

    Raises:
        InputError: as :func:`fetch`.
        UnreachableError: the network, and the cache does not know either.
    """
    known = _known_commit(name)
    fixed = known is not None and known.startswith(name.revision or "-")
    if known is not None and fixed and _list_path(name.repo, known).exists():
        return known, _listed(name.repo, known)
    failure: InputError | UnreachableError
    if offline():
        failure = InputError(f"HF_HUB_OFFLINE is set, and {name} is not in the cache")
    else:
        try:
            return _asked(name)
        except UnreachableError as error:
            failure = error
    if known is None or not (_cache(name.repo) / "snapshots" / known).is_dir():
        raise failure
    if isinstance(failure, UnreachableError):
        log.warning("%s: taken from the cache, at commit %s: %s", name, known[:12], failure)
    return known, _listed(name.repo, known)


def _asked(name: HubName) -> tuple[str, list[str]]:
    """The same, from the Hub; both are remembered."""
    with asking(name.repo, name.revision):
        info = api().model_info(name.repo, revision=name.revision, timeout=SECONDS)
    commit, files = info.sha or "", [file.rfilename for file in info.siblings or ()]
    if not _COMMIT.fullmatch(commit):
        raise UnreachableError(f"what answers at {endpoint()} is no Hub: it names no commit")
    revision = name.revision or "main"
    with contextlib.suppress(OSError):  # a cache that others fill, and that is read only here
        write_json(_list_path(name.repo, commit), {"files": files})
        if revision != commit and ".." not in revision:  # as huggingface_hub notes a branch
            write_bytes(_cache(name.repo) / "refs" / revision, commit.encode())
    return commit, files


def _known_commit(name: HubName) -> str | None:
    """What the cache takes a revision for: a commit for itself, or for the one that it begins."""
    revision = name.revision or "main"
    if _COMMIT.fullmatch(revision):
        return revision
    ref = _cache(name.repo) / "refs" / revision
    if ".." not in revision and ref.is_file():
        return ref.read_text(encoding="utf-8").strip()
    if _SHORT.fullmatch(revision):
        found = list((_cache(name.repo) / "snapshots").glob(f"{revision}*"))
        return found[0].name if len(found) == 1 else None
    return None


def _listed(repo: str, commit: str) -> list[str]:
    """The names of a commit's files as they are remembered, or of those that are in the cache."""
    path = _list_path(repo, commit)
    if path.exists():
        return checked("files", read_json(path).get("files"), list[str])
    folder = _cache(repo) / "snapshots" / commit
    log.warning("%s@%s: taken as far as another program has fetched it", repo, commit[:12])
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _cache(repo: str) -> Path:
    """The folder of a model in huggingface_hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _list_path(repo: str, commit: str) -> Path:
    from platformdirs import user_cache_path

    folder = user_cache_path("ddim", appauthor=False) / "hub" / repo.replace("/", "--")
    return folder / f"{commit}.json"
