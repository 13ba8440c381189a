"""Pictures in files: the only place that opens one, for data, edits and masks alike."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from ddim.base.errors import InputError
from ddim.base.quiet import quiet

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "SENT",
    "Header",
    "decode_picture",
    "on_white",
    "open_picture",
    "quietly",
    "read_header",
    "read_mask",
    "suffixes",
]

log = logging.getLogger("ddim")

SENT = ("PNG", "JPEG", "WEBP")
"""The formats of pictures that strangers may send."""

# Stubs that need a reader from elsewhere, films, and a format that Pillow runs Ghostscript on.
_CLOSED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


@dataclasses.dataclass(frozen=True)
class Header:
    """What a picture's header says.

    Attributes:
        grey: it has no colours.
        alpha: it has an alpha channel, or a transparent colour.
        frames: it has several frames, of which the first is taken.
    """

    grey: bool
    alpha: bool
    frames: bool


@functools.cache
def _formats() -> list[str]:
    from PIL import Image

    Image.init()
    return [name for name in Image.OPEN if name not in _CLOSED]


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of every picture that Pillow opens here."""
    from PIL import Image

    known = {*_formats(), "MPO"}  # which the reader of JPEG opens
    return frozenset(s for s, name in Image.registered_extensions().items() if name in known)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Within it a picture that Pillow warns of as a decompression bomb is an error.

    What else Pillow warns of is metadata that is not used. Filters are the process's, not the
    thread's: threads are to be started within it.
    """
    from PIL import Image

    with quiet():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """A picture whose pixels are not decoded yet; whatever Pillow raises names the file.

    Raises:
        InputError: no such file, or not a picture, or a damaged one.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}" if not path.exists() else f"{path} is no file")
    # Not by name: then Pillow 13 maps a TIFF that is to be turned with its sides swapped.
    with _named(path), path.open("rb") as file, _read(file, _formats()) as image:
        yield image


def _read(file: IO[bytes], formats: Sequence[str]) -> Image:
    from PIL import Image

    return Image.open(file, formats=tuple(formats))


@contextlib.contextmanager
def _named(name: Path | str, kinds: str = "of no kind that Pillow knows") -> Iterator[None]:
    """Say in one line, with a picture's name, whatever Pillow raises of it.

    Raises:
        InputError: it raised something.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} cannot be read as an image: it is {kinds}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(
            f"{name} has more pixels than the {Image.MAX_IMAGE_PIXELS} that Pillow takes for a "
            "picture (PIL.Image.MAX_IMAGE_PIXELS): make it smaller"
        ) from None
    except Exception as error:  # Pillow's readers raise nearly everything on damaged files.
        reason = str(error) or type(error).__name__
        raise InputError(f"{name} cannot be read as an image: {reason[:200]}") from error


def read_header(path: Path) -> Header:
    """What the header of a picture says; to be called within :func:`quietly`.

    Raises:
        InputError: not a picture, or one whose white is not known.
    """
    with _opened(path) as image:
        _white(image, path)
        grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode[0] == "I"
        grey = grey or (image.mode == "P" and _grey_palette(image))
        frames = bool(getattr(image, "is_animated", False))
        return Header(grey, image.has_transparency_data, frames)


def open_picture(path: Path, *, binary: bool = False) -> Image:
    """A picture, decoded, upright and in 8 bits; to be called within :func:`quietly`.

    It is turned as its EXIF orientation says. Deep pictures are scaled from the whole range of
    their format: 65535 (or what a TIFF's number of bits can hold) and, in floating point, 1 are
    white. CMYK, palettes and the like become RGB. Of several frames the first is taken.

    Args:
        path: the file.
        binary: take deep integers that are only 0 and 1 for black and white.

    Returns:
        mode L, RGB, or, where some of it is transparent, RGBA.

    Raises:
        InputError: not a picture, a damaged one, one whose white is not known, or floating point
            outside [0, 1].
    """
    with _opened(path) as image:
        return _decoded(image, path, binary)


def decode_picture(content: bytes, name: str = "the image", most: int = 4_000_000) -> Image:
    """A picture that somebody has sent, as :func:`open_picture`: a PNG, a JPEG or a WebP.

    Its size is looked at before it is decoded. To be called within :func:`quietly`.

    Args:
        content: the file's bytes.
        name: what messages call it.
        most: pixels that it may have.

    Returns:
        mode L, RGB, or, where some of it is transparent, RGBA.

    Raises:
        InputError: another format, a damaged one, or more pixels.
    """
    kinds = "no PNG, JPEG or WebP"
    with _named(name, kinds), _read(io.BytesIO(content), SENT) as image:
        if image.width * image.height > most:
            raise InputError(
                f"{name} has {image.width} x {image.height} pixels, more than {most:,}: make it "
                "smaller"
            )
        return _decoded(image, name, binary=False)


def _decoded(image: Image, name: Path | str, binary: bool) -> Image:
    """An opened picture, decoded, upright and in 8 bits; see :func:`open_picture`."""
    from PIL import ImageOps

    image.load()
    white, orientation = _white(image, name), image.getexif().get(_ORIENTATION, 1)
    if white is not None:
        image = _scaled(image, white, name, binary)
    elif image.has_transparency_data:
        # From La only LA is reached.
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema() == (255, 255):
        image = image.convert("L" if image.mode == "LA" else "RGB")
    image.getexif()[_ORIENTATION] = orientation  # which conversions lose
    return ImageOps.exif_transpose(image)


def on_white(picture: Image) -> Image:
    """A picture of :func:`open_picture` without transparency: on white, as a page shows it."""
    from PIL import Image

    if picture.mode not in ("LA", "RGBA"):
        return picture
    picture = picture.convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture).convert("RGB")


def read_mask(path: Path) -> np.ndarray:
    """A picture as a mask: true where it is white, or 1 in a mask of 0 and 1.

    Args:
        path: the file.

    Returns:
        bool of shape (H, W), upright as :func:`open_picture`.

    Raises:
        InputError: as :func:`open_picture`; a mask that is transparent somewhere, or that is the
            same everywhere and so selects nothing or everything.
    """
    with quietly():
        picture, frames = open_picture(path, binary=True), read_header(path).frames
    if frames:
        raise InputError(f"the mask {path} has several frames: give one picture, white on black")
    if picture.mode not in ("L", "RGB"):
        raise InputError(
            f"the mask {path} is transparent in parts, which could mean either: give one without "
            "transparency, white where images are painted and black where they stay"
        )
    grey = np.asarray(picture.convert("L"))
    binary = int(grey.max()) == 1
    painted = grey == 1 if binary else grey > 127
    if painted.all() or not painted.any():
        what = "white everywhere" if painted.all() else "white nowhere"
        raise InputError(
            f"the mask {path} is {what} (its values span {grey.min()} to {grey.max()}): give one "
            "that is white, above 127, where images are painted and black where they stay"
        )
    if not binary and ((grey > 0) & (grey < 255)).any():
        log.warning("%s has greys: what is lighter than half is painted, the rest stays", path)
    return painted


def _white(image: Image, path: Path | str) -> float | None:
    """The value that is white in a picture of more than 8 bits; None in others.

    Raises:
        InputError: integers of 32 bits, or with a sign, of which nothing says what is white.
    """
    if image.mode == "F":
        return 1.0
    if not image.mode.startswith("I"):
        return None
    # Pillow scales PGM to 16 bits; early versions read PNG of 16 bits as integers of 32.
    if image.mode == "I" and image.format not in ("PPM", "PNG"):
        raise InputError(
            f"{path} holds integers of 32 bits or with a sign, of which it is not known which is "
            "white: convert it to 8 or 16 bits without a sign, or to floating point in 0..1"
        )
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, (16,))[0]
    return 2.0**bits - 1


def _scaled(image: Image, white: float, path: Path | str, binary: bool) -> Image:
    """A deep picture as L, or as LA if one of its values is transparent."""
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "F" and not (values.min() >= 0 and values.max() <= 1):
        raise InputError(
            f"{path} is floating point that spans {values.min():.6g} to {values.max():.6g}, where "
            "0 is black and 1 is white: rescale it to that"
        )
    if binary and values.max() == 1:
        white = 1.0
    scaled = np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    picture = Image.fromarray(scaled)
    clear = image.info.get("transparency")
    if clear is not None:
        alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
        picture = Image.merge("LA", (picture, alpha))
    return picture


def _grey_palette(image: Image) -> bool:
    if image.palette is None:
        return False
    order, colours = image.palette.getdata()
    if ";" in order:  # not colour by colour, or not in whole bytes
        return False
    red, green, blue = (colours[i :: len(order)] for i in range(3))
    return red == green == blue
