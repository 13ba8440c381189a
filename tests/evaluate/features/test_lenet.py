import hashlib

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ddim.base.errors import InputError
from ddim.evaluate.distances.digits import CONFIDENCE, class_shares, confident_share
from ddim.evaluate.distances.frechet import FeatureStatistics
from ddim.evaluate.features.lenet import (
    FEATURES,
    LENET_FOLDER,
    LeNet,
    extract,
    lenet_config,
    load_lenet,
)


@pytest.fixture(scope="module")
def seen(digits):
    """The features and the probabilities of the real test digits."""
    return extract(load_lenet(), digits[0])


def test_the_last_layer_reads_the_features():
    model, x = load_lenet(), torch.rand(3, 1, 28, 28) * 2 - 1
    features = model.features(x)
    assert features.shape == (3, FEATURES)
    assert torch.equal(model.head(features), model(x))
    assert model(x).shape == (3, 10)


def test_what_ships_is_small_and_frozen():
    model = load_lenet()
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    count = sum(p.numel() for p in model.parameters())
    assert count == lenet_config()["parameters"] <= 400_000
    assert sum(path.stat().st_size for path in LENET_FOLDER.iterdir()) < 1.6e6


def test_the_configuration_names_these_weights():
    weights = (LENET_FOLDER / "model.safetensors").read_bytes()
    assert lenet_config()["model_sha256"] == hashlib.sha256(weights).hexdigest()


def test_extract_is_the_forward_pass_in_parts():
    model, x = load_lenet(), torch.rand(5, 1, 28, 28, dtype=torch.float64) * 2 - 1
    features, probabilities = extract(model, x, batch=2)
    torch.testing.assert_close(features, model.features(x.float()), rtol=1e-5, atol=1e-5)
    expected = model(x.float()).double().softmax(dim=1)
    torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "batch", "message"),
    [
        ((2, 3, 28, 28), 1, "shape"),
        ((2, 1, 32, 32), 1, "shape"),
        ((28, 28), 28, "shape"),
        ((0, 1, 28, 28), 1, "no images"),
        ((2, 1, 28, 28), 0, "batch"),
    ],
)
def test_refuses_other_images(shape, batch, message):
    with pytest.raises(InputError, match=message):
        extract(LeNet().eval(), torch.zeros(shape), batch=batch)


def test_classifies_the_real_test_digits(digits, seen):
    accuracy = (seen[1].argmax(dim=1) == digits[1]).double().mean().item()
    facts = lenet_config()["test"]
    assert accuracy >= 0.993
    # One image may change sides by rounding on another machine.
    assert accuracy == pytest.approx(facts["accuracy"], abs=2e-4)
    share = confident_share(seen[1])
    assert share >= 0.98
    assert share == pytest.approx(facts["confident_share"], abs=2e-4)
    assert class_shares(seen[1]) == pytest.approx(facts["class_shares"], abs=2e-4)


def test_the_shipped_statistics_of_the_test_digits_are_of_these_weights(seen):
    shipped = load_file(LENET_FOLDER / "statistics.safetensors")
    statistics = FeatureStatistics(FEATURES)
    statistics.update(seen[0].numpy())
    for name, got in (("test.mean", statistics.mean), ("test.cov", statistics.cov)):
        assert shipped[name].dtype == np.float64
        error = np.linalg.norm(got - shipped[name]) / np.linalg.norm(shipped[name])
        assert error < 1e-6


def test_shares_count_rows():
    probabilities = torch.zeros(4, 10, dtype=torch.float64)
    probabilities[0, 3] = probabilities[1, 3] = CONFIDENCE
    probabilities[2, 9] = 0.5
    probabilities[3, 0] = 1.0
    assert confident_share(probabilities) == 0.75
    assert class_shares(probabilities) == (0.25, 0, 0, 0.5, 0, 0, 0, 0, 0, 0.25)
