"""Exact networks of every foreign habit sample what the native one does, and are recognised."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ddim
from ddim.denoisers.conventions import LEVEL_TIMES, TIMES, Adapted, Conventions
from ddim.denoisers.exact import Mixture
from ddim.denoisers.target import Target
from ddim.model.drawing import generate
from ddim.model.fitting import usual_schedules
from ddim.noise.draws import Noise
from ddim.noise.nodes import make_nodes
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.loop import final, integrate
from ddim.samplers.sampler import make_tableau
from ddim.train.loss import diffusion_loss

SHAPE = (2, 4, 4)
RANGES = [(-1.0, 1.0), (-0.5, 0.5), (0.0, 1.0), (0.0, 255.0)]
LINEAR = Schedule.linear(60, scaled=True)


def means(data_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    low, high = data_range
    unit = 2 * torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0)) - 1
    return (high - low) / 2 * unit.double() + (high + low) / 2


def mixture(data_range: tuple[float, float] = (-1.0, 1.0)) -> Mixture:
    return Mixture(means(data_range), 0.1 * (data_range[1] - data_range[0]) / 2)


class Foreign(nn.Module):
    """A perfect network of other conventions, which sees nothing but its own states and times."""

    def __init__(
        self,
        schedule: Schedule = LINEAR,
        target: str = "eps",
        *,
        time: str = "index",
        offset: int = 0,
        data_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.schedule, self.target = schedule, Target(target)
        self.denoiser = mixture(data_range)
        self.time, self.offset = time, offset

    def level(self, time: float) -> Level:
        T = self.schedule.T
        to_lam = {
            "lambda": lambda s: s,
            "log-snr": lambda s: s / 2,
            "sigma": lambda s: math.log(math.sqrt(1 - s * s) / s),
            "rho": lambda s: -math.log(s),
        }
        if self.time in to_lam:
            return self.schedule.level_at(to_lam[self.time](time))
        to_node = {
            "index": lambda s: s + 1,
            "one-based": lambda s: s,
            "fraction": lambda s: s * T,
            "fraction-from-zero": lambda s: s * T + 1,
            "thousandths": lambda s: s * T / 1000,
            "thousandths-from-zero": lambda s: s * T / 1000 + 1,
        }
        k = min(max(to_node[self.time](time) - self.offset, 1), T)
        if abs(k - round(k)) < 1e-6:
            return self.schedule.level(round(k))
        below = math.floor(k)
        share, alpha = k - below, self.schedule.alpha
        value = alpha[below] ** (1 - share) * alpha[below + 1] ** share
        return self.schedule.level_at(math.log(value / math.sqrt(1 - value * value)))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        assert time.shape == x.shape[:1]
        out = torch.empty_like(x)
        for value in time.unique():
            chosen, level = time == value, self.level(float(value))
            x0, eps, _ = self.denoiser(x[chosen], level)
            out[chosen] = self.target.of(x0, eps, level.alpha, level.sigma)
        return out


def make_model(net: Foreign, **options) -> ddim.Model:
    return ddim.Model(net, net.schedule, net.target, SHAPE, **options)


def draw(model: ddim.Model, method: str = "ddim", steps: int = 10, **options) -> Tensor:
    nodes = make_nodes(model.schedule, "uniform", steps)
    tableau = make_tableau(model.schedule, nodes, method, **options)
    drawn = generate(model, tableau, range(3), batch_size=3, dtype=torch.float64)
    return next(event.images for event in drawn if event.images is not None)


def native(
    schedule: Schedule,
    method: str = "ddim",
    steps: int = 10,
    data_range: tuple[float, float] = (-1.0, 1.0),
    **options,
) -> Tensor:
    """The same images, sampled in the network's own space by the exact denoiser itself."""
    tableau = make_tableau(schedule, make_nodes(schedule, "uniform", steps), method, **options)
    noise = Noise(0, range(3), SHAPE, dtype=torch.float64)
    (low, high), level = data_range, tableau.initial[0].level
    scale, centre = (high - low) / 2, (high + low) / 2
    x = math.hypot(level.alpha, level.sigma) * noise(0) + level.alpha * centre
    return (final(integrate(mixture(data_range), tableau, x, noise))[0] - centre) / scale


@pytest.mark.parametrize("time", [*TIMES, *LEVEL_TIMES])
def test_every_time_is_told_as_the_network_knows_it(time):
    model = make_model(Foreign(time=time), time=time)
    assert torch.allclose(draw(model), native(LINEAR), rtol=0, atol=1e-12)


@pytest.mark.parametrize("time", [*TIMES, *LEVEL_TIMES])
def test_times_between_nodes_follow(time):
    """DPM-Solver's inner stage; its time reaches networks as a float32, hence the tolerance."""
    model = make_model(Foreign(time=time), time=time)
    exact = native(LINEAR, "dpm-solver-2", 5)
    assert torch.allclose(draw(model, "dpm-solver-2", 5), exact, rtol=0, atol=2e-5)


def test_between_nodes_the_level_is_the_schedules():
    schedule = Schedule.cosine(50)
    for conventions in (Conventions(), Conventions(data_range=(0, 1))):
        adapted = Adapted(Foreign(schedule), schedule, Target.EPS, conventions)
        for lam in (-3.3, -1.0, 0.21, 2.0):
            level = adapted.schedule.level_at(lam)
            found = adapted.level(torch.tensor([level.t], dtype=torch.float64))
            assert [float(v) for v in found] == pytest.approx(level[:2], rel=1e-12)


@pytest.mark.parametrize("target", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("data_range", RANGES, ids=str)
def test_every_range_and_target_samples_the_same(data_range, target):
    model = make_model(Foreign(target=target, data_range=data_range), data_range=data_range)
    exact = native(LINEAR, data_range=data_range)
    assert torch.allclose(draw(model), exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ddpm", {}),
        ("ddpm", {"variance": "large"}),
        ("dpmpp", {}),
        ("deis", {}),
        ("unipc", {}),
        ("sde-dpmpp", {}),
        ("dpm-solver-2", {"inner": "node"}),
    ],
    ids=str,
)
def test_another_range_changes_no_step_of_any_sampler(method, options):
    data_range = (0.0, 1.0)
    model = make_model(Foreign(data_range=data_range), data_range=data_range)
    exact = native(LINEAR, method, data_range=data_range, **options)
    assert torch.allclose(draw(model, method, **options), exact, rtol=0, atol=1e-10)


def test_flow_on_data_from_0_to_1_with_fractions():
    flow = Schedule.flow(40)
    net = Foreign(flow, "flow", time="fraction", data_range=(0.0, 1.0))
    model = make_model(net, time="fraction", data_range=(0, 1))
    assert torch.allclose(draw(model), native(flow, data_range=(0.0, 1.0)), rtol=0, atol=1e-11)


def test_zero_terminal_snr_in_another_range():
    schedule = LINEAR.rescaled_to_zero_snr()
    net = Foreign(schedule, "v", data_range=(0.0, 1.0))
    exact = native(schedule, data_range=(0.0, 1.0))
    assert torch.allclose(draw(make_model(net, data_range=(0, 1))), exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize("time", ["index", "fraction"])
@pytest.mark.parametrize("offset", [1, -1, 2])
def test_levels_off_by_some(offset, time):
    net = Foreign(time=time, offset=offset)
    model = make_model(net, time=time, offset=offset)
    kept = [0, *(k for k in range(1, 61) if 1 <= k + offset <= 60)]
    trimmed = Schedule.from_alpha_sigma(LINEAR.alpha[kept], LINEAR.sigma[kept])
    assert abs(offset) == 60 - model.schedule.T
    assert (model.schedule.alpha == trimmed.alpha).all()
    steps = model.schedule.T  # so that every level is visited
    exact = native(trimmed, "ddpm", steps)
    assert torch.allclose(draw(model, "ddpm", steps), exact, rtol=0, atol=1e-11)


def test_an_offset_of_one_means_that_the_first_time_is_clean_data():
    class Recorder(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(t)
            return torch.zeros_like(x)

    seen: list[Tensor] = []
    model = ddim.Model(Recorder(), LINEAR, "eps", SHAPE, offset=1)
    ddim.sample(model, 1, steps=59, batch_size=1)
    assert [int(t) for t in seen] == list(range(59, 0, -1))
    assert all(t.dtype == torch.int64 for t in seen)


def test_an_ordinary_module_is_untouched():
    """Bit for bit what a Model of it gives."""
    net = nn.Conv2d(2, 2, 3, padding=1)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(x) / (1 + t.view(-1, 1, 1, 1))

    ours = ddim.Model(Plain(), LINEAR, "eps", SHAPE)
    plain = ddim.Model(Plain(), LINEAR, Target.EPS, SHAPE)
    for method in ("ddim", "dpm-solver-2"):
        options = {"steps": 4, "method": method}
        assert torch.equal(ddim.sample(ours, 2, **options), ddim.sample(plain, 2, **options))


def test_our_own_network_stays_what_it_is(tmp_path):
    shipped = ddim.load("mnist")
    ours = ddim.Model(shipped.net, shipped.schedule, "eps", shipped.shape)
    assert ours.net is shipped.net
    ours.save(tmp_path / "copy")
    other = ddim.Model(shipped.net, shipped.schedule, "eps", shipped.shape, time="one-based")
    assert isinstance(other.network, Adapted)


class Wide(nn.Module):
    """ε and a learned variance, from keyword arguments and labels, in various wrappings."""

    def __init__(self, wrap=lambda out: out) -> None:
        super().__init__()
        self.weight, self.wrap = nn.Parameter(torch.ones(1)), wrap

    def forward(self, x, t, labels=None, *, shift, strength=1.0):
        out = 0.1 * x + shift.to(x.dtype) * strength
        if labels is not None:
            out = out + labels.view(-1, 1, 1, 1)
        return self.wrap(torch.cat([out, 0.3 * torch.ones_like(x)], dim=1))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda out: out,
        lambda out: (out, "more"),
        lambda out: [out],
        lambda out: SimpleNamespace(sample=out),
    ],
    ids=["tensor", "tuple", "list", "sample"],
)
@pytest.mark.parametrize("data_range", [(-1, 1), (0, 1)])
def test_arguments_wrappings_and_the_variance_half(wrap, data_range):
    arguments = {"shift": torch.full((1, 2, 1, 1), 0.25), "strength": 2.0}
    options = {"arguments": arguments, "data_range": data_range, "classes": 3}
    x, labels = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1)), [2, 0]
    model = ddim.Model(Wide(wrap), LINEAR, "eps", SHAPE, **options)
    level = model.schedule.level(30)
    prediction = model.denoiser(ddim.Condition(labels))(x, level)
    assert prediction.var is not None
    assert torch.allclose(prediction.var, torch.tensor(0.65))
    seen = x if data_range == (-1, 1) else 0.5 * x + 0.5 * level.alpha
    expected = 0.1 * seen + 0.5 + torch.tensor(labels).view(-1, 1, 1, 1)
    assert torch.allclose(prediction.eps, expected, atol=1e-6)
    dropped = ddim.Model(Wide(wrap), LINEAR, "eps", SHAPE, keep_variance=False, **options)
    other = dropped.denoiser(ddim.Condition(labels))(x, level)
    assert other.var is None
    assert torch.equal(other.eps, prediction.eps)


def test_conventions_and_arguments_are_part_of_the_identity_and_move_along():
    def made(shift=0.25, **options) -> ddim.Model:
        arguments = {"shift": torch.tensor(shift)}
        return ddim.Model(Wide(), LINEAR, "eps", SHAPE, arguments=arguments, **options)

    others = [made(shift=0.5), made(time="one-based"), made(keep_variance=False)]
    assert made().identity == made().identity
    assert len({made().identity, *(other.identity for other in others)}) == 4
    moved = made().to(dtype=torch.float64).network
    assert isinstance(moved, Adapted)
    assert moved.argument_0.dtype == torch.float64


def test_networks_of_whole_times(refuses):
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(60, 1)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return 0.1 * x + self.table(t).view(-1, 1, 1, 1)

    model = ddim.Model(Table(), LINEAR, "eps", SHAPE, time_dtype=torch.long)
    assert ddim.sample(model, 1, steps=4).isfinite().all()
    with refuses("whole times only: .*inner='node'"):
        ddim.sample(model, 1, steps=4, method="dpm-solver-2")
    with refuses("'fraction' is no whole number"):
        ddim.Model(Table(), LINEAR, "eps", SHAPE, time="fraction", time_dtype=torch.long)


def test_times_may_be_floating_point():
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(1, 2)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x + self.embed(t[:, None])[:, :, None, None]

    model = ddim.Model(Linear(), LINEAR, "eps", SHAPE, time_dtype=torch.float32)
    assert ddim.sample(model, 1, steps=2).isfinite().all()


@pytest.mark.parametrize("target", ["eps", "x0", "v", "flow"])
def test_the_loss_of_a_perfect_network_is_the_native_one(target):
    """Other times for each image, and the adapted target is the outside schedule's."""
    model = make_model(Foreign(target=target, data_range=(0.0, 1.0)), data_range=(0, 1))
    data, schedule = means()[:4], model.schedule
    noise = Noise(3, range(4), SHAPE, dtype=torch.float64)(0)
    k = torch.tensor([1, 7, 30, 60])
    got = diffusion_loss(model.network, data, k, noise, schedule, target)
    for i, node in enumerate(k.tolist()):
        level = schedule.level(node)
        x = level.alpha * data[i : i + 1] + level.sigma * noise[i : i + 1]
        x0, eps, _ = mixture()(x, level)
        out = Target(target).of(x0, eps, level.alpha, level.sigma)
        aim = Target(target).of(data[i], noise[i], level.alpha, level.sigma)
        assert float(got[i]) == pytest.approx(float((out - aim).square().mean()), rel=1e-5)


def test_latents_of_a_network_of_another_range():
    model = make_model(
        Foreign(data_range=(0.0, 1.0), time="fraction"), data_range=(0, 1), time="fraction"
    )
    images = means()[:2]
    latents = ddim.encode(model, images, steps=10, dtype=torch.float64)
    assert torch.allclose(ddim.decode(model, latents), images, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "fractoin"}, "did you mean 'fraction'"),
        ({"data_range": (1, 0)}, "two finite numbers that rise"),
        ({"data_range": (0, 1, 2)}, "is two numbers"),
        ({"offset": 60}, "leaves none of 60 levels"),
        ({"offset": 1, "time": "sigma"}, "an offset means nothing"),
    ],
)
def test_options_that_mean_nothing(options, message, refuses):
    with refuses(message):
        ddim.Model(nn.Identity(), LINEAR, "eps", SHAPE, **options)


def test_what_is_no_network(refuses):
    with refuses(r"needs a torch.nn.Module, not a function"):
        ddim.Model(lambda x, t: x, LINEAR, "eps", SHAPE)  # type: ignore[arg-type]
    for value, message in (({}, "returned a dict"), (torch.zeros(1, 3), r"returned \(1, 3\)")):
        net = Wide(lambda out, value=value: value)
        model = ddim.Model(net, LINEAR, "eps", SHAPE, arguments={"shift": torch.zeros(1)})
        with refuses(message):
            ddim.sample(model, 1, steps=2)


# -- fitting --------------------------------------------------------------------------------------


def clean(n: int = 32) -> Tensor:
    """Images of the mixture."""
    chosen = torch.arange(n) % 5
    return means()[chosen] + 0.1 * Noise(9, range(n), SHAPE, dtype=torch.float64)(0)


def fit(net: nn.Module, **options) -> ddim.Model:
    return ddim.fit_conventions(net, clean(), **{"T": 30, "quiet": True, **options})


@pytest.mark.parametrize(
    ("target", "time", "true", "data_range"),
    [
        ("eps", "index", Schedule.linear(30, scaled=True), (-1, 1)),
        ("x0", "one-based", Schedule.linear(30, scaled=True), (0, 1)),
        ("v", "fraction", Schedule.cosine(30), (-0.5, 0.5)),
        ("flow", "fraction-from-zero", Schedule.flow(30), (-1, 1)),
        ("v", "thousandths", Schedule.sigmoid(30), (0, 1)),
        ("eps", "thousandths-from-zero", Schedule.cosine(30), (-0.5, 0.5)),
        ("flow", "thousandths", Schedule.flow(30), (0, 1)),
    ],
    ids=str,
)
def test_fit_finds(target, time, true, data_range):
    net = Foreign(true, target, time=time, data_range=data_range)
    found = fit(net)
    assert (found.target.value, found.time, found.data_range) == (target, time, data_range)
    usual = (time, data_range) == ("index", (-1, 1))
    assert found.network is net if usual else found.network.times == 30
    assert (found.schedule.alpha == true.alpha).all()
    first = found.facts.more["ranking"][0]
    assert found.facts.more["undecided"] == []
    assert first["bias"] < 0.05
    assert first["time"] == time
    exact = native(true, data_range=data_range)
    assert torch.allclose(draw(found), exact, rtol=0, atol=1e-10)


def test_fit_finds_the_conventions_of_a_trained_network(capsys):
    shipped = ddim.load("mnist")
    images = ddim.sample(shipped, 4, steps=6, method="dpmpp", clip=True)
    usual = usual_schedules(500)
    options = {"schedules": [*usual[:2], usual[3]], "data_ranges": [(-1, 1)]}
    times = ["index", "one-based", "fraction"]
    found = ddim.fit_conventions(shipped.net, images, times=times, **options)
    assert found.target is Target.EPS
    assert found.net is shipped.net  # times are k - 1, data in [-1, 1]
    assert abs(found.schedule.alpha - shipped.schedule.alpha).max() < 1e-12
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["error", "bias", "images", "target", "time"]
    assert lines[1].split()[3:5] == ["eps", "index"]
    assert "linear, T=500" in lines[1]
    # The nearest other schedule is far off; only the time one index later is near.
    rest = [row for row in found.facts.more["ranking"] if row["time"] != "one-based"]
    assert rest[0]["error"] < 0.5 * rest[1]["error"]


def test_the_error_printed_is_the_models_own():
    net = Foreign(target="v", time="fraction", data_range=(0.0, 1.0))
    options = {"schedules": [LINEAR], "times": ["fraction"], "data_ranges": [(0, 1)]}
    found = fit(net, targets=["v"], **options)
    data, variance = clean(), float(clean().var())
    grid = torch.logspace(math.log10(found.schedule.rho[1]), 1, 6).tolist()
    errors = []
    for j, rho in enumerate(grid):
        k = 1 + int(abs(math.log(rho) + found.schedule.lam[1:]).argmin())
        level = found.schedule.level(k)
        noise = Noise(0, range(32), SHAPE, dtype=torch.float64)(j)
        x0 = found.denoiser()(level.alpha * data + level.sigma * noise, level).x0
        linear = variance / (level.alpha**2 * variance / level.sigma**2 + 1)
        errors.append(float((x0 - data).square().mean()) / linear)
    assert found.facts.more["ranking"][0]["error"] == pytest.approx(sum(errors) / 6, rel=1e-9)


def test_fit_says_what_the_images_do_not_decide(caplog):
    fine = Schedule.linear(4000, scaled=True)
    found = fit(Foreign(fine, "x0", time="one-based"), schedules=[fine])
    assert found.time == "index"
    assert found.facts.more["undecided"] == ["time: index or one-based"]
    assert "these images do not decide the time: index or one-based" in caplog.text


def test_fit_doubts_when_the_truth_is_not_among_the_candidates(caplog):
    fit(Foreign(Schedule.cosine(60)), schedules=[LINEAR, Schedule.linear(60)])
    assert "off in scale" in caplog.text


def test_fit_with_arguments_labels_and_variance():
    class Conditional(Foreign):
        def forward(self, x, time, labels, *, scale):
            out = scale * super().forward(x, time)
            assert ((labels >= 0) & (labels < 5)).all()
            assert labels.shape == time.shape
            return (torch.cat([out, out], dim=1),)

    labels = [i % 5 for i in range(32)]
    options = {"schedules": [LINEAR], "arguments": {"scale": 1.0}, "classes": 5, "labels": labels}
    found = fit(Conditional(time="one-based"), **options)
    assert found.classes == 5
    assert found.facts.more["ranking"][0]["time"] == "one-based"
    assert ddim.sample(found, 2, steps=2, labels=[0, 4]).shape == (2, *SHAPE)


def test_fit_tries_what_a_network_can_be_asked():
    class Table(Foreign):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            nn.functional.embedding(time, torch.zeros(60, 1))  # refuses floating-point times
            return super().forward(x, time)

    found = fit(Table(), schedules=[LINEAR])
    assert {row["time"] for row in found.facts.more["ranking"]} == {"index", "one-based"}
    found = fit(Table(), schedules=[LINEAR], time_dtype=torch.long)
    assert found.facts.more["ranking"][0]["time"] == "index"


def test_fit_refuses(refuses):
    untrained = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))

    class Noop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = untrained

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(x)

    images = clean().float()
    with refuses("denoises under no candidate"):
        ddim.fit_conventions(Noop(), images, T=60, quiet=True)
    with refuses("fails under every candidate: .*missing 1 required"):
        ddim.fit_conventions(Wide(), images, T=60, quiet=True)
    with refuses(r"must be in \[-1, 1\]: these run from 0"):
        ddim.fit_conventions(Noop(), (images + 2).clamp(0, 1), T=60)
    with refuses("at least two images"):
        ddim.fit_conventions(Noop(), images[:1], T=60)
    with refuses("not all the same"):
        ddim.fit_conventions(Noop(), torch.zeros(3, *SHAPE), T=60)
    with refuses("both classes and the images' labels"):
        ddim.fit_conventions(Noop(), images, T=60, classes=3)
    with refuses("no noise level in common"):
        near = Schedule.linear(3, 1e-9, 1e-8)
        ddim.fit_conventions(Noop(), images, schedules=[near, Schedule.linear(60, 0.1, 0.2)])


def test_arguments_of_the_wrong_kind_are_named(refuses):
    net, images = ddim.load("mnist").net, torch.linspace(-1, 1, 1568).view(2, 1, 28, 28)
    schedule = Schedule.linear(20, scaled=True)
    for arguments, options, match in (
        ((lambda x, t: x, images), {}, "a torch.nn.Module and a tensor of images are needed"),
        ((net, images.tolist()), {}, "not a UNet and a list"),
        ((net, images), {"schedules": schedule}, "schedules is a list of candidates"),
        ((net, images), {"data_ranges": (-1, 1)}, r"list of pairs such as \[\(-1, 1\)\]"),
        ((net, images), {"T": 1}, "at least 2 steps, not T = 1"),
    ):
        with refuses(match):
            ddim.fit_conventions(*arguments, **options)
    for changes, match in (
        ({"schedule": "linear"}, "a model needs a ddim.Schedule, not a str"),
        ({"shape": "abc"}, "shape is that of one image"),
        ({"shape": (1, 0)}, "shape is that of one image"),
        ({"offset": 1.5}, "offset is a whole number of levels, not 1.5"),
        ({"data_range": 1}, "data_range is two numbers"),
        ({"time_dtype": "long"}, "time_dtype is a torch.dtype"),
        ({"classes": 0}, "classes must be at least 1, not 0"),
        ({"null_label": 3}, "null_label is for a class-conditional network"),
    ):
        given = {"schedule": schedule, "target": "eps", "shape": (1, 28, 28), **changes}
        with refuses(match):
            ddim.Model(net, **given)


def test_trap_the_loop_by_hand_starts_where_sampling_does():
    """States of a schedule that does not preserve the variance start at √(α²+σ²), not at 1."""
    sigmas = torch.linspace(0, 8, 41).double().numpy() ** 2 / 2
    wide = Schedule.from_alpha_sigma([1.0] * 41, sigmas)
    for model in (
        make_model(Foreign(data_range=(0.0, 1.0)), data_range=(0, 1)),
        make_model(Foreign(wide)),
    ):
        nodes = make_nodes(model.schedule, "uniform", 10)
        tableau = make_tableau(model.schedule, nodes)
        noise = Noise(3, range(4), SHAPE)
        start = tableau.start(noise(0))
        (by_hand,) = final(integrate(model.denoiser(), tableau, start, noise))
        assert torch.equal(by_hand, ddim.sample(model, 4, steps=10, seed=3, batch_size=4))
        assert float(by_hand.std()) == pytest.approx(float(means().std()), rel=0.4)


def test_a_pair_is_not_started_by_noise(refuses):
    tableau = make_tableau(LINEAR, make_nodes(LINEAR, "uniform", 5), "bdia", pair=True)
    with refuses("bdia starts from 2 states, which must be given"):
        tableau.start(torch.zeros(1, 2))


class Nested(nn.Module):
    """ε from arguments within a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, t, *, added, scale=1.0):
        first, (second, name) = added["first"], added["rest"]
        assert name == "text"
        return scale * self.weight * (0.1 * x + first + second)


def test_tensors_within_arguments_move_and_tell_models_apart(refuses):
    def made(first: float) -> ddim.Model:
        added = {"first": torch.full((1, 2, 1, 1), first), "rest": [torch.tensor(0.5), "text"]}
        return ddim.Model(Nested(), LINEAR, "eps", SHAPE, arguments={"added": added})

    one, other = made(0.25), made(0.5)
    assert one.identity == made(0.25).identity != other.identity
    x, level = torch.zeros(1, *SHAPE, dtype=torch.float64), LINEAR.level(30)
    for model, value in ((one, 0.75), (other, 1.0), (one.to(dtype=torch.float64), 0.75)):
        assert torch.equal(model.denoiser()(x, level).eps, torch.full_like(x, value))
    assert one.denoiser()(x, level).eps.dtype == one.dtype == torch.float64
    for other in (object(), np.zeros(5000), [lambda: 1]):
        with refuses("arguments are numbers, text and tensors"):
            ddim.Model(Nested(), LINEAR, "eps", SHAPE, arguments={"added": other})


def test_labels_come_under_the_name_that_the_network_has_for_them(refuses):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 1)

        def forward(self, x, t, return_dict=True, *, class_labels):
            assert return_dict is True
            return 0.1 * x + self.table(class_labels).view(-1, 1, 1, 1)

    net = Named()
    options = {"classes": 3, "null_label": 3}
    named = ddim.Model(net, LINEAR, "eps", SHAPE, labels_as="class_labels", **options)

    class Third(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t, labels):
            return self.net(x, t, class_labels=labels)

    third = ddim.Model(Third(), LINEAR, "eps", SHAPE, **options)
    drawn = [ddim.sample(m, 3, steps=4, guidance=2.0) for m in (named, third)]
    assert torch.equal(*drawn)
    with refuses("labels_as is for a class-conditional network"):
        ddim.Model(net, LINEAR, "eps", SHAPE, labels_as="class_labels")
    with refuses("class_labels is among the arguments"):
        ddim.Model(
            *(net, LINEAR, "eps", SHAPE),
            labels_as="class_labels",
            arguments={"class_labels": 1},
            classes=3,
        )


@pytest.mark.parametrize("time", ["lambda", "log-snr", "rho"])
def test_times_that_would_be_infinite_are_refused(time, refuses):
    for schedule in (Schedule.flow(20), LINEAR.rescaled_to_zero_snr()):
        with refuses("is infinite at the last level"):
            ddim.Model(nn.Identity(), schedule, "v", SHAPE, time=time)
    ddim.Model(nn.Identity(), Schedule.flow(20), "flow", SHAPE, time="sigma")
