"""What programs do with a scheduler beside stepping: save, copy, preview, give lists and noise."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    LDMPipeline,
    PNDMScheduler,
    RePaintScheduler,
    UNet2DModel,
    VQModel,
)

import ddim
from ddim.checkpoints.scheduler import parse_scheduler
from ddim.denoisers.clipping import Clipping
from ddim.interop.diffusers import diffusers_scheduler
from ddim.interop.scheduler import TableauScheduler

BASE = {"num_train_timesteps": 60, "beta_start": 1e-3, "beta_end": 0.3}
SHAPE = (2, 1, 4, 4)


def theirs(kind=DDIMScheduler, **options):
    return kind(**{**BASE, "timestep_spacing": "trailing", **options})


def drawn(scheduler, steps=None, seed=0, **options):
    """The result of all timesteps, with a smooth made-up network."""
    if steps is not None:
        scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = 0.6 * torch.tanh(x) + 0.01 * float(t) * x
        x = scheduler.step(output, t, x, generator=generator, **options).prev_sample
    return x


MADE = {
    "flow": lambda: diffusers_scheduler(ddim.Schedule.flow(40), "heun", target="flow"),
    "listed": lambda: diffusers_scheduler(ddim.Schedule.sigmoid(40), nodes=[40, 22, 7, 0]),
    "exploding": lambda: diffusers_scheduler(
        ddim.Schedule.from_alpha_sigma([1.0] * 31, np.linspace(0, 9, 31)),
        clipping=Clipping("threshold", 1.5, 0.9),
    ),
    "noise": lambda: diffusers_scheduler(theirs(), "ddim:eta=0.6:nodes=quadratic"),
    "stale": lambda: diffusers_scheduler(theirs(), clipping=Clipping("clip", 0.7, stale_eps=True)),
    "weights": lambda: diffusers_scheduler(
        theirs(), "learned", nodes=[60, 30, 9, 0], weights=[[], [-0.4], [0.1, 0.2]]
    ),
    "zero": lambda: diffusers_scheduler(
        theirs(rescale_betas_zero_snr=True, prediction_type="v_prediction"), "unipc:order=3"
    ),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_saved_opened_pickled_and_copied_it_draws_the_same(make, tmp_path):
    scheduler = make()
    scheduler.save_pretrained(tmp_path)
    copies = [
        TableauScheduler.from_pretrained(tmp_path),
        TableauScheduler.from_config(scheduler.config),
    ]
    copies += [pickle.loads(pickle.dumps(scheduler)), copy.deepcopy(scheduler)]
    steps = 3
    first = drawn(scheduler, steps)
    assert first.isfinite().all()
    copies.append(pickle.loads(pickle.dumps(scheduler)))  # after a run, too
    for other in copies:
        assert torch.equal(drawn(other, steps), first)
        assert other.sampler == scheduler.sampler
    # A model folder with this file is read with the same noise.
    schedule, target, _ = parse_scheduler(
        json.loads((tmp_path / scheduler.config_name).read_text())
    )
    assert np.array_equal(schedule.sigma, scheduler.schedule.sigma)
    assert target is scheduler.target


def test_a_pipeline_is_saved_and_opened_with_it(tmp_path):
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8,), "norm_num_groups": 4}
    unet = UNet2DModel(
        sample_size=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        **sizes,
    )
    vqvae = VQModel(num_vq_embeddings=8, latent_channels=3, **sizes)
    pipe = LDMPipeline(vqvae, unet, diffusers_scheduler(theirs(), "dpmpp:order=3"))

    def images(pipe):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        return pipe(1, generator=generator, num_inference_steps=4, output_type="np").images

    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(again.scheduler, TableauScheduler)
    assert np.array_equal(images(again), images(pipe))


def test_a_run_under_way_is_not_copied_and_a_file_not_run(tmp_path, refuses):
    scheduler = diffusers_scheduler(theirs())
    scheduler.set_timesteps(3)
    x = torch.ones(SHAPE)
    scheduler.step(0.1 * x, scheduler.timesteps[0], x)
    with refuses("copied before or after a run"):
        copy.deepcopy(scheduler)
    own = tmp_path / "mine.py"
    own.write_text(
        "import ddim\n\n\n"
        "def third(schedule, nodes, *, part: float = 0.5):\n"
        "    return ddim.make_tableau(schedule, nodes, 'ddim')\n"
    )
    made = diffusers_scheduler(theirs(), f"{own}:third:part=0.2")
    made.save_pretrained(tmp_path / "saved")
    own.write_text("raise RuntimeError('this was run')")
    with refuses("is a file of yours, which a saved scheduler does not run"):
        TableauScheduler.from_pretrained(tmp_path / "saved")


# -- what a step is given -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("method", "kind", "options"),
    [
        ("ddim:eta=0.7", DDIMScheduler, {"eta": 0.7}),
        ("sde-dpmpp", DPMSolverMultistepScheduler, {}),
    ],
)
def test_noise_that_is_given_is_what_is_added(method, kind, options):
    own = {"clip_sample": False}
    if kind is DPMSolverMultistepScheduler:
        own = {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero"}
    base = theirs(kind, **own)
    mine = diffusers_scheduler(base, method)
    found = []
    for scheduler in (base, mine):
        scheduler.set_timesteps(5)
        x = torch.ones(SHAPE)
        for n, t in enumerate(scheduler.timesteps):
            z = torch.full(SHAPE, 2.0 - n)
            x = scheduler.step(0.3 * x, t, x, variance_noise=z, **options).prev_sample
        found.append(x)
    assert torch.allclose(*found, atol=1e-4)


def test_each_step_draws_from_the_generator_that_it_is_given():
    scheduler = diffusers_scheduler(theirs(clip_sample=False), "ddpm")
    found = []
    for seeds in ((1, 2, 3), (1, 2, 4), (1, 5, 3)):
        scheduler.set_timesteps(4)
        x, states = torch.zeros(SHAPE), []
        for t, seed in zip(scheduler.timesteps, (*seeds, 0), strict=True):
            generator = torch.Generator().manual_seed(seed)
            x = scheduler.step(0.1 * x, t, x, generator=generator).prev_sample
            states.append(x)
        found.append(states)
    assert [torch.equal(found[0][n], found[1][n]) for n in range(3)] == [True, True, False]
    assert [torch.equal(found[0][n], found[2][n]) for n in range(2)] == [True, False]


def test_what_a_step_would_not_use_is_refused(refuses):
    plain, noisy = diffusers_scheduler(theirs()), diffusers_scheduler(theirs(), "ddpm")
    for scheduler in (plain, noisy):
        scheduler.set_timesteps(4)
    x = z = torch.ones(SHAPE)
    t = plain.timesteps[0]
    with refuses("ddim draws no noise: variance_noise has no use"):
        plain.step(x, t, x, variance_noise=z)
    with refuses("either a generator or variance_noise"):
        noisy.step(x, t, x, variance_noise=z, generator=torch.Generator())
    with refuses(r"variance_noise is \(1, 1, 4, 4\) for a state of \(2, 1, 4, 4\)"):
        noisy.step(x, t, x, variance_noise=z[:1])
    with refuses(r"the network returned \(1, 1, 4, 4\) for a state of \(2, 1, 4, 4\)"):
        plain.step(x[:1], t, x)
    with refuses("eta is a number, not <torch"):
        plain.step(x, t, x, torch.Generator())
    with pytest.raises(TypeError, match="s_noise"):
        plain.step(x, t, x, s_noise=1.1)
    plain.step(x, t, x)


@pytest.mark.parametrize("recomputed", [True, False])
def test_which_eps_goes_with_a_clipped_x0(recomputed):
    base = theirs(clip_sample=True)
    ours = drawn(diffusers_scheduler(base), 6, use_clipped_model_output=recomputed)
    assert torch.allclose(ours, drawn(base, 6, use_clipped_model_output=recomputed), atol=1e-5)
    if recomputed:
        assert torch.equal(ours, drawn(diffusers_scheduler(base), 6))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_step_says_what_it_takes_for_the_image(prediction):
    base = theirs(prediction_type=prediction, clip_sample=True)
    mine = diffusers_scheduler(base)
    base.set_timesteps(3), mine.set_timesteps(3)
    x = torch.linspace(-2, 2, 32).view(SHAPE)
    for t in base.timesteps:
        one, other = (s.step(0.4 * x, t, x) for s in (base, mine))
        assert torch.allclose(one.pred_original_sample, other.pred_original_sample, atol=1e-5)
    mine.set_timesteps(3)
    state, x0 = mine.step(0.4 * x, mine.timesteps[0], x, return_dict=False)
    assert torch.equal(x0, mine.target.split(0.4 * x, x, mine.schedule.level(60))[0].clamp(-1, 1))
    assert state.shape == x0.shape


# -- nodes ----------------------------------------------------------------------------------------


def test_a_list_of_timesteps():
    times = [57, 40, 12, 3]
    base, mine = theirs(DDPMScheduler, clip_sample=False), diffusers_scheduler(theirs(), "ddpm")
    base.set_timesteps(timesteps=times), mine.set_timesteps(timesteps=torch.tensor(times))
    assert mine.timesteps.tolist() == times and mine.num_inference_steps == 4
    for t in times:
        assert int(mine.previous_timestep(t)) == int(base.previous_timestep(t))
    one = drawn(diffusers_scheduler(theirs(), "heun", nodes=[58, 41, 13, 4, 0]), 4)
    other = diffusers_scheduler(theirs(), "heun:nodes=quadratic")
    other.set_timesteps(timesteps=times)
    assert torch.equal(drawn(other), one)
    assert other.order == 2


def test_lists_that_are_none(refuses):
    scheduler = diffusers_scheduler(theirs(), steps=3)
    for times in ([30, 40, 2], [60, 2, 1], [20, 20, 1], [3.5, 2, 1], [2, 1, -1], []):
        with refuses("timesteps are whole numbers that fall, from 59 at most"):
            scheduler.set_timesteps(timesteps=times)
    with refuses("says steps = 3, which is not 2"):
        scheduler.set_timesteps(timesteps=[30, 2])
    for both in ((3, [30, 20, 2]), (None, None)):
        with refuses("either the number of steps or the timesteps"):
            scheduler.set_timesteps(both[0], timesteps=both[1])
    with refuses("which is not"):
        diffusers_scheduler(theirs(), nodes=[60, 5, 0]).set_timesteps(timesteps=[50, 4])


def test_a_run_begins_where_it_was_said(refuses):
    scheduler = diffusers_scheduler(theirs(), "heun")
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(2 * scheduler.order)
    x = torch.ones(SHAPE)
    with refuses("step 59 was given where set_begin_index said 39"):
        scheduler.step(x, 59, x)
    scheduler.step(x, 39, x)
    with refuses("11 timesteps: none has the index 11"):
        scheduler.set_begin_index(11)
    scheduler.set_timesteps(6)
    assert scheduler.begin_index is None


def test_without_set_timesteps_a_run_has_all_of_them():
    base = theirs(DDPMScheduler, clip_sample=False)
    mine = diffusers_scheduler(base, "ddpm")
    one, other = drawn(base), drawn(mine)
    assert torch.allclose(one, other, atol=1e-3 * float(one.abs().max()))
    assert mine.num_inference_steps == 60


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_runge_kutta_start_in_a_pipeline(spacing):
    base = theirs(PNDMScheduler, timestep_spacing=spacing, set_alpha_to_one=True)
    mine = diffusers_scheduler(
        base, "diffusers-pndm", nodes=f"diffusers-{spacing}", start="runge-kutta"
    )
    first, second = drawn(mine, 6), drawn(mine, 6)
    assert torch.equal(first, second) and len(mine.timesteps) == 15
    if spacing == "leading":  # on others theirs steps to nodes that are not next
        assert torch.allclose(first, drawn_without_noise(base, 6), atol=1e-4)


def drawn_without_noise(scheduler, steps):
    scheduler.set_timesteps(steps)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(0.6 * torch.tanh(x) + 0.01 * float(t) * x, t, x).prev_sample
    return x


def test_an_edit_in_a_pipeline_keeps_the_stride_of_the_list():
    """From the middle on, diffusers' DDIM steps on as it does in a whole run."""
    base = theirs(clip_sample=False, timestep_spacing="leading")
    mine = diffusers_scheduler(base, "diffusers-ddim", nodes="diffusers-leading")
    found = []
    for scheduler in (base, mine):
        scheduler.set_timesteps(7)
        x = torch.linspace(-1, 1, 32).view(SHAPE)
        for t in scheduler.timesteps[3:]:
            x = scheduler.step(0.3 * x, t, x).prev_sample
        found.append(x)
    assert torch.allclose(*found, atol=1e-5)


# -- the noise schedule ---------------------------------------------------------------------------


def test_the_tables_that_programs_read():
    base = theirs()
    mine = diffusers_scheduler(base)
    for name in ("betas", "alphas", "alphas_cumprod"):
        assert torch.allclose(getattr(mine, name), getattr(base, name), atol=1e-6)
    assert not hasattr(diffusers_scheduler(ddim.Schedule.flow(9), target="flow"), "alphas_cumprod")
    x, z = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 31, 59])
    assert torch.allclose(mine.get_velocity(x, z, t), base.get_velocity(x, z, t), atol=1e-6)


def test_times_without_a_level(refuses):
    mine = diffusers_scheduler(theirs())
    x = torch.zeros(1, 1, 2, 2)
    for call in (mine.add_noise, mine.get_velocity):
        for t in (60, 3.5, -2):
            with refuses("timesteps are whole numbers from 0 to 59"):
                call(x, x, torch.tensor([t]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: DDIMInverseScheduler(**BASE), "goes from data to noise: .* rising nodes"),
        (lambda: DPMSolverMultistepInverseScheduler(**BASE), "goes from data to noise"),
        (lambda: RePaintScheduler(), "steps that go back and forth"),
        (lambda: DDPMScheduler(variance_type="learned"), "'learned' is a variance itself"),
        (lambda: DDIMScheduler, "a scheduler of diffusers or a Schedule is needed, not <class"),
        (lambda: DPMSolverMultistepScheduler(use_flow_sigmas=True), "flow noise contradicts"),
    ],
)
def test_schedulers_of_another_direction_or_meaning(source, message, refuses):
    with refuses(message):
        diffusers_scheduler(source())


def test_the_way_that_a_refused_inverse_points_to():
    scheduler = diffusers_scheduler(theirs(), nodes=[0, 20, 40, 60])
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [0, 19, 39]
    assert int(scheduler.previous_timestep(19)) == 39
    assert drawn(scheduler).isfinite().all()
