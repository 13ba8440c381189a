"""Samplers as scheduler configurations, against diffusers' schedulers that are made from them."""

import json
from importlib import import_module

import pytest
import torch

import ddim
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.interop.export import export_scheduler
from ddim.samplers.loop import final, integrate
from ddim.samplers.methods.learned import learned
from tiny import tiny_unet

# diffusers hands tensors to NumPy in a way that NumPy will not take forever.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

T = 100
LISTED = (100, 83, 60, 33, 12, 4, 1, 0)


def model(clipping=None, target=Target.EPS):
    net = tiny_unet().requires_grad_(False)
    schedule = ddim.Schedule.linear(T, 1e-3, 0.2)
    return ddim.Model(
        net, schedule, target, (1, 8, 8), clipping=clipping or Clipping(), name="tiny"
    )


MODEL = model()


def theirs(export, steps, x, generator=None):
    """What diffusers draws with the scheduler of that configuration."""
    kind = getattr(import_module("diffusers"), export.config["_class_name"])
    scheduler = kind.from_config(export.config)
    if any("set_timesteps" in warning for warning in export.warnings):
        scheduler.set_timesteps(timesteps=list(export.timesteps))
    else:
        scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == list(export.timesteps)
    for t in scheduler.timesteps:
        options = {} if generator is None else {"generator": generator}
        output = MODEL.net(x, t.expand(len(x)))
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


def gap(found, expected):
    """The largest difference, where the largest value is 1."""
    return float((found - expected).abs().max() / expected.abs().max())


def ours(tableau, x):
    return final(integrate(MODEL.denoiser(), tableau, x))[0]


@pytest.fixture
def x():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("nodes", ["trailing", "list"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ddim", {}),
        ("dpmpp", {"order": 1}),
        ("dpmpp", {"order": 2}),
        ("dpmpp", {"order": 3, "form": "published"}),
    ],
)
@torch.no_grad()
def test_diffusers_follows(x, nodes, method, options):
    nodes = ddim.make_nodes(MODEL.schedule, "uniform", 10) if nodes == "trailing" else LISTED
    export = export_scheduler(MODEL, method, nodes=nodes, **options)
    tableau = ddim.make_tableau(MODEL.schedule, nodes, method, **options)
    found = theirs(export, len(nodes) - 1, x)
    assert gap(found, ours(tableau, x)) < 2e-5
    assert len(export.warnings) == (nodes == LISTED)
    assert json.loads(json.dumps(export.config)) == export.config


@pytest.mark.parametrize("steps", [5, 20])
@torch.no_grad()
def test_unipc_is_followed_on_its_own_grid(x, steps):
    nodes = ddim.make_nodes(MODEL.schedule, "uniform", steps)
    export = export_scheduler(MODEL, "unipc", nodes=nodes, order=2)
    assert export.warnings == ()
    tableau = ddim.make_tableau(MODEL.schedule, nodes, "unipc", order=2)
    assert gap(theirs(export, steps, x), ours(tableau, x)) < 2e-5
    (warning,) = export_scheduler(MODEL, "unipc", nodes=LISTED).warnings
    assert "takes no list of nodes" in warning


@pytest.mark.parametrize("variance", ["posterior", "large"])
@torch.no_grad()
def test_ddpm_is_followed_on_a_list(x, variance):
    """With one noise for both: theirs is recorded and given to ours."""
    export = export_scheduler(MODEL, "ddpm", nodes=LISTED, variance=variance)
    assert export.config["_class_name"] == "DDPMScheduler"
    generator = torch.Generator().manual_seed(5)
    found = theirs(export, len(LISTED) - 1, x, generator)
    generator = torch.Generator().manual_seed(5)

    def noise(state):
        return torch.randn(x.shape, generator=generator)

    tableau = ddim.make_tableau(MODEL.schedule, LISTED, "ddpm", variance=variance)
    (expected,) = final(integrate(MODEL.denoiser(), tableau, x, noise))
    assert gap(found, expected) < 2e-5


def test_what_ddpm_does_otherwise_is_said():
    nodes = ddim.make_nodes(MODEL.schedule, "uniform", 10)
    noised, listed = export_scheduler(MODEL, "ddpm", nodes=nodes, variance="large").warnings
    assert "noised there" in noised and "set_timesteps(timesteps=[99, 89" in listed
    assert len(export_scheduler(MODEL, "ddpm", nodes=nodes).warnings) == 1
    assert len(export_scheduler(MODEL, "ddpm", nodes=LISTED, variance="large").warnings) == 1


@torch.no_grad()
def test_weights_are_left_out_and_that_is_said(x):
    weights = [[], [-0.4], [-0.3, 0.1]]
    export = export_scheduler(MODEL, "learned", nodes=LISTED, weights=weights)
    assert "weights are left out" in export.warnings[0]
    # What takes their place is DPM-Solver++ of order 2 on the same nodes.
    found = theirs(export, len(LISTED) - 1, x)
    tableau = ddim.make_tableau(MODEL.schedule, LISTED, "dpmpp", order=2)
    assert gap(found, ours(tableau, x)) < 2e-5
    exact = ours(learned(MODEL.schedule, LISTED, weights=weights), x)
    assert gap(found, exact) > 1e-3


def test_clipping_that_is_not_there_is_said():
    clipping = model(Clipping("clip"))
    (warning,) = export_scheduler(clipping, steps=7).warnings
    assert "does not clip" in warning
    assert export_scheduler(clipping, steps=10).warnings == ()


def test_what_diffusers_has_not(refuses):
    for method, options, match in (
        ("heun", {}, "no scheduler that runs heun"),
        ("dpmpp", {"order": 3}, "published form"),
        ("ddim", {"eta": 0.5}, "at every call"),
        ("ddim", {"nothing": 1}, "no option 'nothing'"),
    ):
        with refuses(match):
            export_scheduler(MODEL, method, nodes=LISTED, **options)
    with refuses("falls to node 0"):
        export_scheduler(MODEL, nodes=LISTED[:-1])
    with refuses("flow"):
        flow = ddim.Model(MODEL.net, ddim.Schedule.flow(T), Target.FLOW, (1, 8, 8))
        export_scheduler(flow, nodes=LISTED)


@torch.no_grad()
def test_a_folder_with_the_scheduler_opens_in_diffusers(tmp_path, x):
    from diffusers import DDPMPipeline

    nodes = ddim.make_nodes(MODEL.schedule, "uniform", 5)
    MODEL.save(tmp_path / "m", export_scheduler(MODEL, "dpmpp", nodes=nodes, order=2).config)
    pipe = DDPMPipeline.from_pretrained(tmp_path / "m")
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    images = pipe(2, num_inference_steps=5, generator=generator, output_type="np").images
    start = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    tableau = ddim.make_tableau(MODEL.schedule, nodes, "dpmpp", order=2)
    expected = (ours(tableau, start) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(images - expected).max() < 5e-5
    # And here, where any sampler runs with any scheduler's noise.
    assert ddim.load(tmp_path / "m").schedule.T == T


def test_the_sampler_that_calibration_found_is_its_method():
    sampler = ddim.Sampler("plms", nodes=LISTED, order=2)
    with pytest.raises(ddim.InputError, match="no scheduler that runs plms"):
        export_scheduler(MODEL, sampler)
