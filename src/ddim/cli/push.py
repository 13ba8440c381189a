"""``ddim push``: a model folder goes to the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from ddim.base.files import write_bytes
from ddim.cli.groups import ForceOptions, Switch
from ddim.cli.options import parse
from ddim.cli.report import print_json

if TYPE_CHECKING:
    from ddim.interop.upload import Pushed, Upload

__all__ = ["PushOptions", "main"]


@dataclasses.dataclass(frozen=True)
class PushOptions:
    """Put a model folder on the Hugging Face Hub, with a card that says what is known of it.

    The folder is one of `ddim convert` or of Model.save, or that of a training run. The token is
    HF_TOKEN, or that of `hf auth login`. A README.md in the folder is the card, as it stands;
    --dry-run writes one there, in which you can say a license, and sends nothing. --force writes
    over that card, and commits to a repository that has a model already. Afterwards every verb
    takes --model OWNER/NAME.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim push runs/mnist someone/mnist --dry-run",
        "ddim push runs/mnist someone/mnist --private",
    )

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """A model folder, or a training run's."""
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OWNER/NAME")]
    """The repository, which is made if need be."""
    private: Switch = False
    """Let nobody else see it."""
    dry_run: Switch = False
    """Write the card and list the files, without the network."""
    output: ForceOptions = ForceOptions()
    json: Switch = False
    """Print one JSON document instead of text."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`PushOptions`."""
    options = parse(PushOptions, "push", argv)

    from ddim.interop.upload import CARD, prepare, push

    force = options.output.force
    upload = prepare(options.folder, options.name, anew=options.dry_run and force)
    if options.dry_run:
        card, made = upload.files[CARD], force or not (upload.folder / CARD).exists()
        if made and isinstance(card, bytes):
            write_bytes(upload.folder / CARD, card)
        _tell_files(options, upload, made=made)
        return 0
    _tell(options, upload, push(upload, private=options.private, force=force))
    return 0


def _tell_files(options: PushOptions, upload: Upload, *, made: bool) -> None:
    from ddim.interop.upload import CARD

    card = upload.folder / CARD
    if options.json:
        print_json({"name": options.name, "card": str(card), "files": upload.sizes})
        return
    for name, size in upload.sizes.items():
        print(f"{size:>13,}  {name}")
    about = "written" if made else "taken as it is; --force writes another"
    print(f"{card}: {about}. Nothing was sent.")


def _tell(options: PushOptions, upload: Upload, pushed: Pushed) -> None:
    if options.json:
        facts = {"identity": upload.model.identity, "files": upload.sizes}
        print_json(
            {"name": options.name, "address": pushed.address, "commit": pushed.commit, **facts}
        )
        return
    print(
        f"{pushed.address}: {len(upload.files)} files, {sum(upload.sizes.values()) / 1e6:.1f} MB, "
        f"commit {pushed.commit[:12]}. ddim sample --model {options.name}"
    )
