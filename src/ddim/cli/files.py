"""Images in and out of files, for the verbs that edit, encode and decode."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from ddim.base.errors import InputError
from ddim.base.files import write_bytes
from ddim.base.ranks import here
from ddim.cli.groups import DataOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ddim.model.model import Model

__all__ = [
    "check_images",
    "clear_images",
    "comparison",
    "image_name",
    "make_figure",
    "read_images",
    "read_mask",
    "save_figure",
    "save_npz",
    "write_images",
]

log = logging.getLogger("ddim")


def check_images(model: Model, *, pictures: bool = True) -> None:
    """Refuse a model of signals or volumes before anything is drawn.

    Args:
        model: the model.
        pictures: whether they go into pictures, which have 1, 3 or 4 channels.

    Raises:
        InputError: its samples are no images.
    """
    if len(model.shape) != 3:
        raise InputError(
            f"images are (C, H, W), and {model.name} makes {tuple(model.shape)}: draw it in "
            "Python, by ddim.sample"
        )
    if pictures and model.shape[0] not in (1, 3, 4):
        raise InputError(
            f"a picture has 1, 3 or 4 channels, and {model.name} makes {tuple(model.shape)}"
        )


def read_images(
    options: DataOptions,
    model: Model,
    indices: list[int] | int,
    *,
    labelled: bool = True,
    in_turn: bool = False,
) -> tuple[Tensor, list[int] | None]:
    """Images in the model's shape, float32 in [-1, 1], and their labels where the model has any.

    That there are fewer than asked for is said.

    Args:
        options: where they are.
        model: the model.
        indices: which of them, or how many from the first on; fewer if there are not as many.
        labelled: whether a class-conditional model needs the labels of these images.
        in_turn: whether the caller takes them in turn where there are fewer.

    Raises:
        InputError: no such data, other shapes than the model's, labels that it needs and are not
            there; or several processes that read different ones.
    """
    import torch

    from ddim.data.base import labels_fit
    from ddim.data.load import NoSuchSplitError, load_data
    from ddim.data.pixels import from_pixels
    from ddim.model.agreement import agree_on

    root = Path(options.data_root) if options.data_root else None
    check_images(model, pictures=False)
    channels, height, width = model.shape
    if height != width:
        raise InputError(f"{model.name} has images that are not square: {model.shape}")

    def load(split: str):
        return load_data(
            options.data,
            split=split,
            size=height,
            channels=channels,
            root=root,
            skip_broken=options.skip_broken,
        )

    if options.split is not None:
        data = load(options.split)
    else:
        try:
            data = load("test")
        except NoSuchSplitError:
            data = load("train")
    short = None
    if isinstance(indices, int):
        short = indices if indices > len(data) and not in_turn else None
        indices = list(range(min(indices, len(data))))
    for i in indices:
        if not 0 <= i < len(data):
            raise InputError(f"there is no image {i} in {data.name}, which has {len(data)}")
    chosen = torch.tensor(indices)
    labels = None
    if labelled and model.classes is not None:
        given = data.labels(chosen)
        if given is None or not labels_fit(data, model.classes):
            raise InputError(
                f"{model.name} has {model.classes} classes, and {data.name} has "
                f"{'no labels' if data.classes is None else f'{data.classes} classes'}"
            )
        labels = given.tolist()
    images = from_pixels(data.batch(chosen))
    agree_on(model, images=images, labels=labels)
    if short is not None:
        log.warning("%s: fewer images than the %d asked for: %d", data.name, short, len(data))
    return images, labels


def read_mask(path: Path, model: Model) -> Tensor:
    """An image as a mask, true where it is white, shape (1, H, W).

    Raises:
        InputError: as :func:`ddim.data.pictures.read_mask`, or not of the model's size.
    """
    import torch

    from ddim.data import pictures

    mask = pictures.read_mask(path)
    height, width = model.shape[1:]
    if mask.shape != (height, width):
        raise InputError(
            f"{path} is {mask.shape[1]} x {mask.shape[0]} pixels; the images of {model.name} "
            f"are {width} x {height}"
        )
    return torch.from_numpy(mask)[None]


def image_name(index: int) -> str:
    """The file of an image in a folder of them."""
    return f"{index:06d}.png"


def clear_images(folder: Path) -> None:
    """Remove the images of an earlier run, of which the folder has a record."""
    if here().first and (folder / "run.toml").exists():
        for path in folder.glob("[0-9]" * 6 + "*.png"):
            if path.stem.isdigit():
                path.unlink()


def write_images(
    output: Path,
    pixels: Tensor,
    columns: int | None = None,
    labels: list[int] | None = None,
    scale: int | None = None,
) -> None:
    """Write a grid (.png), an array (.npz), or a folder with a PNG for each image.

    Args:
        output: its suffix decides.
        pixels: uint8 of shape (N, C, H, W).
        columns: images in a row of the grid.
        labels: of the images, for the array.
        scale: of the grid; None for one that is 512 pixels wide, or, of one image, for its own.
    """
    from ddim.data import pixels as images
    from ddim.data.sheet import enlarged

    kind = output.suffix.lower()
    if kind == ".png":
        scale = 1 if scale is None and len(pixels) == 1 else scale
        images.save_image(output, enlarged(images.grid(pixels, columns), scale))
    elif kind == ".npz":
        save_npz(output, pixels, labels)
    else:
        for index, image in enumerate(pixels):
            images.save_image(output / image_name(index), image)


def save_npz(output: Path, pixels: Tensor, labels: list[int] | None) -> None:
    """Write uint8 images as an array of shape (N, H, W, C), with their labels.

    Not by np.savez, which writes the time into the file: equal content has equal bytes.
    """
    import numpy as np

    arrays = {"images": pixels.permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays["labels"] = np.asarray(labels)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array)
            # A ZipInfo has the date 1980-01-01.
            info = zipfile.ZipInfo(f"{name}.npy")
            archive.writestr(info, member.getbuffer(), zipfile.ZIP_DEFLATED)
    write_bytes(output, buffer.getvalue())


def comparison(output: Path) -> Path:
    """The file beside an output that compares it with what it was made of."""
    return output.with_name(f"{output.stem}-compare.png")


def make_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'ddim[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())
