import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ddim.base.errors import InputError
from ddim.data.pixels import from_pixels, to_pixels
from ddim.evaluate.features import extractor as features
from ddim.evaluate.features.extractor import (
    Extractor,
    Identity,
    inception_extractor,
    lenet_extractor,
)
from ddim.evaluate.features.lenet import extract, load_lenet


class StandIn(torch.nn.Module):
    """Takes what the published file takes, and says of each image what it was given."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert return_features
        assert img.dtype == torch.uint8
        assert img.shape[1] == 3
        corner = img[:, :, 0, 0].float()
        return torch.cat([corner, torch.zeros(img.shape[0], 2045)], dim=1)


@pytest.fixture
def inception(tmp_path, monkeypatch):
    """A file that has the published checksum, as far as the extractor knows."""
    path = tmp_path / "inception-2015-12-05.pt"
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(StandIn()).save(str(path))
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(features, "INCEPTION_SHA256", checksum)
    return path


def images(n, channels=1, size=28):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


class TestLeNet:
    def test_is_the_shipped_classifier_on_pixels(self):
        x = from_pixels(to_pixels(images(5)))
        found, probabilities = lenet_extractor()(x)
        expected = extract(load_lenet(), x)
        np.testing.assert_allclose(found, expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(probabilities, expected[1], rtol=1e-5, atol=1e-7)
        assert (found.dtype, probabilities.dtype) == (np.float32, np.float64)

    def test_measures_what_a_file_of_the_image_would(self):
        x = images(4) * 1.2
        saved = from_pixels(to_pixels(x))
        np.testing.assert_array_equal(lenet_extractor()(x)[0], lenet_extractor()(saved)[0])

    def test_one_of_another_folder(self, tmp_path):
        other = load_lenet()
        with torch.no_grad():
            other.head.bias[3] += 50
        save_file(other.state_dict(), tmp_path / "model.safetensors")
        x = images(3)
        found, probabilities = lenet_extractor(folder=tmp_path)(x)
        np.testing.assert_array_equal(found, lenet_extractor()(x)[0])
        assert probabilities.argmax(1).tolist() == [3, 3, 3]
        assert lenet_extractor(folder=tmp_path).identity.difference(lenet_extractor().identity)

    @pytest.mark.parametrize("contents", [None, b"", b"not tensors at all"])
    def test_a_folder_without_one(self, tmp_path, contents):
        if contents is not None:
            (tmp_path / "model.safetensors").write_bytes(contents)
        with pytest.raises(InputError, match="is no classifier that"):
            lenet_extractor(folder=tmp_path)

    def test_tensors_of_another_network(self, tmp_path):
        save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match="is no classifier that"):
            lenet_extractor(folder=tmp_path)

    def test_its_distance_is_never_called_fid(self):
        assert lenet_extractor().identity.distance == "LeNet-FD"


class TestInception:
    def test_gets_pixels_in_three_channels(self, inception):
        extractor = inception_extractor(inception)
        assert extractor.identity.distance == "FID"
        found, probabilities = extractor(torch.full((2, 1, 8, 8), 1.5))
        assert probabilities is None
        assert found.shape == (2, 2048)
        assert found[:, :4].tolist() == [[255, 255, 255, 0]] * 2
        colour = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
        assert extractor(colour)[0][0, :3].tolist() == [0, 128, 255]

    def test_refuses_other_channels(self, inception, refuses):
        with refuses("1 or 3 channels, not 4"):
            inception_extractor(inception)(images(1, 4))

    def test_refuses_another_file_without_opening_it(self, tmp_path, refuses):
        (tmp_path / "other.pt").write_bytes(b"anything")
        with refuses("not the published Inception file: its SHA-256 is"):
            inception_extractor(tmp_path / "other.pt")

    def test_refuses_a_missing_file(self, tmp_path, refuses):
        with refuses("no file .*inception-2015-12-05.pt"):
            inception_extractor(tmp_path / "gone.pt")


class TestAnyFunction:
    def test_may_be_the_users(self):
        own = Extractor(Identity("means", "none", 3), lambda x: (x.mean(dim=(2, 3)), None))
        found, probabilities = own(torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64))
        assert found.tolist() == [[0.5] * 3] * 2
        assert probabilities is None
        assert own.identity.distance == "means-FD"

    def test_a_user_cannot_call_it_fid(self):
        assert Identity("Inception", "none", 2048).distance == "Inception-FD"

    @pytest.mark.parametrize(
        ("function", "classes", "message"),
        [
            (lambda x: (x.flatten(1), None), 0, r"shape \(2, 3\), not \(2, 48\)"),
            (lambda x: (x.mean(dim=(2, 3)), None), 4, r"class probabilities \(2, 4\), not None"),
            (lambda x: (x.mean(dim=(2, 3)), x.flatten(1)), 0, "class probabilities None"),
            (lambda x: (x.mean(dim=(2, 3)) / 0, None), 0, "not finite"),
        ],
    )
    def test_must_keep_its_word(self, refuses, function, classes, message):
        with refuses(message):
            Extractor(Identity("own", "none", 3, classes), function)(images(2, 3, 4))

    def test_needs_a_name_and_features(self, refuses):
        with refuses("name"):
            Identity("", "none", 3)
        with refuses("at least 1 feature"):
            Identity("own", "none", 0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 1, 28, 28), "at least 1"),
        (torch.zeros(28, 28), "shape"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "floating"),
        (torch.full((2, 1, 28, 28), torch.nan), "finite"),
        (torch.full((2, 1, 28, 28), torch.inf), "finite"),
        (images(2).add(1).mul(127.5), "pixels/127.5-1"),
        (torch.zeros(2, 1, 32, 32), "28, 28"),
    ],
)
def test_refuses_images_that_cannot_be_measured(refuses, x, message):
    with refuses(message):
        lenet_extractor()(x)


def test_the_difference_is_named():
    one = Identity("LeNet", "none", 3, 0, "a" * 64)
    assert one.difference(one) is None
    assert "weights 'aaaaaaaaaaaa'" in one.difference(Identity("LeNet", "none", 3, 0, "b" * 64))
    assert "preprocessing" in one.difference(Identity("LeNet", "8-bit", 3, 0, "a" * 64))
