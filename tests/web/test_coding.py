from __future__ import annotations

import base64
import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from asking import images, sent
from ddim.data.pixels import from_pixels, grid, to_pixels
from ddim.data.sheet import labelled
from ddim.latents.coding import encode
from ddim.latents.slerp import interpolate
from ddim.model.drawing import sample
from ddim.model.opening import load


def drawn(channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, 8, 8), generator=generator, dtype=torch.uint8)


def picture(pixels):
    """As PIL makes one of bytes (C, H, W)."""
    array = pixels.permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[2] == 1 else array


@pytest.mark.parametrize("codec", ["obelm", "edict", "bdia", "ddim"])
@pytest.mark.parametrize("name", ["tiny", "colours"])
def test_an_image_comes_back_and_the_ways_are_exact(page, ways, name, codec):
    pixels = drawn(3 if name == "colours" else 1)
    body = {"model": name, "image": {"pixels": sent(pixels)}, "codec": codec, "steps": 4}
    done = page.done("encode", body)
    assert torch.equal(images(done["given"])[0], pixels)
    assert done["pixels_equal"] == (codec != "ddim") == (done["difference"] < 1e-3)
    assert done["steps"] == 4 and done["std"] > 0
    back = images(done["decoded"])
    made = ways(done["ways"], "decoded.png", {"drawn.png": picture(pixels)})
    assert len(made) == 2
    for one in made:
        assert np.array_equal(one, picture(grid(back)))


@pytest.mark.parametrize("codec", ["obelm", "ddim"])
def test_an_image_of_a_seed(page, folders, ways, codec):
    body = {"model": "classes", "seed": 5, "image": 2, "label": 1, "codec": codec, "steps": 4}
    done = page.done("draw-latents", body)
    if codec == "ddim":
        exact = sample(load(folders["classes"]), 3, steps=4, seed=5, labels=1, batch_size=1)[2:]
        assert torch.equal(images(done["decoded"]), to_pixels(exact))
    else:
        exact = sample(load(folders["classes"]), 3, steps=4, seed=5, labels=1)[2:]
        assert torch.equal(images(done["given"]), to_pixels(exact))
        assert done["pixels_equal"]
    command, python = done["ways"]["command"], done["ways"]["python"]
    if codec == "ddim":
        (grown,) = ways({"command": command}, "samples.png")
        assert np.array_equal(grown, picture(grid(to_pixels(sampled(folders)))))
    else:
        (one,) = ways({"command": command}, "decoded.png")
        assert np.array_equal(one, picture(grid(images(done["decoded"]))))
    (two,) = ways({"python": python}, "decoded.png")
    assert np.array_equal(two, picture(grid(images(done["decoded"]))))


def sampled(folders):
    return sample(load(folders["classes"]), 3, steps=4, seed=5, labels=1, batch_size=1)


@pytest.fixture(scope="module")
def corners(page):
    """The ids of four latents: two that were sent, and two of a seed."""
    ids = [
        page.done(
            "encode", {"model": "tiny", "image": {"pixels": sent(drawn(seed=i))}, "steps": 4}
        )["latent"]
        for i in range(2)
    ]
    return ids + [
        page.done("draw-latents", {"model": "tiny", "image": i, "steps": 4})["latent"]
        for i in range(2)
    ]


def test_a_square_is_what_interpolate_makes(page, folders, ways, corners):
    model = load(folders["tiny"])
    seeds = from_pixels(to_pixels(sample(model, 2, steps=4)))
    first = from_pixels(torch.stack([drawn(seed=i) for i in range(2)]))
    latents = encode(model, torch.cat([first, seeds]), steps=4, batch_size=1)
    body = {"model": "tiny", "latents": corners}
    at_corners = [
        images(page.done("decode", {**body, "shares": [across, down]})["images"])
        for down in (0, 1)
        for across in (0, 1)
    ]
    given = torch.cat([first, seeds])
    assert torch.equal(torch.cat(at_corners), to_pixels(given)), "exact: obelm"
    done = page.done("decode", {**body, "shares": [0.25, 0.75]})
    between = interpolate(latents, (0, 1, 2, 3), [0.25, 0.75])[2]
    from ddim.latents.coding import decode

    exact = to_pixels(decode(model, between))
    assert torch.equal(images(done["images"]), exact)
    files = {f"corner-{i + 1}.png": picture(drawn(seed=i)) for i in range(2)}
    assert done["ways"]["command"] is None
    (made,) = ways(done["ways"], "decoded.png", files)
    assert np.array_equal(made, picture(exact[0]))


def test_a_line_of_drawn_images_has_a_command(page, ways):
    ids = [
        page.done("draw-latents", {"model": "tiny", "image": i, "codec": "ddim", "steps": 4})
        for i in (0, 2)
    ]
    body = {"model": "tiny", "latents": [one["latent"] for one in ids], "frames": 5}
    done = page.done("decode", body)
    line = images(done["images"])
    assert torch.equal(line[:1], images(ids[0]["decoded"]))
    assert torch.equal(line[4:], images(ids[1]["decoded"]))
    said = done["ways"]
    (made,) = ways({"command": said["command"]}, "interpolation.png")
    heads = ["0%", "25%", "50%", "75%", "100%"]
    assert np.array_equal(made, np.array(labelled([line], ["#0 to #2"], heads, 1)))
    (made,) = ways({"python": said["python"]}, "decoded.png")
    assert np.array_equal(made, picture(grid(line, 5)))


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"latents": ["0" * 32], "shares": []}, 404, "encode the image again"),
        ({"latents": []}, 400, "latents are 1, 2 or 4"),
        ({"shares": [0.5]}, 400, "take 2 shares"),
        ({"shares": [0.5, 1.5]}, 400, "from 0 to 1"),
        ({"model": "colours"}, 404, "encode the image again"),
        ({"shares": [], "frames": 3}, 400, "between 2 latents"),
    ],
)
def test_refused_places(page, corners, change, status, text):
    body = {"model": "tiny", "latents": corners, "shares": [0.5, 0.5], **change}
    answer = page.post("/api/decode", body)
    assert answer.status_code == status and text in answer.json()["error"]["text"]


def test_latents_of_two_codecs_do_not_mix(page, corners):
    other = page.done("draw-latents", {"model": "tiny", "codec": "ddim", "steps": 4})["latent"]
    body = {"model": "tiny", "latents": [corners[0], other], "shares": [0.5]}
    answer = page.post("/api/decode", body)
    assert answer.status_code == 400 and "of one codec" in answer.json()["error"]["text"]


# -- pictures of any kind ----------------------------------------------------------------------


def file_of(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(mode, size=(40, 20)):
    image = Image.linear_gradient("L").resize(size)
    return image.convert(mode)


KINDS = {
    "grey": file_of(ramp("L")),
    "colour": file_of(ramp("RGB"), "JPEG"),
    "webp": file_of(ramp("RGBA"), "WEBP"),
    "cmyk": file_of(ramp("CMYK"), "JPEG"),
    "palette": file_of(ramp("P")),
    "two": file_of(ramp("1")),
    "deep": file_of(Image.fromarray(np.full((9, 9), 30000, np.uint16))),
    "animated": file_of(
        ramp("RGB"), "WEBP", save_all=True, append_images=[ramp("RGB").rotate(90)], duration=50
    ),
    "one": file_of(Image.new("L", (1, 1), 77)),
    "thin": file_of(ramp("L", (1, 500))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tiny", "colours"])
def test_a_picture_of_any_kind_is_cut_to_the_model(page, name, kind):
    content = base64.b64encode(KINDS[kind]).decode()
    done = page.done("encode", {"model": name, "image": {"png": content}, "steps": 2})
    given = images(done["given"])
    assert given.shape == (1, 3 if name == "colours" else 1, 8, 8)
    if kind == "grey":
        with Image.open(io.BytesIO(KINDS[kind])) as image:
            square = image.crop((10, 0, 30, 20)).resize((8, 8), Image.Resampling.BICUBIC)
        assert np.array_equal(given[0, 0].numpy(), np.array(square))


def test_a_turned_picture_stands_upright(page):
    image = Image.new("L", (16, 16))
    image.paste(255, (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3
    content = base64.b64encode(file_of(image, "JPEG", exif=exif, quality=100)).decode()
    given = page.done("encode", {"model": "tiny", "image": {"png": content}, "steps": 2})["given"]
    pixels = images(given)[0, 0]
    assert pixels[0].max() < 9 and pixels[-1].min() > 246


def bomb():
    """A PNG whose header says 60,000 by 60,000 pixels."""
    content = bytearray(file_of(Image.new("L", (1, 1))))
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "no PNG, JPEG or WebP"),
        (b"hello", "no PNG, JPEG or WebP"),
        (file_of(ramp("RGB"), "GIF"), "no PNG, JPEG or WebP"),
        (file_of(ramp("RGB"), "TIFF"), "no PNG, JPEG or WebP"),
        (file_of(ramp("RGB"), "BMP"), "no PNG, JPEG or WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no PNG, JPEG or WebP"),
        (file_of(ramp("L", (3000, 2000))), "6000000|3000 x 2000 pixels, more than 4,000,000"),
        (bomb(), "pixels"),
        (file_of(ramp("L"))[:60], "cannot be read"),
        (file_of(ramp("RGB"), "JPEG")[:300], "cannot be read"),
        (file_of(ramp("RGB"), "WEBP")[:40], "cannot be read|no PNG"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(page, content, text):
    body = {"model": "tiny", "image": {"png": base64.b64encode(content).decode()}}
    answer = page.post("/api/encode", body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and "\n" not in error["text"]
    assert any(part in error["text"] for part in text.split("|")), error


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ({}, "give one of them"),
        ({"png": "", "pixels": ""}, "give one of them"),
        ({"png": "?"}, "not valid base64"),
        ({"pixels": "AAAA"}, "8 x 8 bytes, not 3"),
        ({"png": "A" * 1_400_000}, "1,050,000 bytes, more than 1,000,000"),
    ],
)
def test_uploads_are_bounded(page, image, text):
    answer = page.post("/api/encode", {"model": "tiny", "image": image})
    assert answer.status_code == 400 and text in answer.json()["error"]["text"]


def test_a_class_conditional_model_needs_a_class(page):
    body = {"model": "classes", "image": {"pixels": sent(drawn())}, "steps": 2}
    answer = page.post("/api/encode", body)
    assert answer.status_code == 400 and "give labels" in answer.json()["error"]["text"]
    assert page.done("encode", {**body, "label": 2})["pixels_equal"]
