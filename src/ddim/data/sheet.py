"""Pictures for people: images of any shape as a grid, enlarged, with labels at rows and columns.

What is data keeps its own pixels (:func:`ddim.save_image`); what is looked at is at least 512
pixels wide, each of its pixels a square of whole ones.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddim.base.display import image
from ddim.base.errors import InputError
from ddim.data.pixels import as_tensor, grid, picture, to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "captioned",
    "enlarged",
    "labelled",
    "pixel_scale",
    "plain",
    "png",
    "show",
    "shown_as_html",
]

WIDTH = 512
"""Pixels that a picture is wide, at least, where nobody says how large."""
LARGEST = 2**27
"""Pixels of a picture, at most: half a gigabyte while it is drawn in colours."""
SLICES = 8
"""Slices of a volume that are shown."""
_BAND = 48
"""Pixels that the curve of a signal is high."""
_POINTS = 1024
"""Pixels that it is wide, at most."""


def show(images: Tensor, *, scale: int | None = None, columns: int | None = None) -> Image:
    """Images as one picture, which a notebook displays, at least 512 pixels wide.

    ====================  ========================================================================
    ``(H, W)``            one image in grey
    ``(C, H, W)``         one image
    ``(N, C, H, W)``      a grid; three channels are colours, one is grey, of others each is a grey
                          image of its own
    ``(N, C, L)``         signals, whose C curves stand one above the other
    ``(N, C, D, H, W)``   volumes, of each up to eight slices along D in a row
    ====================  ========================================================================

    Three dimensions are an image where the first is 1 or 3 and the second above 4, else signals.

    Args:
        images: in [-1, 1] or uint8; NumPy arrays too.
        scale: pixels of the picture for a pixel of an image; None for what makes it 512 wide.
        columns: images, signals or volumes in a row; about a square if None.

    Raises:
        InputError: another shape, nothing to show, values that are not in [-1, 1] or not finite, or
            a picture that is too large.

    Example:
        >>> show(torch.zeros(64, 1, 28, 28)).size
        (714, 714)
    """
    tiles = _tiles(as_tensor(images).detach().cpu())
    if columns is None:
        height, width = tiles.shape[2:]
        columns = max(1, math.ceil(math.sqrt(len(tiles) * height / width) - 1e-9))
    elif isinstance(columns, bool) or not isinstance(columns, int):
        raise InputError(f"columns is a whole number, not {columns!r:.200}")
    rows = -(-len(tiles) // max(1, columns))
    _check_size(tiles.shape[3] * min(columns, len(tiles)), tiles.shape[2] * rows, 1)
    return picture(enlarged(grid(tiles, columns), scale))


def _tiles(images: Tensor) -> Tensor:
    """Everything that is to be shown as uint8 of shape (N, 1 or 3, height, width)."""
    shape = tuple(images.shape)
    if images.ndim not in (2, 3, 4, 5):
        raise InputError(
            "what can be shown is an image (H, W) or (C, H, W), images (N, C, H, W), signals "
            f"(N, C, L) or volumes (N, C, D, H, W), not {shape}"
        )
    if images.numel() == 0:
        raise InputError(f"there is nothing to show in a tensor of shape {shape}")
    pixels = images if images.dtype == torch.uint8 else to_pixels(images)
    if images.ndim == 2:
        return pixels[None, None]
    if images.ndim == 5:
        depth = shape[2]
        chosen = [round(i * (depth - 1) / max(1, SLICES - 1)) for i in range(SLICES)]
        slices = pixels[:, :, chosen if depth > SLICES else list(range(depth))]
        return _side_by_side([_coloured(part) for part in slices.unbind(2)])
    if images.ndim == 4:
        return _coloured(pixels)
    if shape[0] in (1, 3) and shape[1] > 4:
        return pixels[None]
    return _curves(pixels)


def _coloured(pixels: Tensor) -> Tensor:
    """The same where channels are grey or colours; else the channels side by side in grey."""
    if pixels.shape[1] in (1, 3):
        return pixels
    return _side_by_side(list(pixels.split(1, dim=1)))


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    line = torch.zeros_like(parts[0][..., :1])
    return torch.cat([part for p in parts for part in (p, line)][:-1], dim=-1)


def _curves(pixels: Tensor) -> Tensor:
    """Signals (N, C, L) in bytes as white curves on black, shape (N, 1, C·48, about L)."""
    count, channels, length = pixels.shape
    each = -(-length // _POINTS)
    short = -length % each
    values = torch.cat([pixels, pixels[..., -1:].expand(-1, -1, short)], dim=-1)
    bins = values.view(count, channels, -1, each).float()
    # The curve goes on to where the next pixel begins.
    following = torch.cat([bins[..., 1:, 0], bins[..., -1:, -1]], dim=-1)
    low = torch.minimum(bins.amin(dim=-1), following)
    high = torch.maximum(bins.amax(dim=-1), following)
    top, bottom = (((255 - v) / 255 * (_BAND - 1)).round()[:, :, None] for v in (high, low))
    rows = torch.arange(_BAND)[:, None]
    drawn = (rows >= top) & (rows <= bottom)
    return drawn.flatten(1, 2)[:, None].to(torch.uint8) * 255


def pixel_scale(width: int, height: int, scale: int | None = None, least: int = WIDTH) -> int:
    """How many pixels of a picture one of an image takes along a side.

    Args:
        width: of the picture, in pixels of the image.
        height: the same.
        scale: what was asked for; None for the smallest that makes it ``least`` wide.
        least: pixels.

    Raises:
        InputError: no whole number from 1 on, or a picture that is too large.
    """
    if scale is not None:
        if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
            raise InputError(f"scale is a whole number from 1 on, not {scale!r:.200}")
        _check_size(width, height, scale)
        return scale
    _check_size(width, height, 1)
    wanted = max(1, -(-least // width))
    # A column of many images is as high as it is: it is not made wide at any price.
    return max(1, min(wanted, math.isqrt(LARGEST // (width * height))))


def _check_size(width: int, height: int, scale: int) -> None:
    if width * height * scale * scale > LARGEST:
        raise InputError(
            f"the picture would have {width * scale:,} x {height * scale:,} pixels, more than "
            f"{LARGEST:,}: show fewer images or take a smaller scale"
        )


def enlarged(pixels: Tensor, scale: int | None = None) -> Tensor:
    """Each pixel of (C, H, W) as a square of ``scale``; see :func:`pixel_scale` for None."""
    times = pixel_scale(pixels.shape[-1], pixels.shape[-2], scale)
    return pixels.repeat_interleave(times, -1).repeat_interleave(times, -2)


def labelled(
    rows: Sequence[Tensor],
    texts: Sequence[str] = (),
    heads: Sequence[str] = (),
    scale: int | None = None,
) -> Image:
    """Rows of images under each other, a text to the left of each and above each column.

    Args:
        rows: each of shape (N, C, H, W), all alike, in [-1, 1] or uint8.
        texts: of the rows; none for none.
        heads: of the columns; none for none.
        scale: as :func:`pixel_scale`.

    Raises:
        InputError: as :func:`pixel_scale`, or no images.
    """
    from PIL import Image, ImageDraw

    strips = [picture(grid(row, len(row))).convert("RGB") for row in rows]
    width, height = strips[0].size
    times = pixel_scale(width, height * len(rows), scale)
    size = width * times, height * times
    step = (rows[0].shape[-1] + 2) * times
    font, small = _font(15), _fitting(heads, step - 4)
    margin, gap = 12, 6
    left = round(max(font.getlength(plain(t)) for t in texts)) + 2 * margin if texts else margin
    top = margin + (20 if heads else 0)
    canvas = Image.new(
        "RGB", (left + size[0] + margin, top + margin + len(rows) * (size[1] + gap)), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for i, strip in enumerate(strips):
        y = top + i * (size[1] + gap)
        canvas.paste(strip.resize(size, Image.Resampling.NEAREST), (left, y))
        if texts:
            _write(draw, (left - margin, y + size[1] / 2), texts[i], font, "rm")
    for i, head in enumerate(heads):
        middle = left + i * step + rows[0].shape[-1] * times / 2
        _write(draw, (middle, top - 4), head, small, "ms")
    return canvas


def captioned(
    grids: Sequence[Tensor], captions: Sequence[Sequence[str]], scale: int | None = None
) -> Image:
    """Grids side by side with lines of text under each.

    Args:
        grids: uint8 of shape (C, H, W), all alike, as :func:`ddim.grid` returns.
        captions: lines, as many for each.
        scale: as :func:`pixel_scale`; None for grids that have room for their captions too.
    """
    from PIL import Image, ImageDraw

    font = _font(15)
    height, width = grids[0].shape[1:]
    margin = 16
    longest = max(font.getlength(plain(text)) for lines in captions for text in lines)
    least = max(longest, (WIDTH - margin) / len(grids) - margin)
    times = pixel_scale(width * len(grids), height, scale, math.ceil(least) * len(grids))
    shown = [picture(enlarged(one, times)).convert("RGB") for one in grids]
    width = max(shown[0].width, math.ceil(longest))
    size = margin + len(shown) * (width + margin), shown[0].height + 2 * margin + 52
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for i, (one, lines) in enumerate(zip(shown, captions, strict=True)):
        x = margin + i * (width + margin)
        canvas.paste(one, (x + (width - one.width) // 2, margin))
        for j, text in enumerate(lines):
            y, ink = margin + one.height + 8 + 21 * j, "dimgray" if j else "black"
            _write(draw, (x + width / 2, y), text, font, "ma", ink)
    return canvas


def _font(size: int) -> Any:
    """Pillow's own font; its only size where it was built without FreeType."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size=size)
    except ImportError:
        return ImageFont.load_default()


def _fitting(texts: Sequence[str], width: float) -> Any:
    """The largest font, from 13 down to 8, in which each of the texts is that narrow."""
    for size in range(13, 8, -1):
        font = _font(size)
        if all(font.getlength(plain(text)) <= width for text in texts):
            return font
    return _font(8)


def plain(text: str) -> str:
    """The text without what Pillow's font has no letters for."""
    for letter, name in (("η", "eta"), ("σ̂", "sigma-hat"), ("→", "to"), ("…", "...")):
        text = text.replace(letter, name)
    return text.encode("latin-1", "replace").decode("latin-1")


def _write(
    draw: Any, place: tuple[float, float], text: str, font: Any, anchor: str, ink: str = "black"
) -> None:
    """Text whose place is its ``anchor``, of which a font without FreeType knows nothing."""
    from PIL import ImageFont

    text = plain(text)
    if isinstance(font, ImageFont.ImageFont):
        x, y = place
        width, height = font.getlength(text), 11
        x -= {"l": 0, "m": width / 2, "r": width}[anchor[0]]
        y -= {"a": 0, "m": height / 2, "s": height}[anchor[1]]
        draw.text((x, y), text, fill=ink, font=font)
    else:
        draw.text(place, text, fill=ink, font=font, anchor=anchor)


def png(drawn: Image) -> bytes:
    """The bytes of a picture; equal pictures have equal ones."""
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def shown_as_html(images: Tensor, text: str) -> str:
    """A small grid for an object's ``_repr_html_``; nothing where it cannot be drawn."""
    try:
        return image(png(show(images)), text)
    except InputError:
        return ""
