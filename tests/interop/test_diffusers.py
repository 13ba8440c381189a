"""Our samplers in diffusers' own pipelines, against those pipelines with their own schedulers."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)

import ddim
from ddim.base.errors import InputError
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.network import NetworkDenoiser
from ddim.interop.diffusers import diffusers_scheduler
from ddim.noise.nodes import make_nodes
from ddim.samplers.lookup import METHODS
from ddim.samplers.loop import final, integrate
from ddim.samplers.sampler import make_tableau

THEIRS = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.2}
TRAILING = {**THEIRS, "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    ).eval()


@pytest.fixture(scope="module")
def latent():
    """A class-conditional latent diffusion model with tiny random weights."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    ).eval()
    for parameter in transformer.parameters():  # adaptive norms start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",)
    ).eval()
    pipe = DiTPipeline(transformer, vae, DDIMScheduler(**TRAILING, clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, steps, **options):
    generator = torch.Generator().manual_seed(3)
    if isinstance(pipe, DiTPipeline):
        return pipe(
            [1, 5], num_inference_steps=steps, generator=generator, output_type="np", **options
        ).images
    # Theirs keeps the old eps beside a clipped x0 unless it is told to.
    return pipe(
        2,
        num_inference_steps=steps,
        generator=generator,
        output_type="np",
        use_clipped_model_output=True,
    ).images


@pytest.mark.parametrize("steps", [1, 4, 10, 100])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_draws_what_diffusers_ddim_draws(unet, steps, clip):
    pipe = DDIMPipeline(unet, DDIMScheduler(**TRAILING, clip_sample=clip))
    pipe.set_progress_bar_config(disable=True)
    theirs = drawn(pipe, steps)
    pipe.scheduler = diffusers_scheduler(pipe.scheduler)
    assert np.abs(drawn(pipe, steps) - theirs).max() < 2e-5


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_latent_diffusion_with_classes_and_guidance(latent, guidance):
    own = latent.scheduler
    theirs = drawn(latent, 5, guidance_scale=guidance)
    latent.scheduler = diffusers_scheduler(own)
    ours = drawn(latent, 5, guidance_scale=guidance)
    latent.scheduler = own
    assert np.abs(ours - theirs).max() < 2e-5


def test_ddpm_with_the_pipelines_generator(unet):
    """Noise for every step but the last, drawn in the pipeline's order."""
    pipe = DDIMPipeline(unet, DDIMScheduler(**THEIRS, clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDPMScheduler(**TRAILING, clip_sample=False)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 1, 8, 8, generator=generator)
    pipe.scheduler.set_timesteps(100)
    for t in pipe.scheduler.timesteps:
        output = unet(x, t).sample
        x = pipe.scheduler.step(output, t, x, generator=generator).prev_sample
    ours = diffusers_scheduler(pipe.scheduler, "ddpm")
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(2, 1, 8, 8, generator=generator)
    ours.set_timesteps(100)
    for t in ours.timesteps:
        y = ours.step(unet(y, t).sample, t, y, generator=generator).prev_sample
    assert (x - y).abs().max() < 1e-3 * x.abs().max()


@pytest.mark.parametrize(
    "method", sorted(name for name, m in METHODS.items() if not (m.program or m.needs))
)
def test_every_method_in_a_pipeline_is_the_loop(unet, method):
    """With inner stages, two states or fresh noise: the rows that integrate runs."""
    source = DDIMScheduler(**TRAILING, clip_sample=False)
    scheduler = diffusers_scheduler(source, method, nodes="quadratic")
    scheduler.set_timesteps(6)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    state, generator = x * scheduler.init_noise_sigma, torch.Generator().manual_seed(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = unet(state, t).sample
            state = scheduler.step(output, t, state, generator=generator).prev_sample
    schedule = ddim.Schedule.linear(100, 1e-3, 0.2)
    tableau = make_tableau(schedule, make_nodes(schedule, "quadratic", 6), method)
    again = torch.Generator().manual_seed(4)
    denoiser = NetworkDenoiser(lambda z, t: unet(z, t).sample)
    (looped,) = final(
        integrate(denoiser, tableau, x, lambda _: torch.randn(x.shape, generator=again))
    )
    assert len(scheduler.timesteps) == tableau.calls
    assert torch.allclose(state, looped, rtol=1e-4, atol=1e-4 * looped.abs().max().item())


def test_schedulers_that_are_something_else_of_the_same_noise():
    source = DPMSolverMultistepScheduler(**THEIRS, prediction_type="v_prediction")
    scheduler = diffusers_scheduler(source, "dpmpp", order=3)
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [99, 74, 49, 24]


def test_noise_is_added_as_diffusers_adds_it():
    theirs = DDIMScheduler(**THEIRS)
    ours = diffusers_scheduler(theirs)
    x, z = torch.randn(2, 3, 1, 8, 8)
    t = torch.tensor([0, 50, 99])
    assert torch.allclose(ours.add_noise(x, z, t), theirs.add_noise(x, z, t), atol=1e-6)


def test_own_nodes_and_bad_names():
    source = DDIMScheduler(**THEIRS)
    chosen = diffusers_scheduler(source, nodes=[100, 40, 0], clipping=Clipping("threshold"))
    chosen.set_timesteps(2)
    assert chosen.timesteps.tolist() == [99, 39]
    with pytest.raises(InputError, match="3 nodes are 2 steps, not 5"):
        chosen.set_timesteps(5)
    with pytest.raises(InputError, match="did you mean 'ddim'"):
        diffusers_scheduler(source, "dimm")
    with pytest.raises(InputError, match="no option 'order'"):
        diffusers_scheduler(source, "ddim", order=2)


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        ("ddim", 1),
        ("unipc", 1),
        ("heun", 2),
        ("dpm-solver-2", 2),
        ("dpm-solver-3", 3),
        ("edict", 2),
        ("diffusers-pndm", 1),
    ],
)
def test_trap_pipelines_that_begin_later_find_the_step(method, calls):
    """Their first timestep is the one of index order·n, n being the step; diffusers' Heun has 2."""
    scheduler = diffusers_scheduler(DDIMScheduler(**TRAILING), method)
    assert scheduler.order == calls
    scheduler.set_timesteps(10)
    for n in range(0 if method == "diffusers-pndm" else 10):
        assert round(float(scheduler.timesteps[n * scheduler.order])) == 99 - 10 * n
    if calls > 1:
        x = torch.ones(1, 1, 8, 8)
        for t in scheduler.timesteps[4 * scheduler.order :]:
            x = scheduler.step(0.1 * x, t, x).prev_sample
        assert scheduler.finished
        nodes = (60, 50, 40, 30, 20, 10, 0)
        tableau = make_tableau(ddim.Schedule.linear(100, 1e-3, 0.2), nodes, method)
        denoiser = Clipping("clip").wrap(NetworkDenoiser(lambda x, t: 0.1 * x))
        (expected,) = final(integrate(denoiser, tableau, torch.ones(1, 1, 8, 8)))[:1]
        assert torch.allclose(x, expected, atol=1e-6)


@torch.no_grad()
def test_beginning_later_as_image_to_image_does(unet):
    """From a noised image at a later timestep, as diffusers' own DDIM goes on from there."""
    clean = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    own = DDIMScheduler(**TRAILING, clip_sample=False)
    found = []
    for scheduler in (own, diffusers_scheduler(own)):
        scheduler.set_timesteps(10)
        taken = scheduler.timesteps[4:]
        x = scheduler.add_noise(clean, noise, taken[:1].expand(2))
        for t in taken:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
        found.append(x)
    assert (found[0] - found[1]).abs().max() < 2e-5


def test_steps_out_of_order_are_refused(refuses):
    scheduler = diffusers_scheduler(DDIMScheduler(**TRAILING))
    x = torch.zeros(1, 1, 8, 8)
    scheduler.set_timesteps(4)
    with refuses("no node to begin at"):
        scheduler.step(x, 3, x)
    first, second, third, last = scheduler.timesteps
    x = scheduler.step(x, first, x).prev_sample
    with refuses("was given where the sampler is at"):
        scheduler.step(x, third, x)
    for t in (second, third, last):
        x = scheduler.step(x, t, x).prev_sample
    with refuses("called anew for every run"):
        scheduler.step(x, last, x)
    scheduler.set_timesteps(4)
    scheduler.step(x, first, x)


@torch.no_grad()
def test_unconditional_latent_diffusion():
    """LDMPipeline: its own DDIM and ours draw the same."""
    from diffusers import LDMPipeline, VQModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    ).eval()
    vqvae = VQModel(
        block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=16, latent_channels=3
    ).eval()
    pipe = LDMPipeline(vqvae, unet, DDIMScheduler(**TRAILING, clip_sample=False))
    pipe.set_progress_bar_config(disable=True)

    def run():
        generator = torch.Generator().manual_seed(2)
        return pipe(2, generator=generator, num_inference_steps=5, output_type="np").images

    theirs = run()
    pipe.scheduler = diffusers_scheduler(pipe.scheduler)
    assert abs(run() - theirs).max() < 2e-5


@torch.no_grad()
def test_a_conditional_unet_with_guidance():
    """A text-conditional network, guided by hand as Stable Diffusion's model does it."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randn(2, 5, 8, generator=generator)
    start = torch.randn(1, 4, 8, 8, generator=generator)
    own = DDIMScheduler(**TRAILING, clip_sample=False)
    found = []
    for scheduler in (own, diffusers_scheduler(own)):
        scheduler.set_timesteps(10)
        x = start * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            doubled = scheduler.scale_model_input(torch.cat([x, x]), t)
            none, text = unet(doubled, t, prompt).sample.chunk(2)
            x = scheduler.step(none + 3.0 * (text - none), t, x).prev_sample
        found.append(x)
    assert (found[0] - found[1]).abs().max() < 2e-5 * found[0].abs().max()


@pytest.mark.parametrize(
    "theirs",
    [
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {**THEIRS, "rescale_betas_zero_snr": True, "clip_sample": True, "clip_sample_range": 2.0},
        {"trained_betas": np.linspace(0.01, 0.2, 30).tolist(), "num_train_timesteps": 30},
    ],
)
def test_trap_the_noise_schedule_goes_on_to_the_next_scheduler(theirs):
    source = DDIMScheduler(**{"clip_sample": False, **theirs})
    ours = diffusers_scheduler(diffusers_scheduler(source, "unipc"), "dpmpp")
    assert isinstance(repr(ours), str)
    again = DDIMScheduler.from_config(ours.config)
    assert torch.allclose(again.alphas_cumprod, source.alphas_cumprod, rtol=1e-5, atol=1e-9)
    for key in ("prediction_type", "clip_sample", "clip_sample_range", "num_train_timesteps"):
        assert again.config[key] == source.config[key]
    if not theirs.get("rescale_betas_zero_snr"):
        other = DPMSolverMultistepScheduler.from_config(ours.config)
        assert torch.allclose(other.alphas_cumprod, source.alphas_cumprod, rtol=1e-5)
    flow = diffusers_scheduler(ddim.Schedule.flow(50), target="flow")
    assert flow.config.num_train_timesteps == 50


def test_trap_an_eta_that_the_sampler_does_not_have_is_refused(unet):
    pipe = DDIMPipeline(unet, DDIMScheduler(**TRAILING))
    pipe.set_progress_bar_config(disable=True)

    def drawn(scheduler, eta):
        pipe.scheduler = scheduler
        generator = torch.Generator().manual_seed(0)
        return pipe(num_inference_steps=4, generator=generator, eta=eta, output_type="np").images

    theirs = DDIMScheduler(**TRAILING, clip_sample=False)
    ours = diffusers_scheduler(theirs, "ddim", eta=1.0)
    assert np.array_equal(drawn(ours, 0.0), drawn(ours, 1.0))
    for scheduler in (diffusers_scheduler(theirs), diffusers_scheduler(theirs, "unipc")):
        with pytest.raises(InputError, match="made without η = 1"):
            drawn(scheduler, 1.0)


def test_a_state_that_was_handed_out_stays_what_it_is():
    """What a model makes of it before the next step goes into the sampler, not back into it."""
    scheduler = diffusers_scheduler(ddim.Schedule.linear(1000), "dpmpp")
    scheduler.set_timesteps(4)
    x = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    handed, copies = [], []
    for t in scheduler.timesteps:
        state = scheduler.step(0.1 * x + 0.2, t, x).prev_sample
        handed.append(state)
        copies.append(state.clone())
        x = 0.5 * state + 0.1
    assert all(map(torch.equal, handed, copies))
