"""Images to train on and to measure against: named sets, folders, arrays in files.

One call opens them all, :func:`load_data`; what it returns answers as :class:`ImageData`, whether
the images are held in memory (:class:`ArrayData`) or decoded when asked for (:class:`FolderData`).
Pixels stay unsigned bytes here: their scaling to [-1, 1] is the business of whoever trains.
"""

from ddim.data.base import ArrayData, ImageData, labels_fit
from ddim.data.folder import FolderData
from ddim.data.load import NoSuchSplitError, load_data
from ddim.data.named import DATASETS

__all__ = [
    "DATASETS",
    "ArrayData",
    "FolderData",
    "ImageData",
    "NoSuchSplitError",
    "labels_fit",
    "load_data",
]
