"""Images in and out of files, for the verbs that edit, encode and decode."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ddim.base.errors import InputError
from ddim.base.files import write_bytes
from ddim.cli.groups import DataOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ddim.model.model import Model

__all__ = [
    "clear_images",
    "image_name",
    "make_figure",
    "read_images",
    "read_mask",
    "save_figure",
    "save_npz",
    "write_images",
]


def read_images(
    options: DataOptions,
    model: Model,
    indices: list[int] | int,
    *,
    labelled: bool = True,
) -> tuple[Tensor, list[int] | None]:
    """Images in the model's shape, float32 in [-1, 1], and their labels where the model has any.

    Args:
        options: where they are.
        model: the model.
        indices: which of them, or how many from the first on; fewer if there are not as many.
        labelled: whether a class-conditional model needs the labels of these images.

    Raises:
        InputError: no such data, other shapes than the model's, labels that it needs and are not
            there.
    """
    import torch

    from ddim.data.base import labels_fit
    from ddim.data.load import NoSuchSplitError, load_data
    from ddim.data.pixels import from_pixels

    root = Path(options.data_root) if options.data_root else None
    channels, height, width = model.shape
    if height != width:
        raise InputError(f"{model.name} has images that are not square: {model.shape}")

    def load(split: str):
        return load_data(options.data, split=split, size=height, channels=channels, root=root)

    if options.split is not None:
        data = load(options.split)
    else:
        try:
            data = load("test")
        except NoSuchSplitError:
            data = load("train")
    if isinstance(indices, int):
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
    return from_pixels(data.batch(chosen)), labels


def read_mask(path: Path, model: Model) -> Tensor:
    """An image as a mask, true where it is white, shape (1, H, W).

    Raises:
        InputError: not an image, or not of the model's size.
    """
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} is not an image, or is broken: {error}") from None
    height, width = model.shape[1:]
    if grey.shape != (height, width):
        raise InputError(
            f"{path} is {grey.shape[1]} x {grey.shape[0]} pixels; the images of {model.name} "
            f"are {width} x {height}"
        )
    return torch.from_numpy(grey > 127)[None]


def image_name(index: int) -> str:
    """The file of an image in a folder of them."""
    return f"{index:06d}.png"


def clear_images(folder: Path) -> None:
    """Remove the images of an earlier run, of which the folder has a record."""
    if (folder / "run.toml").exists():
        for path in folder.glob("[0-9]" * 6 + ".png"):
            path.unlink()


def write_images(
    output: Path,
    pixels: Tensor,
    columns: int | None = None,
    labels: list[int] | None = None,
) -> None:
    """Write a grid (.png), an array (.npz), or a folder with a PNG for each image.

    Args:
        output: its suffix decides.
        pixels: uint8 of shape (N, C, H, W).
        columns: images in a row of the grid.
        labels: of the images, for the array.
    """
    from ddim.data import pixels as images

    kind = output.suffix.lower()
    if kind == ".png":
        images.save_image(output, pixels, columns)
    elif kind == ".npz":
        save_npz(output, pixels, labels)
    else:
        clear_images(output)
        for index, image in enumerate(pixels):
            images.save_image(output / image_name(index), image)


def save_npz(output: Path, pixels: Tensor, labels: list[int] | None) -> None:
    """Write uint8 images as an array of shape (N, H, W, C), with their labels."""
    import numpy as np

    buffer = io.BytesIO()
    array = pixels.permute(0, 2, 3, 1).numpy()
    if labels is None:
        np.savez_compressed(buffer, images=array)
    else:
        np.savez_compressed(buffer, images=array, labels=np.asarray(labels))
    write_bytes(output, buffer.getvalue())


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
