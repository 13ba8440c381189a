"""A model folder on its way to the Hugging Face Hub, with a card."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddim.base.errors import InputError, RunError
from ddim.base.files import read_json
from ddim.checkpoints.calibration import find_calibration
from ddim.checkpoints.hub import RECORDS
from ddim.checkpoints.hub_access import SECONDS, api, asking, check_installed, endpoint, offline
from ddim.checkpoints.names import HubName, named
from ddim.checkpoints.shards import find_weights, is_weights, shard_places
from ddim.interop.card import commands_of, front_matter, model_card
from ddim.model.model import Model
from ddim.model.opening import load
from ddim.nets.unet import UNet
from ddim.train.run import CHECKPOINT

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

__all__ = ["CARD", "Pushed", "Upload", "prepare", "push"]

CARD = "README.md"
_PICTURES = ("samples", "loss")
_PLACES = ("", "unet", "unet_ema")
"""Where weights of a model stand."""


@dataclasses.dataclass(frozen=True)
class Upload:
    """What is to be a repository on the Hub.

    Attributes:
        name: of the repository.
        folder: the model folder.
        model: what that opens as.
        files: by their places in the repository: a file, or what is made for it.
    """

    name: HubName
    folder: Path
    model: Model
    files: Mapping[str, Path | bytes]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size
            for name, file in self.files.items()
        }


@dataclasses.dataclass(frozen=True)
class Pushed:
    """What has become of it.

    Attributes:
        address: of the repository's page.
        commit: 40 hexadecimal digits, which ``owner/name@commit`` takes.
    """

    address: str
    commit: str


def prepare(folder: Path | str, name: str, *, anew: bool = False) -> Upload:
    """Find the files of a model and write its card; nothing is sent, and no file written.

    Args:
        folder: a model folder, or a training run's, of which ``model/`` is taken.
        name: ``owner/name``.
        anew: make a card where the folder has one. Otherwise that is taken, below front matter of
            ours if it has none.

    Raises:
        InputError: not a model folder of ours, or a name that is none.
    """
    target, folder = named(name), Path(folder)
    if target is None or target.revision is not None:
        raise InputError(f"{name} is no name of a model on the Hub, which is owner/name")
    run = folder if (folder / CHECKPOINT).exists() else None
    if run is not None:
        folder = folder / "model"
    elif folder.name == "model" and (folder.parent / CHECKPOINT).exists():
        run = folder.parent
    if not (folder / "model_index.json").exists():
        raise InputError(
            f"{folder} is not a model folder, which has a model_index.json: ddim convert makes one"
        )
    model = load(folder)
    if not isinstance(model.net, UNet):
        raise InputError(f"{folder} is no UNet2DModel of diffusers")
    files: dict[str, Path | bytes] = dict(_model_files(folder))
    pictures = _pictures(folder, run)
    files |= {f"{picture}.png": path for picture, path in pictures.items()}
    made, own = _card(model, target.repo, folder, run, list(pictures)), folder / CARD
    files[CARD] = made.encode()
    if own.exists() and not anew:
        text = own.read_text(encoding="utf-8")
        files[CARD] = own if front_matter(text) else f"{front_matter(made)}\n{text}".encode()
    return Upload(target, folder, model, files)


def _model_files(folder: Path) -> dict[str, Path]:
    """The records and the weights that the folder opens by."""
    found = {name: folder / name for name in RECORDS if (folder / name).exists()}
    average = folder / "unet_ema"
    for place in (average, folder / "unet") if average.is_dir() else (folder / "unet",):
        path = find_weights(place, "ema")[0]
        beside = sorted(set(shard_places(path).values())) if path.suffix == ".json" else []
        for file in (path.name, *beside):
            found[f"{place.name}/{file}"] = place / file
    return found


def _pictures(folder: Path, run: Path | None) -> dict[str, Path]:
    """Pictures that stand beside the model, or were drawn last while it was trained."""
    paths = {name: folder / f"{name}.png" for name in _PICTURES}
    found = {name: path for name, path in paths.items() if path.exists()}
    drawn = sorted(run.glob("samples/*.png")) if run is not None else []
    return {"samples": drawn[-1], **found} if drawn else found


def _card(model: Model, repo: str, folder: Path, run: Path | None, pictures: list[str]) -> str:
    index = read_json(folder / "model_index.json")
    return model_card(
        model,
        repo,
        str(index.get("_class_name", "DDIMPipeline")),
        commands=[] if run is None else commands_of(run),
        calibration=find_calibration(folder / "calibrated.json", model.identity),
        pictures=pictures,
    )


def push(upload: Upload, *, private: bool = False, force: bool = False) -> Pushed:
    """Send a model to the Hub, as one commit; the repository is made if need be.

    Weights go by HTTP, which every server that speaks the Hub's protocol takes.

    Args:
        upload: as :func:`prepare` makes it.
        private: nobody else sees the repository.
        force: commit to a repository that holds a model already. Of that, weights and records
            which this one does not have are removed.

    Raises:
        InputError: huggingface_hub is not installed, no token, no right, or a repository that
            holds something already.
        RunError: the Hub cannot be reached, or breaks off; nothing is committed then.
    """
    check_installed("pushing to the Hub")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token

    repo = upload.name.repo
    if offline():
        raise InputError("HF_HUB_OFFLINE is set, and a push takes the network")
    if not get_token():
        raise InputError("a push takes a token that may write: HF_TOKEN, or `hf auth login`")
    there = _there(repo)
    if there is not None:
        _check_replaced(repo, there, private=private, force=force)
    with contextlib.ExitStack() as stack:
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        for name, file in upload.files.items():
            # As streams: huggingface_hub sends these by HTTP, whatever else it has installed.
            opened = io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")
            operations.append(CommitOperationAdd(name, stack.enter_context(opened)))
        operations += [
            CommitOperationDelete(name)
            for name in _names(there)
            if name not in upload.files and _is_of_a_model(name)
        ]
        with asking(repo):
            if there is None:
                api().create_repo(repo, private=private or None)
            message = f"Upload {upload.model.name.rpartition('/')[2]} with ddim"
            done = api().create_commit(repo, operations, commit_message=message)
    if not done.oid:
        raise RunError(f"the Hub at {endpoint()} says no commit of what it was sent")
    return Pushed(f"{endpoint()}/{repo}", done.oid)


def _there(repo: str) -> ModelInfo | None:
    """What the Hub has under that name; None where it has nothing."""
    from huggingface_hub.errors import RepositoryNotFoundError

    with asking(repo):
        try:
            return api().model_info(repo, timeout=SECONDS)
        except RepositoryNotFoundError:
            return None


def _names(there: Any) -> list[str]:
    return [] if there is None else [file.rfilename for file in there.siblings or ()]


def _check_replaced(repo: str, there: ModelInfo, *, private: bool, force: bool) -> None:
    """Refuse a repository that holds something, or that others see, unless that is meant."""
    if private and not there.private:
        raise InputError(f"{repo} is there and is public: a push makes it private no more")
    held = [name for name in _names(there) if name not in (".gitattributes", CARD)]
    if held and not force:
        raise InputError(
            f"{repo} has {len(held)} files already, such as {held[0]}: give --force to commit over "
            "them, or another name"
        )


def _is_of_a_model(name: str) -> bool:
    """Whether a file of a repository is what a model would be opened by."""
    folder, _, file = name.rpartition("/")
    return name in RECORDS or (folder in _PLACES and is_weights(file))
