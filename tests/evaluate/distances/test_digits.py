import dataclasses
import shutil

import pytest
import torch

from ddim.base.errors import InputError, RunError
from ddim.evaluate.distances import digits as module
from ddim.evaluate.distances.digits import report_digits
from ddim.evaluate.features.lenet import LENET_FOLDER


def test_real_test_digits_set_the_standard(digits):
    report = report_digits(digits[0])
    assert report.count == 10_000
    assert report.relative_share == pytest.approx(1, abs=2e-4)
    assert report.lenet_fd == pytest.approx(report.floor, rel=1e-4)
    assert report.floor > 0
    assert sum(report.class_shares) == pytest.approx(1)


def with_noise(real, scale):
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    return report_digits((real + scale * noise).clamp(-1, 1))


def test_worse_digits_measure_worse(digits):
    reports = [with_noise(digits[0][::5], scale) for scale in (0.0, 0.1, 0.3, 0.5)]
    distances = [report.lenet_fd for report in reports]
    assert distances == sorted(distances)
    assert distances[1] > 2 * distances[0]
    shares = [report.relative_share for report in reports]
    assert shares == sorted(shares, reverse=True)
    assert shares[2] < 0.95


def test_noise_is_confidently_one_digit_and_far_away(digits):
    report = with_noise(torch.zeros_like(digits[0][:1000]), 1.0)
    assert report.relative_share > 0.95
    assert max(report.class_shares) > 0.95
    assert report.lenet_fd > 1000 * report.floor


def test_the_batch_does_not_matter():
    images = torch.rand(7, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    one, other = report_digits(images, batch=3), report_digits(images)
    assert one.class_shares == other.class_shares
    assert one.lenet_fd == pytest.approx(other.lenet_fd, rel=1e-4)


def test_a_report_becomes_json_as_it_is():
    report = dataclasses.asdict(report_digits(torch.zeros(2, 1, 28, 28)))
    assert list(report) == [
        "count",
        "confident_share",
        "relative_share",
        "class_shares",
        "lenet_fd",
        "floor",
    ]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 1, 28, 28), "at least 2"),
        (torch.zeros(0, 1, 28, 28), "at least 2"),
        (torch.full((2, 1, 28, 28), 255.0), "clamp"),
        (torch.full((2, 1, 28, 28), torch.nan), "finite"),
        (torch.zeros(2, 3, 28, 28), "shape"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "floating"),
    ],
)
def test_refuses_what_cannot_be_measured(images, message):
    with pytest.raises(InputError, match=message):
        report_digits(images)


def test_refuses_statistics_of_other_weights(tmp_path, monkeypatch):
    shutil.copytree(LENET_FOLDER, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "model.safetensors").open("ab") as file:
        file.write(b" ")
    monkeypatch.setattr(module, "LENET_FOLDER", tmp_path)
    module._reference.cache_clear()
    with pytest.raises(RunError, match="train the classifier again"):
        module._reference()
