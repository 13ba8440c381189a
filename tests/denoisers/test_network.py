from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ddim.denoisers.clipping import Clip, Clipping, Threshold
from ddim.denoisers.exact import Gaussian
from ddim.denoisers.guidance import Guided
from ddim.denoisers.inpainting import Inpaint
from ddim.denoisers.network import NetworkDenoiser
from ddim.denoisers.prediction import Prediction
from ddim.denoisers.target import Target
from ddim.noise.nodes import uniform
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.loop import final, integrate
from ddim.samplers.sampler import make_tableau
from tiny import tiny_unet

LEVEL = Level(0.6, 0.8, 41.0)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_makes_up_x(prediction: Prediction, x: Tensor, level: Level = LEVEL) -> None:
    made = level.alpha * prediction.x0 + level.sigma * prediction.eps
    torch.testing.assert_close(made, x, rtol=1e-12, atol=1e-12)


# -- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", list(Target))
def test_a_network_is_read_by_its_target(target):
    """Any network with the truth behind it gives back the truth."""
    truth = Gaussian(0.3, 0.5)
    x = randn(3, 2, 4, 4)
    exact = truth(x, LEVEL)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return target.of(exact.x0, exact.eps, LEVEL.alpha, LEVEL.sigma)

    prediction = NetworkDenoiser(network, target.value)(x, LEVEL)
    torch.testing.assert_close(prediction.x0, exact.x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(prediction.eps, exact.eps, rtol=1e-12, atol=1e-12)
    assert prediction.var is None


def test_a_network_is_told_its_own_time():
    """Whole times as int64, as embeddings that look them up need; others as they are."""
    seen = []

    def network(x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        seen.append((t, *labels))
        return x

    x = randn(3, 1, 2, 2)
    NetworkDenoiser(network)(x, LEVEL)
    NetworkDenoiser(network, labels=torch.tensor([5, 6, 7]))(x, Level(0.6, 0.8, 2.5))
    assert torch.equal(seen[0][0], torch.tensor([41, 41, 41]))
    assert seen[0][0].dtype == torch.int64
    assert seen[1][0].tolist() == [2.5, 2.5, 2.5]
    assert seen[1][1].tolist() == [5, 6, 7]


def test_a_network_of_single_precision_serves_states_of_double():
    net = nn.Conv2d(1, 1, 3, padding=1)
    x = randn(2, 1, 4, 4)
    prediction = NetworkDenoiser(lambda x, t: net(x))(x.float(), LEVEL)
    assert prediction.x0.dtype == torch.float32

    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(x)

    double = NetworkDenoiser(Timed())(x, LEVEL)
    assert double.x0.dtype == double.eps.dtype == torch.float64
    assert_makes_up_x(double, x)


class Bent(nn.Module):
    """A smooth network with one weight."""

    def __init__(self, wrap=lambda out: out) -> None:
        super().__init__()
        self.weight, self.wrap = nn.Parameter(torch.tensor(0.7, dtype=torch.float64)), wrap

    def forward(self, x: Tensor, t: Tensor) -> object:
        return self.wrap((self.weight * x).sin())


@pytest.mark.parametrize("method", ["ddim", "dpmpp", "unipc", "heun", "plms", "dpm-solver-2"])
def test_trap_gradients_through_a_sampler_are_right_or_refused(method, refuses):
    schedule, net = Schedule.linear(20, 0.01, 0.4), Bent()
    tableau = make_tableau(schedule, uniform(schedule, 5), method)

    def total(x: Tensor, grad: bool = True) -> Tensor:
        return final(integrate(NetworkDenoiser(net, grad=grad), tableau, x))[0].sum()

    x = randn(2, 1, 2, 2).requires_grad_()
    by_state, by_weight = torch.autograd.grad(total(x), (x, net.weight))
    assert torch.allclose(torch.func.grad(total)(x.detach()), by_state, rtol=1e-9)
    step, free = 1e-6, x.detach()
    for i in range(4):
        change = torch.zeros(8, dtype=torch.float64)
        change[i] = step
        change = change.view_as(free)
        with torch.no_grad():
            slope = (total(free + change) - total(free - change)) / (2 * step)
        assert float(slope) == pytest.approx(float(by_state.flatten()[i]), rel=1e-6)
    with torch.no_grad():
        net.weight.add_(step)
        above = total(free)
        net.weight.sub_(2 * step)
        below = total(free)
    assert float((above - below) / (2 * step)) == pytest.approx(float(by_weight), rel=1e-6)
    for call in (lambda: total(x, grad=False), lambda: torch.func.grad(total)(free, grad=False)):
        with refuses("lets no gradients through"):
            call()
    with torch.no_grad():
        total(x, grad=False)


def test_gradients_reach_the_times_of_a_unet_every_time():
    net = tiny_unet()
    denoiser = NetworkDenoiser(net, grad=True)
    weight, found = net.time_embedding.linear_1.weight, []
    with torch.no_grad():
        denoiser(torch.ones(1, 1, 8, 8), LEVEL)  # what it keeps of the times has no graph
    for _ in range(2):
        loss = denoiser(torch.ones(1, 1, 8, 8), LEVEL).x0.square().sum()
        found.append(torch.autograd.grad(loss, weight)[0])
    assert torch.equal(*found) and found[0].abs().max() > 0


def test_trap_a_denoiser_that_is_kept_sees_that_weights_changed():
    net, x = tiny_unet(), torch.ones(1, 1, 8, 8)
    denoiser = NetworkDenoiser(net)
    denoiser(x, LEVEL)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.1)
    assert torch.equal(denoiser(x, LEVEL).eps, NetworkDenoiser(net)(x, LEVEL).eps)
    net.double()
    assert torch.equal(denoiser(x.double(), LEVEL).eps, NetworkDenoiser(net)(x.double(), LEVEL).eps)


def test_whole_numbers_among_the_parameters_are_not_the_networks_precision():
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codes = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.codes[0] * self.scale * x

    x = randn(1, 1, 2, 2)
    eps = NetworkDenoiser(Quantised())(x, LEVEL).eps
    torch.testing.assert_close(eps, 0.5 * x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [lambda out: (out, 1), lambda out: [out], lambda out: SimpleNamespace(sample=out)],
    ids=["tuple", "list", "sample"],
)
def test_outputs_in_a_wrapping_are_found(wrap, refuses):
    x = randn(1, 1, 2, 2)
    assert torch.equal(NetworkDenoiser(Bent(wrap))(x, LEVEL).eps, (0.7 * x).sin())
    with refuses("returned a dict, not a tensor"):
        NetworkDenoiser(Bent(lambda out: {"x": out}))(x, LEVEL)


def test_predicting_builds_no_graph():
    prediction = NetworkDenoiser(tiny_unet())(torch.ones(1, 1, 8, 8), LEVEL)
    assert not prediction.x0.requires_grad
    assert not prediction.eps.requires_grad


@pytest.mark.parametrize("target", list(Target))
def test_the_state_is_left_alone(target):
    x = randn(2, 1, 4, 4)
    before = x.clone()
    base = NetworkDenoiser(lambda x, t: 0.5 * x, target)
    for denoiser in (base, Clip(base, 0.1), Threshold(base, 0.9, 2.0), Guided(base, base, 3.0)):
        denoiser(x, LEVEL)
        assert torch.equal(x, before)


def test_learned_variance_is_split_off():
    x = randn(2, 3, 4, 4)
    raw = randn(2, 3, 4, 4, seed=1).clamp(-1, 1)
    prediction = NetworkDenoiser(lambda x, t: torch.cat([2 * x, raw], dim=1))(x, LEVEL)
    torch.testing.assert_close(prediction.eps, 2 * x)
    torch.testing.assert_close(prediction.var, (raw + 1) / 2)
    assert_makes_up_x(prediction, x)
    clipped = Clip(NetworkDenoiser(lambda x, t: torch.cat([2 * x, raw], dim=1)), 0.5)(x, LEVEL)
    assert torch.equal(clipped.var, prediction.var)


def test_an_output_of_another_shape_is_refused(refuses):
    x = randn(2, 3, 4, 4)
    for output in (x[:, :2], x[..., :2], x.repeat(2, 1, 1, 1), x.repeat(1, 3, 1, 1)):
        with refuses("the network returned"):
            NetworkDenoiser(lambda x, t, output=output: output)(x, LEVEL)


def test_eps_at_zero_signal_is_refused(refuses):
    with refuses("predicts eps says nothing at α=0"):
        NetworkDenoiser(lambda x, t: x)(randn(1, 1, 2, 2), Level(0.0, 1.0, 999.0))


# -- our UNet: what depends on the time alone is computed once ------------------------------------


@pytest.mark.parametrize("classes", [None, 5])
def test_the_time_is_embedded_once_a_level(classes, monkeypatch):
    net = tiny_unet(num_class_embeds=classes)
    calls = []
    embed = net.embed
    monkeypatch.setattr(net, "embed", lambda t: calls.append(t.item()) or embed(t))
    labels = None if classes is None else torch.tensor([1, 2])
    denoiser = NetworkDenoiser(net, labels=labels)
    schedule = Schedule.linear(10)
    x = torch.ones(2, 1, 8, 8)
    for _ in range(3):  # batches
        for k in (10, 5, 1):
            denoiser(x, schedule.level(k))
    if classes is not None:
        denoiser.given(torch.tensor([4, 0]))(x, schedule.level(5))
    assert calls == [9, 4, 0]


@pytest.mark.parametrize("classes", [None, 5])
@pytest.mark.parametrize("t", [0.0, 41.0, 2.5])
def test_the_shortcut_is_the_network_itself(classes, t):
    net = tiny_unet(num_class_embeds=classes)
    x = randn(3, 1, 8, 8).float()
    labels = None if classes is None else torch.tensor([4, 0, 2])
    denoiser = NetworkDenoiser(net, labels=labels)
    with torch.no_grad():
        expected = net(x, torch.full((3,), t), labels)
    for _ in range(2):
        torch.testing.assert_close(
            denoiser(x, Level(0.6, 0.8, t)).eps, expected, rtol=1e-5, atol=1e-6
        )


def test_labels_change_what_is_predicted_and_times_do_too():
    net = tiny_unet(num_class_embeds=5)
    x = torch.ones(1, 1, 8, 8)
    denoiser = NetworkDenoiser(net, labels=torch.tensor([0]))
    outputs = [denoiser(x, LEVEL).eps, denoiser(x, Level(0.6, 0.8, 7.0)).eps]
    outputs.append(denoiser.given(torch.tensor([3]))(x, LEVEL).eps)
    outputs.append(denoiser.given(torch.tensor([0]))(x, LEVEL).eps)
    assert torch.equal(outputs[0], outputs[3])
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_labels_that_do_not_fit_the_network_are_refused(refuses):
    x = torch.ones(1, 1, 8, 8)
    with refuses("class-conditional: it needs labels"):
        NetworkDenoiser(tiny_unet(num_class_embeds=5))(x, LEVEL)
    with refuses("labels were given to a network without classes"):
        NetworkDenoiser(tiny_unet(), labels=torch.tensor([0]))(x, LEVEL)


# -- wrappers -------------------------------------------------------------------------------------


def wide(x: Tensor, t: Tensor) -> Tensor:
    """A prediction of x0 well outside of [-1, 1]."""
    return 3 * x


@pytest.mark.parametrize("limit", [1.0, 0.25])
def test_clipping_recomputes_eps(limit):
    x = randn(4, 1, 5, 5)
    plain = NetworkDenoiser(wide, "x0")
    prediction = Clip(plain, limit)(x, LEVEL)
    torch.testing.assert_close(prediction.x0, (3 * x).clamp(-limit, limit))
    assert_makes_up_x(prediction, x)
    assert not torch.allclose(prediction.eps, plain(x, LEVEL).eps)


def test_what_needs_no_clipping_is_unchanged():
    x = randn(4, 1, 5, 5)
    plain, clipped = (
        d(x, LEVEL) for d in (NetworkDenoiser(wide, "x0"), Clip(NetworkDenoiser(wide, "x0"), 99))
    )
    assert torch.equal(plain.x0, clipped.x0)
    torch.testing.assert_close(plain.eps, clipped.eps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("largest", [1.0, 1.5, 100.0])
def test_thresholding_is_its_formula_for_each_image(ratio, largest):
    x = randn(4, 2, 5, 5) * torch.tensor([0.01, 0.5, 1, 20], dtype=torch.float64).view(4, 1, 1, 1)
    prediction = Threshold(NetworkDenoiser(wide, "x0"), ratio, largest)(x, LEVEL)
    for n in range(4):
        x0 = 3 * x[n]
        ordered = x0.abs().flatten().sort().values.tolist()
        place = ratio * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        s = ordered[low] + (place - low) * (ordered[high] - ordered[low])
        s = min(max(s, 1.0), largest)
        torch.testing.assert_close(prediction.x0[n], x0.clamp(-s, s) / s, rtol=1e-6, atol=1e-6)
    assert_makes_up_x(prediction, x)


def test_thresholding_does_not_let_one_image_dim_the_others():
    x = randn(2, 1, 5, 5)
    denoiser = Threshold(NetworkDenoiser(wide, "x0"), 0.9, 100.0)
    bright = torch.cat([x[:1], 50 * x[1:]])
    assert torch.equal(denoiser(x, LEVEL).x0[0], denoiser(bright, LEVEL).x0[0])


def test_clipping_by_name(refuses):
    x = randn(3, 1, 4, 4)
    base = NetworkDenoiser(wide, "x0")
    assert Clipping().wrap(base) is base
    for clipping, same in (
        (Clipping("clip", 0.5), Clip(base, 0.5)),
        (Clipping("threshold", 2.0, 0.9), Threshold(base, 0.9, 2.0)),
    ):
        one, two = clipping.wrap(base)(x, LEVEL), same(x, LEVEL)
        assert torch.equal(one.x0, two.x0)
        assert torch.equal(one.eps, two.eps)
    with refuses("none, clip or threshold, not 'clamp'"):
        Clipping("clamp")


def test_guidance():
    x = randn(3, 1, 4, 4)
    given, free = Gaussian(0.8, 0.3), Gaussian(-0.2, 0.6)
    conditional, unconditional = given(x, LEVEL), free(x, LEVEL)
    for scale in (0.0, 0.5, 1.0, 3.0, 7.5):
        guided = Guided(given, free, scale)(x, LEVEL)
        expected = unconditional.eps + scale * (conditional.eps - unconditional.eps)
        torch.testing.assert_close(guided.eps, expected, rtol=1e-12, atol=1e-12)
        assert_makes_up_x(guided, x)
    assert torch.equal(Guided(given, free, 1.0)(x, LEVEL).x0, conditional.x0)
    assert torch.equal(Guided(given, free, 1.0)(x, LEVEL).eps, conditional.eps)
    assert torch.equal(Guided(given, free, 0.0)(x, LEVEL).x0, unconditional.x0)
    assert torch.equal(Guided(given, free, 0.0)(x, LEVEL).eps, unconditional.eps)


@pytest.mark.parametrize("target", list(Target))
def test_rescaled_guidance_has_the_contrast_of_what_was_asked_for(target):
    """Equations 15 and 16 of Lin et al. 2023, of the network's output."""
    x = randn(3, 1, 4, 4)
    given, free = Gaussian(0.8, 0.3), Gaussian(-0.2, 0.6)

    def output(denoiser):
        found = denoiser(x, LEVEL)
        return target.of(found.x0, found.eps, LEVEL.alpha, LEVEL.sigma)

    asked, guided = output(given), output(Guided(given, free, 6.0))
    spread = [part.flatten(1).std(1).view(-1, 1, 1, 1) for part in (asked, guided)]
    for share in (1.0, 0.7):
        rescaled = Guided(given, free, 6.0, share, target)
        expected = share * guided * spread[0] / spread[1] + (1 - share) * guided
        torch.testing.assert_close(output(rescaled), expected, rtol=1e-10, atol=1e-10)
        assert_makes_up_x(rescaled(x, LEVEL), x)
    assert torch.equal(
        Guided(given, free, 6.0, 0.0, target)(x, LEVEL).x0, Guided(given, free, 6.0)(x, LEVEL).x0
    )


def test_guidance_takes_the_variance_that_was_learned_with_the_label():
    x = randn(3, 1, 4, 4)
    given, free = (
        lambda x, level, v=v: Prediction(x, x, torch.full_like(x, v)) for v in (0.25, 0.75)
    )
    assert float(Guided(given, free, 3.0)(x, LEVEL).var.unique()) == 0.25


def test_wrappers_stack():
    x = randn(3, 1, 4, 4)
    guided = Guided(Gaussian(0.8, 0.3), Gaussian(-0.2, 0.6), 7.5)
    prediction = Clip(guided, 0.5)(x, LEVEL)
    assert float(prediction.x0.abs().max()) <= 0.5
    assert_makes_up_x(prediction, x)


def test_refusals(refuses):
    base = NetworkDenoiser(wide)
    for limit in (0, -1.0, float("nan")):
        with refuses(f"limit must be positive, not {limit}"):
            Clip(base, limit)
    for ratio, largest in ((0, 1), (1.1, 1), (0.9, 0.5)):
        with refuses("thresholding needs"):
            Threshold(base, ratio, largest)
    with refuses("unknown target"):
        NetworkDenoiser(wide, "noise")


@pytest.mark.parametrize("changed", ["linear_2", "time_emb_proj", "assigned", "assigned twice"])
def test_the_times_are_embedded_anew_when_any_weight_behind_them_changes(changed):
    net = tiny_unet().requires_grad_(False)
    x, denoiser = torch.ones(1, 1, 8, 8), NetworkDenoiser(net)
    before = denoiser(x, LEVEL).eps
    with torch.no_grad():
        if changed == "linear_2":
            net.time_embedding.linear_2.bias.add_(1)
        elif changed == "time_emb_proj":
            net.mid_block.resnets[0].time_emb_proj.weight.mul_(2)
        for _ in range({"assigned": 1, "assigned twice": 2}.get(changed, 0)):
            assigned = {k: v * 0.9 for k, v in net.state_dict().items()}
            net.load_state_dict(assigned, assign=True)
            net.requires_grad_(False)
    after = denoiser(x, LEVEL).eps
    assert not torch.equal(after, before)
    assert torch.equal(after, NetworkDenoiser(net)(x, LEVEL).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", ["ddim", "plms"])
def test_known_pixels_leave_the_states_in_their_precision(dtype, method):
    schedule = Schedule.linear(500)
    keep = torch.arange(16).view(1, 1, 4, 4) < 8
    denoiser = Inpaint(Gaussian(0.0, 1.0), torch.full((1, 1, 4, 4), 0.25), keep)
    tableau = make_tableau(schedule, (500, 250, 100, 0), method)
    steps = list(integrate(denoiser, tableau, torch.ones(1, 1, 4, 4, dtype=dtype)))
    assert {step.x.dtype for step in steps} == {dtype}
    assert (steps[-1].x[keep] == 0.25).all()
