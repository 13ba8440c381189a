"""Diffusers' schedulers, run live, against the same numbers from our tables.

In ``double`` their modules compute in float64 throughout: whatever they call float32 there is
float64. Then what agrees agrees to 1e-12, and what does not is theirs to answer for; the tests say
by how much and why.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from ddim.denoisers.clipping import Clipping
from ddim.denoisers.network import NetworkDenoiser
from ddim.denoisers.target import Target
from ddim.noise.nodes import make_nodes
from ddim.noise.schedule import Schedule
from ddim.samplers.loop import final, integrate
from ddim.samplers.sampler import make_tableau

# NumPy's complaint about how diffusers makes arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddim_inverse": "DDIMInverseScheduler",
    "ddpm": "DDPMScheduler",
    "dpmsolver_multistep": "DPMSolverMultistepScheduler",
    "unipc_multistep": "UniPCMultistepScheduler",
    "pndm": "PNDMScheduler",
}
PREDICTION = {"epsilon": Target.EPS, "sample": Target.X0, "v_prediction": Target.V}
SHAPE = (2, 1, 3, 3)


class Doubled:
    """A module in which float32 is float64."""

    def __init__(self, module: object) -> None:
        self.module = module

    def __getattr__(self, name: str) -> object:
        return getattr(self.module, "float64" if name == "float32" else name)


@pytest.fixture(scope="module")
def single(diffusers) -> SimpleNamespace:
    """The schedulers as they come."""
    return SimpleNamespace(
        **{
            name: getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{file}"), name)
            for file, name in SCHEDULERS.items()
        }
    )


@pytest.fixture
def double(single, monkeypatch) -> SimpleNamespace:
    """The schedulers, computing in float64."""
    for file in SCHEDULERS:
        module = f"diffusers.schedulers.scheduling_{file}"
        monkeypatch.setattr(f"{module}.torch", Doubled(torch))
        monkeypatch.setattr(f"{module}.np", Doubled(np))
    return single


def noise(index: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(SHAPE, dtype=torch.float64, generator=generator).to(dtype)


START = noise(0)


class Network:
    """For data N(0.3, 0.5²), and not quite linear; outputs what ``prediction`` says."""

    def __init__(self, schedule: Schedule, prediction: str = "epsilon") -> None:
        self.schedule, self.target = schedule, PREDICTION[prediction]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        level = self.schedule.level(int(t.flatten()[0]) + 1)
        x0 = 0.3 + 0.25 * level.alpha * (x - 0.3 * level.alpha) / (
            0.25 * level.alpha**2 + level.sigma**2
        )
        x0 = x0 + 0.3 * level.sigma**2 * torch.tanh(2 * x)
        return self.target.of(x0, (x - level.alpha * x0) / level.sigma, level.alpha, level.sigma)


def theirs(scheduler, network, x: Tensor = START, skip: int = 0, **options) -> Tensor:
    """Their loop; options that are functions are called with the number of the step."""
    for n, t in enumerate(scheduler.timesteps[skip:], start=1):
        given = {key: value(n) if callable(value) else value for key, value in options.items()}
        x = scheduler.step(network(x, t), t, x, **given).prev_sample
    return x


def ours(network, tableau, clipping: Clipping | None = None, x: Tensor = START) -> Tensor:
    denoiser = (clipping or Clipping()).wrap(NetworkDenoiser(network, network.target))
    return final(integrate(denoiser, tableau, x, lambda i: noise(i, x.dtype)))[0]


def prepared(make, steps: int, prediction: str = "epsilon", **config):
    """A scheduler with its steps set, its ᾱ as a schedule, and the network."""
    scheduler = make(prediction_type=prediction, **config)
    scheduler.set_timesteps(steps)
    schedule = Schedule.from_alpha_bar(scheduler.alphas_cumprod.double().numpy())
    return scheduler, schedule, Network(schedule, prediction)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# -- DDIMScheduler --------------------------------------------------------------------------------

GRIDS = ["leading", "leading-offset", "trailing", "linspace"]


def spacing(grid: str) -> dict[str, object]:
    return {
        "timestep_spacing": grid.split("-")[0],
        "steps_offset": int(grid.endswith("offset")),
    }


@pytest.mark.parametrize(("steps", "eta"), [(1, 0.0), (7, 0.7), (50, 0.0), (50, 1.0), (300, 0.4)])
@pytest.mark.parametrize("grid", GRIDS)
def test_ddim(double, grid, steps, eta):
    scheduler, schedule, network = prepared(
        double.DDIMScheduler, steps, clip_sample=False, **spacing(grid)
    )
    nodes = make_nodes(schedule, f"diffusers-{grid}", steps)
    assert [k - 1 for k in nodes[:-1]] == scheduler.timesteps.tolist()
    drawn = {"variance_noise": noise} if eta else {}
    expected = theirs(scheduler, network, eta=eta, **drawn)
    tableau = make_tableau(schedule, nodes, "diffusers-ddim", eta=eta)
    assert gap(ours(network, tableau), expected) < 1e-12
    if grid == "leading" or (grid == "trailing" and steps in (1, 50)):
        assert gap(ours(network, make_tableau(schedule, nodes, eta=eta)), expected) < 1e-12


@pytest.mark.parametrize("final_alpha", ["data", "first"])
@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize("grid", GRIDS)
def test_ddim_targets_and_final_alpha(double, grid, prediction, final_alpha):
    scheduler, schedule, network = prepared(
        double.DDIMScheduler,
        30,
        prediction,
        clip_sample=False,
        set_alpha_to_one=final_alpha == "data",
        **spacing(grid),
    )
    nodes = make_nodes(schedule, f"diffusers-{grid}", 30)
    tableau = make_tableau(schedule, nodes, "diffusers-ddim", final=final_alpha)
    assert gap(ours(network, tableau), theirs(scheduler, network)) < 1e-12


CLIPPINGS = {
    "clip": ({"clip_sample": True}, Clipping("clip")),
    "clip to 0.7": ({"clip_sample": True, "clip_sample_range": 0.7}, Clipping("clip", 0.7)),
    "threshold": (
        {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.5},
        Clipping("threshold", 1.5, 0.8),
    ),
}


@pytest.mark.parametrize("final_alpha", ["data", "first"])
@pytest.mark.parametrize("stale", [True, False], ids=["old eps", "recomputed"])
@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize("kind", CLIPPINGS)
def test_ddim_clipping(double, kind, prediction, stale, final_alpha):
    """They keep the old eps unless ``use_clipped_model_output`` is given."""
    config, clipping = CLIPPINGS[kind]
    scheduler, schedule, network = prepared(
        double.DDIMScheduler, 20, prediction, set_alpha_to_one=final_alpha == "data", **config
    )
    nodes = make_nodes(schedule, "diffusers-leading", 20)
    tableau = make_tableau(schedule, nodes, "diffusers-ddim", final=final_alpha)
    found = [
        ours(network, tableau, Clipping(clipping.kind, clipping.limit, clipping.ratio, keep))
        for keep in (stale, not stale)
    ]
    expected = theirs(scheduler, network, use_clipped_model_output=not stale)
    assert gap(found[0], expected) < 1e-12
    if final_alpha == "first":  # where noise is left, the eps is seen
        assert gap(found[1], expected) > 1e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_ddim_with_zero_terminal_snr(double, prediction, eta):
    scheduler, schedule, network = prepared(
        double.DDIMScheduler,
        20,
        prediction,
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    assert schedule.alpha[-1] == 0
    assert np.abs(schedule.alpha - Schedule.linear().rescaled_to_zero_snr().alpha).max() < 1e-12
    nodes = make_nodes(schedule, "diffusers-trailing", 20)
    drawn = {"variance_noise": noise} if eta else {}
    expected = theirs(scheduler, network, eta=eta, **drawn)
    for method in ("ddim", "diffusers-ddim"):
        tableau = make_tableau(schedule, nodes, method, eta=eta)
        assert gap(ours(network, tableau), expected) < 1e-12


@pytest.mark.parametrize(
    ("grid", "steps", "apart"),
    [
        ("linspace", 10, 0.142),
        ("linspace", 50, 0.0187),
        ("trailing", 7, 0.0204),
        ("trailing", 300, 0.0938),
    ],
)
def test_where_ddim_does_not_chain(double, grid, steps, apart):
    """The state goes to t - T//S, and the network is told the next time of the grid.

    Against DDIM on the same nodes, where the two are one.
    """
    scheduler, schedule, network = prepared(
        double.DDIMScheduler, steps, clip_sample=False, timestep_spacing=grid
    )
    nodes = make_nodes(schedule, f"diffusers-{grid}", steps)
    right = ours(network, make_tableau(schedule, nodes))
    assert gap(theirs(scheduler, network), right) == pytest.approx(apart, rel=0.02)


def test_trailing_has_a_step_too_many_for_some_steps(double):
    """A rounding error gives 62 timesteps for S = 61; the last is -1, which reads ᾱ_T."""
    scheduler, schedule, network = prepared(
        double.DDIMScheduler, 61, clip_sample=False, timestep_spacing="trailing"
    )
    assert len(scheduler.timesteps) == 62
    assert scheduler.timesteps[-1] == -1
    nodes = make_nodes(schedule, "diffusers-trailing", 61)
    assert [k - 1 for k in nodes[:-1]] == scheduler.timesteps[:-1].tolist()
    found = ours(network, make_tableau(schedule, nodes, "diffusers-ddim"))
    scheduler.timesteps = scheduler.timesteps[:-1]
    assert gap(found, theirs(scheduler, network)) < 1e-12
    # And then, whatever part of the image the network calls noise is taken off 157 times over.
    ruined = scheduler.step(torch.zeros_like(found), -1, found).prev_sample
    assert gap(ruined, found / schedule.alpha[-1]) < 1e-9
    assert 1 / schedule.alpha[-1] == pytest.approx(157.4, abs=0.1)


# -- DDIMInverseScheduler -------------------------------------------------------------------------


@pytest.mark.parametrize("final_alpha", ["data", "first"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("grid", "steps"), [("leading", 40), ("trailing", 40), ("trailing", 30)])
def test_ddim_inverse(double, grid, steps, clip, prediction, final_alpha):
    scheduler, schedule, network = prepared(
        double.DDIMInverseScheduler,
        steps,
        prediction,
        clip_sample=clip,
        set_alpha_to_one=final_alpha == "data",
        timestep_spacing=grid,
    )
    nodes = make_nodes(schedule, f"diffusers-{grid}", steps)[::-1]
    tableau = make_tableau(schedule, nodes, "diffusers-ddim", final=final_alpha)
    x = 0.5 * START
    found = ours(network, tableau, Clipping("clip" if clip else "none", stale_eps=True), x)
    assert gap(found, theirs(scheduler, network, x)) < 1e-12


def test_the_inverse_shows_a_state_at_the_time_where_it_will_be(double):
    """DDIM's own encoding shows it at the time where it is."""
    scheduler, schedule, network = prepared(double.DDIMInverseScheduler, 50, clip_sample=False)
    nodes = make_nodes(schedule, "diffusers-leading", 50)[::-1]
    x = 0.5 * START
    apart = gap(ours(network, make_tableau(schedule, nodes), x=x), theirs(scheduler, network, x))
    assert apart == pytest.approx(0.135, rel=0.02)


# -- DDPMScheduler --------------------------------------------------------------------------------


class Learned(Network):
    """Also a variance, in [-1, 1]."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([super().__call__(x, t), torch.sin(3 * x)], dim=1)


@pytest.fixture
def drawn(monkeypatch):
    """DDPMScheduler has no way to give it noise: its source is replaced."""

    def give(z) -> None:
        name = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
        counter = iter(range(1, 10_000))
        monkeypatch.setattr(name, lambda *_, **__: z(next(counter)))

    return give


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("steps", [1, 10, 40])
@pytest.mark.parametrize("grid", ["leading", "linspace"])
def test_ddpm(double, drawn, grid, steps, kind):
    scheduler, schedule, network = prepared(
        double.DDPMScheduler, steps, variance_type=kind, timestep_spacing=grid
    )
    network = Learned(schedule) if kind == "learned_range" else network
    drawn(noise)
    expected = theirs(scheduler, network)
    nodes = make_nodes(schedule, f"diffusers-{grid}", steps)
    variance = "large" if kind == "fixed_large" else "posterior"
    tableau = make_tableau(schedule, nodes, "ddpm", variance=variance)
    assert gap(ours(network, tableau, Clipping("clip")), expected) < 1e-12


@pytest.mark.parametrize("prediction", PREDICTION)
def test_ddpm_targets_and_thresholding(double, drawn, prediction):
    config, clipping = CLIPPINGS["threshold"]
    scheduler, schedule, network = prepared(double.DDPMScheduler, 25, prediction, **config)
    drawn(noise)
    expected = theirs(scheduler, network)
    tableau = make_tableau(schedule, make_nodes(schedule, "diffusers-leading", 25), "ddpm")
    assert gap(ours(network, tableau, clipping), expected) < 1e-12


@pytest.mark.parametrize(("kind", "most"), [("fixed_small", 1e-9), ("fixed_large", 0.9)])
def test_ddpm_noises_its_last_step(double, drawn, kind, most):
    """Where the last timestep is above 0: √(1 - ᾱ_k) of it with fixed_large, 1e-10 with small."""
    scheduler, schedule, network = prepared(
        double.DDPMScheduler,
        10,
        variance_type=kind,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    drawn(noise)
    expected = theirs(scheduler, network)
    variance = "large" if kind == "fixed_large" else "posterior"
    nodes = make_nodes(schedule, "diffusers-trailing", 10)
    found = ours(network, make_tableau(schedule, nodes, "ddpm", variance=variance))
    left = schedule.sigma[100] if kind == "fixed_large" else 1e-10
    assert gap(found + left * noise(10), expected) < 1e-12
    assert 1e-11 < gap(found, expected) < most


# -- DPMSolverMultistepScheduler ------------------------------------------------------------------

MULTISTEP = {
    "linspace": "diffusers-multistep-linspace",
    "leading": "diffusers-multistep-leading",
    "trailing": "diffusers-trailing",
}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 3, 14, 20])
@pytest.mark.parametrize("grid", MULTISTEP)
def test_dpm_solver(double, grid, steps, order):
    scheduler, schedule, network = prepared(
        double.DPMSolverMultistepScheduler, steps, solver_order=order, timestep_spacing=grid
    )
    nodes = make_nodes(schedule, MULTISTEP[grid], steps)
    assert [k - 1 for k in nodes[:-1]] == scheduler.timesteps.tolist()
    tableau = make_tableau(schedule, nodes, "dpmpp", order=order, form="published")
    assert gap(ours(network, tableau), theirs(scheduler, network)) < 1e-12


@pytest.mark.parametrize("prediction", PREDICTION)
def test_dpm_solver_targets_and_thresholding(double, prediction):
    config, clipping = CLIPPINGS["threshold"]
    scheduler, schedule, network = prepared(
        double.DPMSolverMultistepScheduler, 20, prediction, **config
    )
    nodes = make_nodes(schedule, "diffusers-multistep-linspace", 20)
    found = ours(network, make_tableau(schedule, nodes, "dpmpp"), clipping)
    assert gap(found, theirs(scheduler, network)) < 1e-12


@pytest.mark.parametrize("steps", [1, 5, 40])
@pytest.mark.parametrize("grid", MULTISTEP)
def test_sde_dpm_solver(double, grid, steps):
    scheduler, schedule, network = prepared(
        double.DPMSolverMultistepScheduler,
        steps,
        algorithm_type="sde-dpmsolver++",
        timestep_spacing=grid,
    )
    expected = theirs(scheduler, network, variance_noise=noise)
    nodes = make_nodes(schedule, MULTISTEP[grid], steps)
    assert gap(ours(network, make_tableau(schedule, nodes, "sde-dpmpp")), expected) < 1e-12


@pytest.mark.parametrize(
    ("steps", "order", "apart"),
    [(10, 1, (0, 0)), (10, 2, (0.61, 0.61)), (10, 3, (1.2, 1.2)), (30, 3, (0, 0.108))],
)
def test_dpm_solver_that_ends_above_the_data(double, steps, order, apart):
    """``final_sigmas_type='sigma_min'``: the nodes end at 1.

    With ``lower_order_final`` below 15 steps, and always with ``euler_at_final``, they lower the
    last order there too, for which there is no reason: no level is infinite.
    """
    config = {"solver_order": order, "final_sigmas_type": "sigma_min"}
    make = double.DPMSolverMultistepScheduler
    scheduler, schedule, network = prepared(make, steps, lower_order_final=False, **config)
    nodes = (*make_nodes(schedule, "diffusers-multistep-linspace", steps)[:-1], 1)
    found = ours(network, make_tableau(schedule, nodes, "dpmpp", order=order, form="published"))
    assert gap(found, theirs(scheduler, network)) < 1e-12
    for option, expected in zip(("lower_order_final", "euler_at_final"), apart, strict=True):
        scheduler, _, _ = prepared(make, steps, **{**config, option: True})
        assert gap(found, theirs(scheduler, network)) == pytest.approx(expected, 0.02, abs=1e-12)


@pytest.mark.parametrize(("steps", "apart"), [(10, 0.00144), (50, 0.00619)])
def test_the_exact_third_order_is_another(double, steps, apart):
    scheduler, schedule, network = prepared(
        double.DPMSolverMultistepScheduler, steps, solver_order=3
    )
    nodes = make_nodes(schedule, "diffusers-multistep-linspace", steps)
    found = ours(network, make_tableau(schedule, nodes, "dpmpp", order=3))
    assert gap(found, theirs(scheduler, network)) == pytest.approx(apart, rel=0.02)


# -- UniPCMultistepScheduler ----------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 3, 14, 20])
@pytest.mark.parametrize("grid", MULTISTEP)
def test_unipc(double, grid, steps, order):
    scheduler, schedule, network = prepared(
        double.UniPCMultistepScheduler, steps, solver_order=order, timestep_spacing=grid
    )
    nodes = make_nodes(schedule, MULTISTEP[grid], steps)
    found = ours(network, make_tableau(schedule, nodes, "unipc", order=order))
    apart = gap(found, theirs(scheduler, network))
    if order == 3 and steps >= 15:
        # They lower the order of the last step but one at every number of steps, we below 15.
        assert 0.003 < apart < 0.006
    else:
        assert apart < 1e-12


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize(("order", "apart"), [(1, 0), (2, 0.319), (3, 0.259)])
def test_unipc_that_ends_above_the_data(double, order, apart, variant):
    """The nodes end at 1, where they lower the order unless told not to, and need not."""
    config = {"solver_order": order, "solver_type": variant, "final_sigmas_type": "sigma_min"}
    make = double.UniPCMultistepScheduler
    scheduler, schedule, network = prepared(make, 20, lower_order_final=False, **config)
    nodes = (*make_nodes(schedule, "diffusers-multistep-linspace", 20)[:-1], 1)
    found = ours(network, make_tableau(schedule, nodes, "unipc", order=order, variant=variant))
    assert gap(found, theirs(scheduler, network)) < 1e-12
    if variant == "bh2":
        scheduler, _, _ = prepared(make, 20, **config)
        assert gap(found, theirs(scheduler, network)) == pytest.approx(apart, 0.02, abs=1e-12)


def test_unipc_bh1_is_not_a_number_at_the_data(double):
    """B = -h is infinite in their last step, and times 0. Ours is DDIM's jump."""
    scheduler, schedule, network = prepared(
        double.UniPCMultistepScheduler, 10, solver_type="bh1", final_sigmas_type="zero"
    )
    assert theirs(scheduler, network).isnan().all()
    nodes = make_nodes(schedule, "diffusers-multistep-linspace", 10)
    assert ours(network, make_tableau(schedule, nodes, "unipc", variant="bh1")).isfinite().all()


@pytest.mark.parametrize("prediction", PREDICTION)
def test_unipc_targets_and_thresholding(double, prediction):
    config, clipping = CLIPPINGS["threshold"]
    scheduler, schedule, network = prepared(
        double.UniPCMultistepScheduler, 20, prediction, **config
    )
    nodes = make_nodes(schedule, "diffusers-multistep-linspace", 20)
    found = ours(network, make_tableau(schedule, nodes, "unipc"), clipping)
    assert gap(found, theirs(scheduler, network)) < 1e-12


# -- PNDMScheduler --------------------------------------------------------------------------------


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("grid", ["leading", "leading-offset"])
def test_pndm(double, grid, steps, to_one):
    scheduler, schedule, network = prepared(
        double.PNDMScheduler, steps, skip_prk_steps=True, set_alpha_to_one=to_one, **spacing(grid)
    )
    nodes = make_nodes(schedule, f"diffusers-{grid}", steps)
    if not to_one:
        nodes = (*nodes[:-1], 1) if nodes[-2] > 1 else nodes[:-1]
    if len(nodes) > 2 or to_one:
        tableau = make_tableau(schedule, nodes, "diffusers-pndm")
        assert tableau.calls == (len(nodes) if len(nodes) > 2 else 1)
        assert gap(ours(network, tableau), theirs(scheduler, network)) < 1e-12


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("steps", [4, 10, 30, 50])  # 30: the timesteps are 33 apart, an odd number
@pytest.mark.parametrize("grid", ["leading", "leading-offset"])
def test_pndm_with_its_runge_kutta_start(double, grid, steps, to_one):
    scheduler, schedule, network = prepared(
        double.PNDMScheduler, steps, set_alpha_to_one=to_one, **spacing(grid)
    )
    nodes = make_nodes(schedule, f"diffusers-{grid}", steps)
    if not to_one:
        nodes = (*nodes[:-1], 1) if nodes[-2] > 1 else nodes[:-1]
    if len(nodes) < 5:
        return
    tableau = make_tableau(schedule, nodes, "diffusers-pndm", start="runge-kutta")
    assert tableau.calls == len(nodes) - 1 + 9
    if len(nodes) - 1 == steps:
        assert gap(ours(network, tableau), theirs(scheduler, network)) < 1e-12


@pytest.mark.parametrize(
    "nodes", [(90, 50, 30, 10, 0), (100, 81, 64, 49, 36, 25, 0), (90, 60, 30, 0), (40, 0), (9, 4)]
)
def test_the_runge_kutta_start_is_of_order_4_on_any_nodes(nodes):
    """Each of the first steps but the last is the classical method in ρ, its stages at nodes."""
    schedule = Schedule.linear(100)
    tableau = make_tableau(schedule, nodes, "diffusers-pndm", start="runge-kutta")
    begun = min(3, len(nodes) - 2)
    assert tableau.calls == len(nodes) - 1 + 3 * begun
    for n in range(begun):
        stages = tableau.rows[4 * n : 4 * n + 4]
        high, low = nodes[n], nodes[n + 1]
        half = (high - low) // 2
        assert [row.k for row in stages] == [high - half, low + half, low, low]
        rise = float(schedule.rho[low] - schedule.rho[high])
        weights = [c / (stages[3].level.alpha * rise) for _, c in stages[3].eps]
        assert weights == pytest.approx([1 / 6, 1 / 3, 1 / 3, 1 / 6])


def test_pndm_starts_that_are_not_there(refuses):
    schedule = Schedule.linear(100)
    with refuses("unknown start 'rk'"):
        make_tableau(schedule, (90, 60, 30, 0), "diffusers-pndm", start="rk")


@pytest.mark.parametrize(("steps", "apart"), [(10, 0.0968), (50, 0.00198)])
def test_pndm_and_plms_differ_in_the_first_step_and_the_last(double, steps, apart):
    scheduler, schedule, network = prepared(
        double.PNDMScheduler, steps, skip_prk_steps=True, set_alpha_to_one=True
    )
    nodes = make_nodes(schedule, "diffusers-leading", steps)
    found = ours(network, make_tableau(schedule, nodes, "plms"))
    assert gap(found, theirs(scheduler, network)) == pytest.approx(apart, rel=0.02)


def test_pndm_mixes_velocities_of_several_levels(double):
    """Its history holds raw outputs, and v at one level means another thing than at the next."""
    scheduler, schedule, network = prepared(
        double.PNDMScheduler, 20, "v_prediction", skip_prk_steps=True, set_alpha_to_one=True
    )
    nodes = make_nodes(schedule, "diffusers-leading", 20)
    found = ours(network, make_tableau(schedule, nodes, "diffusers-pndm"))
    assert gap(found, theirs(scheduler, network)) == pytest.approx(0.0994, rel=0.02)


# -- as they come ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "nodes", "method", "steps"),
    [
        ("DDIMScheduler", {"clip_sample": False}, "diffusers-leading", "ddim", 10),
        ("DDIMScheduler", {"clip_sample": False}, "diffusers-leading", "ddim", 50),
        ("DDIMScheduler", {"clip_sample": False}, "diffusers-leading", "ddim", 1000),
        ("DPMSolverMultistepScheduler", {}, "diffusers-multistep-linspace", "dpmpp", 20),
        ("UniPCMultistepScheduler", {}, "diffusers-multistep-linspace", "unipc", 20),
        (
            "PNDMScheduler",
            {"skip_prk_steps": True, "set_alpha_to_one": True},
            "diffusers-leading",
            "diffusers-pndm",
            20,
        ),
    ],
)
def test_unmodified_in_float32(single, name, config, nodes, method, steps):
    """Their ᾱ is float32 too; ours is not."""
    scheduler, _, _ = prepared(getattr(single, name), steps, **config)
    schedule = Schedule.linear()
    network = Network(schedule)
    x = START.float()
    tableau = make_tableau(schedule, make_nodes(schedule, nodes, steps), method)
    found = ours(network, tableau, x=x)
    assert found.dtype == torch.float32
    assert gap(found, theirs(scheduler, network, x)) < 3e-5


FLOAT32 = [
    ("DDIMScheduler", {}, "diffusers-leading", "diffusers-ddim", 1000),
    (
        "DDIMScheduler",
        {"timestep_spacing": "trailing"},
        "diffusers-trailing",
        "diffusers-ddim",
        1000,
    ),
    (
        "DDIMScheduler",
        {"timestep_spacing": "linspace"},
        "diffusers-linspace",
        "diffusers-ddim",
        100,
    ),
    (
        "DDIMScheduler",
        {"timestep_spacing": "linspace"},
        "diffusers-linspace",
        "diffusers-ddim",
        999,
    ),
]


@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize("kind", [None, "clip"])
@pytest.mark.parametrize(("name", "config", "nodes", "method", "steps"), FLOAT32)
def test_ddim_unmodified_in_float32(single, name, config, nodes, method, steps, kind, prediction):
    extra, clipping = ({"clip_sample": False}, None) if kind is None else CLIPPINGS[kind]
    scheduler, _, _ = prepared(getattr(single, name), steps, prediction, **config, **extra)
    schedule = Schedule.linear()
    network = Network(schedule, prediction)
    x = START.float()
    tableau = make_tableau(schedule, make_nodes(schedule, nodes, steps), method)
    expected = theirs(scheduler, network, x, use_clipped_model_output=True)
    assert gap(ours(network, tableau, clipping, x), expected) < 3e-5


@pytest.mark.parametrize("steps", [100, 1000])
def test_ddim_with_noise_and_clipping(double, single, steps):
    """η > 0 beside clipping, in both precisions."""
    for schedulers, tolerance in ((double, 1e-12), (single, 3e-5)):
        x = START if schedulers is double else START.float()
        config, clipping = CLIPPINGS["clip"]
        scheduler, schedule, network = prepared(schedulers.DDIMScheduler, steps, **config)
        tableau = make_tableau(
            schedule, make_nodes(schedule, "diffusers-leading", steps), "ddim", eta=0.6
        )
        expected = theirs(
            scheduler,
            network,
            x,
            eta=0.6,
            variance_noise=lambda n, like=x: noise(n, like.dtype),
            use_clipped_model_output=True,
        )
        assert gap(ours(network, tableau, clipping, x), expected) < tolerance


@pytest.mark.parametrize("steps", [100, 1000])
@pytest.mark.parametrize("grid", GRIDS)
def test_ddim_up_to_as_many_steps_as_there_are(double, grid, steps):
    if grid == "leading-offset" and steps == 1000:
        return  # its first timestep would be T
    scheduler, schedule, network = prepared(
        double.DDIMScheduler, steps, clip_sample=False, **spacing(grid)
    )
    nodes = make_nodes(schedule, f"diffusers-{grid}", steps)
    tableau = make_tableau(schedule, nodes, "diffusers-ddim")
    assert gap(ours(network, tableau), theirs(scheduler, network)) < 1e-12


def test_ddim_inverse_unmodified_in_float32(single):
    scheduler, _, _ = prepared(single.DDIMInverseScheduler, 1000, clip_sample=False)
    schedule = Schedule.linear()
    network, x = Network(schedule), (0.5 * START).float()
    nodes = make_nodes(schedule, "diffusers-leading", 1000)[::-1]
    tableau = make_tableau(schedule, nodes, "diffusers-ddim")
    assert gap(ours(network, tableau, x=x), theirs(scheduler, network, x)) < 3e-5


@pytest.mark.parametrize("steps", [100, 1000])
def test_ddpm_unmodified_in_float32(single, drawn, steps):
    scheduler, _, _ = prepared(single.DDPMScheduler, steps)
    schedule = Schedule.linear()
    network, x = Network(schedule), START.float()
    drawn(lambda n: noise(n, torch.float32))
    tableau = make_tableau(schedule, make_nodes(schedule, "diffusers-leading", steps), "ddpm")
    found = ours(network, tableau, Clipping("clip"), x)
    assert gap(found, theirs(scheduler, network, x)) < 3e-5
