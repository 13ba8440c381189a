"""Networks that break the contract, and small calls: handled, or refused by name."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import ddim
from ddim.base.errors import RunError
from ddim.denoisers.clipping import Clipping
from ddim.model.candidates import Candidate
from ddim.model.drawing import default_batch_size

LINEAR = ddim.Schedule.linear(40, scaled=True)
SHAPE = (1, 4, 4)
IMAGES = 0.3 * torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0))
DOUBLE = IMAGES[:3].double()


class Net(nn.Module):
    """Any function as a network, with a weight or without."""

    def __init__(self, f, weight=True):
        super().__init__()
        self.f = f
        if weight:
            self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, t, **more):
        return self.f(x, t, **more)


def model(f, target="eps", weight=True, **options):
    return ddim.Model(Net(f, weight), LINEAR, target, SHAPE, **options)


def plain(x, t):
    return 0.4 * x.tanh()


def in_place(x, t):
    return x.tanh_().mul_(0.4)


def buffered():
    """A network that returns the same memory every time."""
    buffer = torch.zeros(16, *SHAPE)
    return lambda x, t: buffer[: len(x)].copy_(plain(x, t))


def doors(f, **options):
    """What sampling, encoding, checks and calibration say of a network."""
    made = model(f, **options)
    latents = ddim.encode(made, IMAGES[:2], steps=4)
    found = ddim.calibrate(made, 2, latents=1, moves=0, weights=False)
    return (
        ddim.sample(made, 3, "plms:order=4", steps=6),
        ddim.sample(made, 3, "ddpm", steps=6),
        latents.tensors[0],
        ddim.decode(made, latents),
        torch.tensor([check.missed for check in ddim.check_predictions(made, IMAGES)]),
        torch.tensor(found.errors["calibrated"]),
    )


@pytest.mark.parametrize(
    ("f", "options"),
    [
        (in_place, {}),
        (buffered(), {}),
        (lambda x, t: (plain(x, t), None), {}),
        (lambda x, t: SimpleNamespace(sample=in_place(x, t)), {}),
        (plain, {"weight": False}),
        (lambda x, t: plain(x, t.mul_(0)), {}),
        (lambda x, t: 0.8 * (0.5 * in_place(x, t) / 0.4).tanh().atanh(), {"time": "fraction"}),
    ],
    ids=["in place", "one buffer", "tuple", "sample", "no weights", "times", "adapted"],
)
def test_networks_of_every_manner_are_their_plain_twins(f, options):
    for found, expected in zip(doors(f, **options), doors(plain), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("target", ["v", "flow", "eps"])
def test_in_place_under_another_range(target):
    """Adapted networks need the state again, after the network has seen it."""
    images = [
        ddim.sample(model(f, target, data_range=(0.0, 2.0)), 2, steps=5) for f in (in_place, plain)
    ]
    assert torch.equal(*images)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x, t: x[:, :, :3], "returned .* for a state of"),
        (lambda x, t: x.repeat(1, 3, 1, 1), "returned .* for a state of"),
        (lambda x, t: x.mean(), "returned .* for a state of"),
        (lambda x, t: {"x": x}, "returned a dict"),
        (lambda x, t: x > 0, "returned torch.bool"),
        (lambda x, t: torch.ones(1, 1) @ t[:, None], "times of torch.int64.*time_dtype"),
        (lambda x: x, "positional.*labels_as"),
    ],
)
def test_other_breaches_are_named_at_every_door(f, message, refuses):
    made = model(f)
    for call in (
        lambda: ddim.sample(made, 2, steps=2),
        lambda: ddim.encode(made, IMAGES, steps=2),
        lambda: ddim.encode(made, IMAGES, steps=2, codec="implicit"),
        lambda: ddim.check_predictions(made, IMAGES),
        lambda: ddim.calibrate(made, 2, latents=1, moves=0),
    ):
        with refuses(message):
            call()
    with refuses("fails under every candidate"):
        ddim.fit_conventions(made.net, IMAGES, T=40, quiet=True)


def test_conditions_changed_in_place_are_refused(refuses):
    made = model(lambda x, t, c: x * c.mul_(0.5).view(-1, 1, 1, 1))
    with refuses("changes its labels, conditions or arguments in place"):
        ddim.sample(made, 2, steps=2, condition={"c": torch.ones(2)})


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize(
    "options",
    [
        {"clip": True},
        {"method": "dpmpp:order=2", "clip": True},
        {"clipping": Clipping("threshold", 2.0)},
        {"images": IMAGES[:2], "mask": (torch.arange(4) < 2).expand(SHAPE)},
    ],
    ids=["clip", "multistep", "threshold", "inpainting"],
)
@pytest.mark.parametrize("when", [4, 15, 39])
def test_nothing_hides_what_is_not_finite(value, options, when):
    """At one pixel of one image, at one step; whatever the sampler makes of it later."""

    def fails(x, t):
        bad = torch.zeros_like(x)
        bad[0, 0, 1, 3] = value
        return torch.where(t.view(-1, 1, 1, 1) == when, bad, 0.1)

    given = dict(options)
    made = model(fails, "x0", clipping=given.pop("clipping", Clipping()))
    with pytest.raises(RunError, match="not finite"):
        ddim.sample(made, 2, nodes=(40, 16, 5, 0), **given)


class Restless(nn.Module):
    """Dropout as a function, and a mode that a method reads."""

    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(1))

    def forward(self, x, t):
        if self.function:
            return nn.functional.dropout(x, 0.5, self.training)
        return self.scaled(x)

    def scaled(self, x):
        return 3 * x if self.training else 0.5 * x


@pytest.mark.parametrize("function", [True, False])
def test_training_mode_after_wrapping_is_refused(function, refuses):
    made = ddim.Model(Restless(function), LINEAR, "eps", SHAPE)
    right = ddim.sample(made, 2, steps=2)
    made.net.train()
    for call in (
        lambda: ddim.sample(made, 2, steps=2),
        lambda: ddim.check_predictions(made, IMAGES),
        lambda: ddim.calibrate(made, 2, latents=1, moves=0),
    ):
        with refuses("in training mode, where Restless"):
            call()
    made.net.eval()
    assert torch.equal(ddim.sample(made, 2, steps=2), right)


# -- fitting: times of either kind, several T, vectors ---------------------------------------------


class Known(nn.Module):
    """The exact ε of two Gaussians, at a whole time that is looked up or one that is multiplied."""

    def __init__(self, schedule, kind):
        super().__init__()
        tables = torch.tensor(np.array([schedule.alpha[1:], schedule.sigma[1:]]))
        self.table, self.kind, self.weight = tables.float(), kind, nn.Parameter(torch.ones(1))

    def forward(self, x, t):
        if self.kind == "float":
            t = nn.functional.linear(t[:, None], torch.ones(1, 1))[:, 0].long()
        shape = (-1, *(1,) * (x.ndim - 1))
        a, s = (part[t].view(shape) for part in self.table)
        variance = a**2 * 0.01 + s**2
        mean = 0.6 * (0.6 * a * x / variance).flatten(1).sum(1).view(shape).tanh()
        return s * (x - a * mean) / variance


def pairs(*shape):
    generator = torch.Generator().manual_seed(1)
    sign = torch.randint(2, (48, *(1,) * len(shape)), generator=generator) * 1.2 - 0.6
    return sign + 0.1 * torch.randn(48, *shape, generator=generator)


@pytest.mark.parametrize("kind", ["whole", "float"])
@pytest.mark.parametrize("shape", [(6,), (1, 12), (1, 2, 2, 2)], ids=str)
def test_fitting_finds_t_for_anything(kind, shape):
    net = Known(ddim.Schedule.cosine(60), kind)
    found = ddim.fit_conventions(net, pairs(*shape), T=[30, 60, 120], quiet=True)
    assert (found.target.value, found.time, found.schedule.T) == ("eps", "index", 60)
    assert found.schedule.spec["kind"] == "cosine"
    assert found.time_dtype is (torch.float32 if kind == "float" else None)
    assert ddim.sample(found, 4, steps=5).shape == (4, *shape)


def test_fitting_a_network_that_spoils_its_state():
    class Spoiling(Known):
        def forward(self, x, t):
            out = super().forward(x, t)
            x.zero_()
            return out

    net = Spoiling(ddim.Schedule.cosine(60), "whole")
    found = ddim.fit_conventions(net, pairs(1, 3, 3), T=60, quiet=True)
    assert (found.target.value, found.schedule.spec["kind"]) == ("eps", "cosine")


def test_the_best_scale_is_taken_of_noise_that_is_a_little_too_small():
    weak = Candidate.__new__(Candidate)
    weak.alpha, weak.sigma, weak.spread = torch.tensor([0.6]), torch.tensor([0.8]), 0.25
    factor = 1 + (0.8 / 0.6) ** 2 / 0.25
    target = ddim.Target.EPS
    for scale, best in ((0.8, 0.0), (0.3, None), (1.3, None)):
        error = factor * (1 - scale) ** 2
        weak.measured = {target: torch.tensor([[[error, scale, scale**2]]])}
        expected = error if best is None else best
        assert weak.error_at_scale(target) == pytest.approx(expected, abs=1e-5)


# -- small calls -----------------------------------------------------------------------------------


def test_numbers_of_every_kind_are_taken():
    made = model(plain)
    right = ddim.sample(made, 3, steps=2, seed=7)
    for n in (3.0, np.int64(3), torch.tensor(3), np.array(3), torch.tensor([3.0])):
        for seed in (7.0, np.uint8(7), torch.tensor(7)):
            assert torch.equal(ddim.sample(made, n, steps=2, seed=seed, batch_size=8.0), right)
    for scale in (np.float32(2.5), torch.tensor(2.5)):
        assert ddim.Condition(guidance=scale).guidance == 2.5


@pytest.mark.parametrize("wrong", [2.5, "3", None, True, torch.ones(2), float("nan"), 1j])
def test_other_numbers_are_refused(wrong, refuses):
    made = model(plain)
    with refuses("n is a whole number"):
        ddim.sample(made, wrong, steps=2)
    with refuses("the seed is a whole number"):
        ddim.sample(made, 2, steps=2, seed=wrong)
    if wrong is not None:
        with refuses("the batch size is a whole number"):
            ddim.sample(made, 2, steps=2, batch_size=wrong)


def test_arrays_and_double_precision_are_taken():
    made, single = model(plain), DOUBLE.float()
    mask = np.arange(4) < 2
    for given in (DOUBLE, DOUBLE.numpy(), single.numpy(), DOUBLE.numpy()[:, ::-1][:, ::-1]):
        for options in ({"strength": 0.5}, {"mask": mask}, {"mask": torch.from_numpy(mask)}):
            found = ddim.sample(made, 3, steps=4, images=given, **options)
            right = {**options, "mask": torch.from_numpy(mask)} if "mask" in options else options
            expected = ddim.sample(made, 3, steps=4, images=single, **right)
            assert torch.allclose(found, expected, atol=1e-6)
        latents = ddim.encode(made, given, steps=4)
        assert latents.dtype is torch.float32
        assert torch.equal(latents.tensors[0], ddim.encode(made, single, steps=4).tensors[0])
        assert ddim.check_predictions(made, given)[0].missed > 0
        start = ddim.sample(made, 3, steps=4, noise=given)
        assert torch.allclose(start, ddim.sample(made, 3, steps=4, noise=single), atol=1e-6)
    named = model(lambda x, t, c: x * c.view(-1, 1, 1, 1))
    arrays = ddim.sample(named, 2, steps=2, condition={"c": np.ones(2, np.float32)})
    assert torch.equal(arrays, ddim.sample(named, 2, steps=2, condition={"c": torch.ones(2)}))


def test_bytes_are_no_images(refuses):
    made = model(plain)
    for given in (127.5 * (DOUBLE + 1), (127.5 * (DOUBLE + 1)).numpy()):
        for call in (
            lambda given=given: ddim.sample(made, 3, images=given, strength=0.5),
            lambda given=given: ddim.sample(made, 3, images=given, mask=torch.arange(4) < 2),
            lambda given=given: ddim.encode(made, given),
            lambda given=given: ddim.check_predictions(made, given),
        ):
            with refuses(r"in \[-1, 1\]; these are from .*from_pixels"):
                call()
    with refuses("torch.uint8: ddim.from_pixels makes them of bytes"):
        ddim.encode(made, torch.zeros(1, *SHAPE, dtype=torch.uint8))
    with refuses("not a list"):
        ddim.encode(made, [[0.0]])


def test_a_vector_may_be_anything():
    points = ddim.Model(Net(plain), LINEAR, "eps", (2,))
    far = torch.tensor([[3.0, 40.0]])
    assert torch.allclose(ddim.decode(points, ddim.encode(points, far, steps=5)), far, atol=1e-3)


@pytest.mark.parametrize(("value", "what"), [(True, "everything"), (False, "nothing")])
def test_masks_without_an_edge_are_refused(value, what, refuses):
    mask = torch.full(SHAPE, value)
    with refuses(f"the mask covers {what}"):
        ddim.sample(model(plain), 2, steps=2, images=IMAGES[:2], mask=mask)


def test_vectors_go_together_and_images_as_ever():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [default_batch_size(shape, cpu) for shape in ((1, 28, 28), (4, 100), (3, 9, 9, 9))] == [
        8
    ] * 3
    assert default_batch_size((2,), cpu) == default_batch_size((2,), cuda) == 512
    assert default_batch_size((10**6,), cpu) == 8


def test_many_points_cost_little_more_than_their_calls():
    net = nn.Sequential(
        nn.Linear(3, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 3)
    )
    points = ddim.Model(Net(lambda x, t: net(x)), LINEAR, "eps", (3,))
    x = torch.randn(400, 3)

    def least(work):
        spans = []
        for _ in range(3):
            begun = time.perf_counter()
            work()
            spans.append(time.perf_counter() - begun)
        return min(spans)

    with torch.no_grad():
        bare = least(lambda: [net(x) for _ in range(40)])
    for method in ("ddim", "dpmpp:order=2"):
        assert least(lambda m=method: ddim.sample(points, 400, m, steps=40)) < 4 * bare
