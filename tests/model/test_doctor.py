"""The doctor: what a perfect network looks like to it, and every finding it has."""

import pytest
import torch

import ddim
from ddim.base.errors import InputError
from ddim.checkpoints.record import Facts
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.exact import Mixture
from ddim.denoisers.target import Target
from ddim.model.doctor import check_model
from ddim.model.predictions import check_predictions
from ddim.noise.schedule import Schedule

SCHEDULE = Schedule.linear(100, 1e-3, 0.2)
MEANS = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.6
DATA = Mixture(MEANS, std=0.3)


class Exact(torch.nn.Module):
    """What a perfect network for the mixture says, in terms of any target."""

    def __init__(self, target):
        super().__init__()
        self.target, self.weight = target, torch.nn.Parameter(torch.ones(2))

    def forward(self, x, t):
        level = SCHEDULE.level(int(t[0]) + 1)
        seen = DATA(x, level)
        return self.target.of(seen.x0, seen.eps, level.alpha, level.sigma)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    which = torch.randint(4, (256,), generator=generator)
    return MEANS[which] + 0.3 * torch.randn(256, 1, 6, 6, generator=generator)


def model(target=Target.EPS, taken=None):
    return ddim.Model(Exact(target), SCHEDULE, taken or target, (1, 6, 6))


def levels(findings):
    return {finding.level for finding in findings}


def found(findings, text):
    (one,) = [finding for finding in findings if text in finding.what]
    return one


@pytest.mark.parametrize("target", [Target.EPS, Target.X0, Target.V])
def test_a_perfect_network_sums_to_one(images, target):
    for entry in check_predictions(model(target), images):
        assert entry.total == pytest.approx(1, abs=0.03)
        assert entry.missed < 0.7


def test_a_perfect_model_has_no_problems(images):
    findings = check_model(model(), predictions=check_predictions(model(), images))
    assert levels(findings) == {"ok"}, findings


@pytest.mark.parametrize(
    ("true", "taken"),
    [(Target.EPS, Target.V), (Target.V, Target.EPS), (Target.X0, Target.EPS)],
)
def test_a_wrong_target_is_a_problem(images, true, taken):
    findings = check_model(
        model(taken=taken), predictions=check_predictions(model(true, taken), images)
    )
    assert "problem" in levels(findings)
    assert any("fit_conventions" in finding.do for finding in findings)


def test_a_wrong_schedule_is_a_problem(images):
    wrong = model().replace(schedule=Schedule.linear(100, 1e-4, 0.02))
    assert "problem" in levels(check_model(wrong, predictions=check_predictions(wrong, images)))


def test_predictions_do_not_depend_on_the_tile(images):
    few = [check_predictions(model(), images[:10], batch_size=batch_size) for batch_size in (3, 10)]
    for a, b in zip(*few, strict=True):
        assert a.missed == pytest.approx(b.missed, rel=1e-5)


def test_what_is_left_of_the_signal():
    dark = model().replace(schedule=Schedule.scaled_linear(1000, 0.00085, 0.012))
    assert found(check_model(dark), "of the signal is left").level == "note"
    none = model().replace(schedule=SCHEDULE.rescaled_to_zero_snr())
    assert found(check_model(none), "no signal is left").level == "problem"
    velocity = none.replace(target=Target.V)
    assert found(check_model(velocity), "zero terminal SNR").level == "ok"


def test_steps_that_do_not_divide():
    assert found(check_model(model(), steps=50), "divide").level == "ok"
    odd = found(check_model(model(), steps=30), "do not divide")
    # With a stride of 3 others start at 29·3 + 1, and range(0, 100, 3) has 34 elements.
    assert "start at node 88 and others have 34 steps" in odd.what
    with pytest.raises(InputError, match="from 1 to T"):
        check_model(model(), steps=101)


def test_clipping_conditions_assumptions():
    clipping = model().replace(clipping=Clipping("clip", 1.0))
    assert "keeps the old" in found(check_model(clipping), "by default (clip").why
    without = model().replace(classes=10)
    assert found(check_model(without), "no label for 'none'").level == "note"
    guided = model().replace(classes=10, null_label=10)
    assert found(check_model(guided), "10 for 'none'").level == "ok"
    assumed = model().replace(facts=Facts(assumed=("heads: 4",)))
    assert found(check_model(assumed), "heads: 4").level == "note"


def test_weights():
    broken = model()
    with torch.no_grad():
        broken.net.weight[0] = float("nan")
    assert found(check_model(broken), "not finite").level == "problem"
    dead = model()
    with torch.no_grad():
        dead.net.weight.zero_()
    assert found(check_model(dead), "all zero").level == "note"


def test_without_images_it_says_that_it_did_not_look():
    assert found(check_model(model()), "were not looked at").level == "note"


def test_refusals(images):
    with pytest.raises(InputError, match="have shape"):
        check_predictions(model(), images[:, :, :3])
    with pytest.raises(InputError, match=r"1\.\.100"):
        check_predictions(model(), images, nodes=[0])


def test_what_eta_means_is_said():
    findings = check_model(model())
    (eta,) = [f for f in findings if "η multiplies" in f.what]
    assert eta.level == "ok" and "variance goes with η²" in eta.what
    learned = model().replace(facts=Facts(learned_variance=True))
    (eta,) = [f for f in check_model(learned) if "η multiplies" in f.what]
    assert eta.level == "note" and "--method ddpm" in eta.do


def test_much_signal_at_the_end_is_a_note():
    """β for 1000 steps on 50: seldom meant, but no problem by itself."""
    wrong = model().replace(schedule=Schedule.linear(50))
    (finding,) = [f for f in check_model(wrong, steps=10) if "of the signal is left" in f.what]
    assert finding.level == "note" and "scaled to fewer" in finding.why


class Scaled(torch.nn.Module):
    """The exact output for data N(0, 0.3²), with ε times a factor; each state has its own time."""

    def __init__(self, schedule, factor, target="eps"):
        super().__init__()
        tables = (schedule.alpha, schedule.sigma)
        self.table = [torch.as_tensor(v.copy(), dtype=torch.float32) for v in tables]
        self.factor, self.target = factor, Target.named(target)
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x, t):
        shape = (-1, *(1,) * (x.ndim - 1))
        a, s = (v[(t.long() + 1).clamp(max=len(v) - 1)].view(shape) for v in self.table)
        eps = x * s / (0.09 * a**2 + s**2) * self.factor(t).view(shape)
        return self.target.of((x - s * eps) / a, eps, a, s)


def looked_at(net, schedule, target, shape, **options):
    drawn = 0.3 * torch.randn(256, *shape, generator=torch.Generator().manual_seed(3))
    taken = ddim.Model(net, schedule, target, shape, **options)
    return check_model(taken, predictions=check_predictions(taken, drawn))


LONG = Schedule.linear(200, scaled=True)
KINDS = [(3,), (1, 32), (1, 3, 3, 3)]  # vectors, signals, volumes


@pytest.mark.parametrize("shape", KINDS, ids=str)
@pytest.mark.parametrize("target", ["eps", "v", "x0"])
def test_a_weak_network_is_no_problem_and_wrong_conventions_are(shape, target):
    right = Scaled(LONG, lambda t: 1 + 0 * t, target)
    assert levels(looked_at(right, LONG, target, shape)) == {"ok"}
    weak = Scaled(LONG, lambda t: torch.where(t < 70, 0.75, 1.0), target)
    findings = looked_at(weak, LONG, target, shape)
    assert "problem" not in levels(findings) and found(findings, "is weak").level == "note"
    other = {"eps": "v", "v": "x0", "x0": "eps"}[target]
    wrong = found(looked_at(right, LONG, other, shape), "denoises far better under")
    assert wrong.level == "problem" and f"under target {target}" in wrong.what


def test_a_network_that_shrinks_all_noise_was_trained_too_little():
    short = looked_at(Scaled(LONG, lambda t: 0.85 + 0 * t), LONG, "eps", (1, 8, 8))
    assert "problem" not in levels(short)
    nothing = looked_at(Scaled(LONG, lambda t: 0 * t), LONG, "eps", (1, 8, 8))
    assert any(f.level == "problem" and "misses 1.00" in f.what for f in nothing)


def test_what_explodes_at_node_t_is_said():
    """2 % of ε times σ/α = 1e4 is an x0 of 200; clipping holds it, and so does a lower start."""
    schedule = Schedule.cosine(400)
    net = Scaled(schedule, lambda t: 1.02 + 0 * t)
    bad = found(looked_at(net, schedule, "eps", (1, 4, 4)), "images explode")
    assert bad.level == "problem" and "clip" in bad.do and "start lower, at node 3" in bad.do
    clipping = Clipping("clip")
    held = found(looked_at(net, schedule, "eps", (1, 4, 4), clipping=clipping), "holds it")
    assert held.level == "ok"
    exact = Scaled(schedule, lambda t: 1 + 0 * t)
    assert levels(looked_at(exact, schedule, "eps", (1, 4, 4))) == {"ok"}
