from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddim.base.errors import InputError
from ddim.data.folder import FolderData
from ddim.data.pictures import (
    decode_picture,
    on_white,
    open_picture,
    quietly,
    read_header,
    read_mask,
    suffixes,
)

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
HALF = np.repeat([[0, 0, 255, 255]], 3, axis=0).astype(np.uint8)
TURN = Image.Exif()
TURN[0x0112] = 6  # to be turned clockwise


def opened(path: Path) -> Image.Image:
    with quietly():
        return open_picture(path)


@pytest.mark.parametrize(
    ("name", "values", "white"),
    [
        ("a.png", RAMP.astype(np.uint16) * 257, None),
        ("a.tif", RAMP.astype(np.uint16) * 257, None),
        ("a.tif", RAMP.astype(">u2") * 257, None),
        ("a.pgm", RAMP.astype(np.uint16) * 257, None),
        ("a.jp2", RAMP.astype(np.uint16) * 257, None),
        ("a.tif", RAMP.astype(np.float32) / 255, None),
        ("a.tif", 65535 - RAMP.astype(np.uint16) * 257, 0),
    ],
)
def test_deep_pictures_are_scaled(tmp_path: Path, name: str, values: np.ndarray, white: int | None):
    tags = {} if white is None else {"tiffinfo": {262: white}}
    Image.fromarray(values).save(tmp_path / name, **tags)
    picture = opened(tmp_path / name)
    assert picture.mode == "L"
    np.testing.assert_allclose(np.asarray(picture).astype(int), RAMP, atol=1)


def test_deep_pictures_are_turned(tmp_path: Path):
    for name, dtype in (("a.png", np.uint16), ("a.tif", ">u2"), ("b.tif", np.float32)):
        values = RAMP / np.float32(255) if dtype == np.float32 else RAMP.astype(dtype) * 257
        Image.fromarray(values).save(tmp_path / name, exif=TURN)
        np.testing.assert_array_equal(np.asarray(opened(tmp_path / name)), np.rot90(RAMP, -1))


def test_white_of_twelve_bits(tmp_path: Path):
    """A TIFF of 12 bits, two values in three bytes, is white at 4095."""
    Image.new("I;16", (2, 1)).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        (at,) = image.tag_v2[273]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[content.index(struct.pack("<HHI", 258, 3, 1)) + 8] = 12
    content[at : at + 3] = b"\xff\xf8\x00"  # 4095, 2048
    (tmp_path / "a.tif").write_bytes(content)
    assert np.asarray(opened(tmp_path / "a.tif")).tolist() == [[255, 128]]


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg", "a.webp"])
def test_pictures_that_are_not_square_are_turned(tmp_path: Path, name: str, compression: str):
    values = np.full((8, 24), 255, np.uint8)
    values[:, :16] = 0
    options = {"compression": compression} if name == "a.tif" else {}
    Image.fromarray(values).save(tmp_path / name, exif=TURN, **options)
    found = np.asarray(opened(tmp_path / name).convert("L"))
    np.testing.assert_array_equal(found > 127, np.rot90(values, -1) > 127)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP.astype(np.int32), "integers of 32 bits or with a sign"),
        (RAMP.astype(np.float32), r"floating point that spans 0 to 252.*rescale"),
        (RAMP / np.float32(255) - 0.5, r"floating point that spans -0\.5"),
        (np.full((4, 4), np.nan, np.float32), "floating point that spans nan"),
    ],
)
def test_pictures_whose_white_is_not_known(tmp_path: Path, values: np.ndarray, message: str):
    Image.fromarray(values).save(tmp_path / "deep.tif")
    with pytest.raises(InputError, match=rf"deep\.tif .*{message}"):
        opened(tmp_path / "deep.tif")


def test_modes_become_grey_or_colours(tmp_path: Path):
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    for mode, name, expected in (
        ("1", "a.png", "L"),
        ("CMYK", "a.tif", "RGB"),
        ("YCbCr", "a.tif", "RGB"),
        ("P", "a.gif", "RGB"),
        ("LA", "a.png", "L"),
        ("RGBA", "a.png", "RGB"),
        ("RGBA", "a.webp", "RGB"),
    ):
        colours.convert(mode).save(tmp_path / name)
        picture = opened(tmp_path / name)
        # An alpha channel that is opaque throughout is none.
        assert picture.mode == expected or (mode == "LA" and picture.mode == "RGB")
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "a.png")
    assert np.asarray(opened(tmp_path / "a.png")).tolist() == [[0, 255]]
    Image.new("CMYK", (1, 1), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = opened(tmp_path / "a.jpg").getpixel((0, 0))
    assert red > 250 and green < 5 and blue < 5


def test_transparency_in_its_forms(tmp_path: Path):
    """Alpha, a transparent colour and a palette with alphas all end on white."""
    black = np.zeros((1, 2), np.uint8)
    black[0, 1] = 7
    cases = {
        "alpha.png": (np.dstack([black] * 3 + [black > 0]) * 255, {}),
        "colour.png": (black, {"transparency": 0}),
        "deep.png": (black.astype(np.uint16) * 257, {"transparency": 0}),
        "palette.png": (Image.fromarray(black).convert("P"), {"transparency": 0}),
        "a.gif": (Image.fromarray(black).convert("P"), {"transparency": 0}),
    }
    for name, (pixels, options) in cases.items():
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(tmp_path / name, **options)
        picture = opened(tmp_path / name)
        assert picture.mode in ("LA", "RGBA"), name
        assert on_white(picture).getpixel((0, 0)) == (255, 255, 255), name
        assert on_white(picture).getpixel((1, 0)) != (255, 255, 255), name
        with quietly():
            assert read_header(tmp_path / name).alpha


def test_more_pixels_than_pillow_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("L", (40, 30)).save(tmp_path / "huge.png")
    for most in (1000, 500):  # of which Pillow warns, and which it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(InputError, match=rf"huge\.png has more pixels than the {most} that"):
            FolderData("f", tmp_path)
        with pytest.raises(InputError, match=r"huge\.png has more pixels"):
            read_mask(tmp_path / "huge.png")


def test_a_bomb_takes_no_memory(tmp_path: Path):
    """A header of 60,000 x 60,000 pixels is refused before there is room for them."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "BMP")
    content = bytearray(buffer.getvalue())
    content[18:26] = (60_000).to_bytes(4, "little") * 2
    (tmp_path / "bomb.bmp").write_bytes(content)
    with pytest.raises(InputError, match=r"bomb\.bmp has more pixels"):
        FolderData("f", tmp_path)


def test_nothing_is_run_for_a_picture(tmp_path: Path):
    """Pillow would call Ghostscript for what is PostScript inside, whatever its name."""
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(InputError, match=r"a\.png cannot be read as an image: it is of no kind"):
        opened(tmp_path / "a.png")
    assert not {".eps", ".ps", ".mpg", ".h5", ".pdf", ".wmf"} & suffixes()
    assert {".tif", ".gif", ".mpo", ".jp2", ".png"} < suffixes()


def test_no_file_and_no_picture(tmp_path: Path):
    with pytest.raises(InputError, match=r"there is no file .*a\.png"):
        opened(tmp_path / "a.png")
    with pytest.raises(InputError, match="is no file"):
        opened(tmp_path)


@pytest.mark.parametrize("values", [HALF, HALF // 255, HALF.astype(np.uint16) * 257])
def test_masks_are_true_where_white(tmp_path: Path, values: np.ndarray):
    Image.fromarray(values).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == (HALF > 0).tolist()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.uint8, bool])
def test_masks_of_0_and_1_in_any_depth(tmp_path: Path, dtype: type):
    Image.fromarray((HALF // 255).astype(dtype)).save(tmp_path / "m.tif", exif=TURN)
    assert read_mask(tmp_path / "m.tif").tolist() == np.rot90(HALF > 0, -1).tolist()


def test_a_mask_of_0_and_1_in_a_palette(tmp_path: Path):
    mask = Image.fromarray(HALF // 255)
    mask.putpalette([0, 0, 0, 255, 255, 255])
    mask.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == (HALF > 0).tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (HALF * 0, r"white nowhere \(its values span 0 to 0\)"),
        (HALF * 0 + 255, r"white everywhere \(its values span 255 to 255\)"),
        (HALF * 0 + 1, "white everywhere"),
        (HALF // 127, r"white nowhere \(its values span 0 to 2\)"),
        (np.dstack([HALF, HALF]), "is transparent in parts"),
        (np.dstack([HALF, HALF, HALF, HALF // 2]), "is transparent in parts"),
    ],
)
def test_masks_that_do_not_say_what_they_select(tmp_path: Path, values: np.ndarray, message: str):
    Image.fromarray(values).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=rf"the mask .*m\.png .*{message}"):
        read_mask(tmp_path / "m.png")


def test_a_mask_of_several_frames(tmp_path: Path):
    frames = [Image.fromarray(HALF), Image.fromarray(255 - HALF)]
    frames[0].save(tmp_path / "m.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="several frames"):
        read_mask(tmp_path / "m.gif")


def test_an_opaque_alpha_channel_of_a_mask_is_none(tmp_path: Path):
    Image.fromarray(np.dstack([HALF, HALF * 0 + 255])).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == (HALF > 0).tolist()


def test_greys_of_a_mask_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    Image.fromarray(HALF).save(tmp_path / "m.png")
    read_mask(tmp_path / "m.png")
    assert not caplog.messages
    soft = np.array([[0, 100, 150, 255]], np.uint8)
    Image.fromarray(soft).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[False, False, True, True]]
    assert "has greys: what is lighter than half is painted" in caplog.text


FORMATS = [
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "TIFF",
    "WEBP",
    "TGA",
    "PPM",
    "ICO",
    "PCX",
    "SGI",
    "JPEG2000",
]


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_bytes_are_refused_by_name(tmp_path: Path, kind: str):
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([RAMP] * 3)).save(buffer, kind)
    rng, path = np.random.default_rng(0), tmp_path / "damaged"
    for _ in range(25):
        content = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        at = rng.integers(0, len(content), 4)
        content[at] = rng.integers(0, 256, 4)
        path.write_bytes(content[: rng.integers(1, len(content) + 1)].tobytes())
        with warnings.catch_warnings(), quietly():
            try:
                open_picture(path)
            except InputError as error:
                assert "damaged" in str(error)


def content_of(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_was_sent_is_what_its_file_is(tmp_path, kind):
    content = content_of(Image.linear_gradient("L").resize((40, 20)).convert("RGB"), kind)
    (tmp_path / "one").write_bytes(content)
    with quietly():
        sent, kept = decode_picture(content), open_picture(tmp_path / "one")
    assert sent.mode == kept.mode and sent.tobytes() == kept.tobytes()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "PPM"])
def test_other_formats_are_not_decoded_for_strangers(refuses, kind):
    with quietly(), refuses("drawn.bin cannot be read as an image: it is no PNG, JPEG or WebP"):
        decode_picture(content_of(Image.new("RGB", (4, 4)), kind), "drawn.bin")


def test_a_picture_that_was_sent_is_measured_before_it_is_decoded(refuses, monkeypatch):
    content = content_of(Image.new("L", (50, 40)), "PNG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    with quietly(), refuses("has 50 x 40 pixels, more than 1,999: make it smaller"):
        decode_picture(content, most=1999)
