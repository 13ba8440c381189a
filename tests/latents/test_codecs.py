"""Codecs: round trips, their slopes, and what they refuse."""

import math

import pytest
import torch

from ddim.base.errors import InputError
from ddim.denoisers.exact import Empirical, Mixture
from ddim.latents.codecs import CODECS, decoder, encoder, tensors_of
from ddim.latents.implicit import solve_encoding
from ddim.noise.nodes import uniform
from ddim.noise.schedule import Schedule
from ddim.samplers.loop import final, integrate

SCHEDULE = Schedule.linear(500, scaled=True)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    images = means.repeat(3, 1) + 0.1 * torch.randn(24, 16, generator=generator, dtype=means.dtype)
    return Mixture(means, std=0.15), images


def round_trip(model, images, nodes, codec):
    latents = final(integrate(model, encoder(SCHEDULE, nodes, codec), images))
    assert len(latents) == tensors_of(codec)
    image = final(integrate(model, decoder(SCHEDULE, nodes, codec), latents))[0]
    return latents, (image - images).abs().max().item()


@pytest.mark.parametrize("steps", [2, 3, 10, 20, 50, 100])
@pytest.mark.parametrize("codec", ["obelm", "bdia"])
def test_reversible_codecs_are_exact_to_rounding(data, codec, steps):
    model, images = data
    _, error = round_trip(model, images, uniform(SCHEDULE, steps), codec)
    assert error < 1e-11


def test_obelm_in_float32(data):
    model, images = data
    single = Mixture(model.means.float(), std=0.15)
    _, error = round_trip(single, images.float(), uniform(SCHEDULE, 50), "obelm")
    assert error < 1e-4


def test_edict_amplifies_as_it_says(data):
    from ddim.samplers.methods.reversible import amplification

    model, images = data
    _, error = round_trip(model, images, uniform(SCHEDULE, 20), "edict")
    assert error < 1e-12 * amplification(0.93, 20)
    assert amplification(0.93, 20) == pytest.approx(0.93**-40)


def test_both_tensors_are_needed(data):
    """Without the second tensor of a pair the round trip is no longer exact."""
    model, images = data
    nodes = uniform(SCHEDULE, 20)
    latents, error = round_trip(model, images, nodes, "obelm")
    dropped = (latents[0], latents[0])
    image = final(integrate(model, decoder(SCHEDULE, nodes, "obelm"), dropped))[0]
    assert error < 1e-12
    assert (image - images).abs().max() > 1e-2


def test_the_papers_codec_is_first_order(data):
    """The round trip of DDIM halves its error when the steps double, once they are many."""
    model, images = data
    errors = [round_trip(model, images, uniform(SCHEDULE, s), "ddim")[1] for s in (125, 250, 500)]
    assert errors[0] > errors[1] > errors[2]
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.4)


def test_implicit_solves_ddim_for_its_input(data):
    model, images = data
    nodes = (*uniform(SCHEDULE, 50)[:-1], 1)
    calls, worst = 0, torch.zeros(len(images), dtype=images.dtype)
    for solved in solve_encoding(model, SCHEDULE, nodes, images):
        calls += solved.calls
        worst = torch.maximum(worst, solved.residual)
    image = final(integrate(model, decoder(SCHEDULE, nodes, "implicit"), solved.x))[0]
    error = (image - images).square().mean(dim=1).sqrt()
    assert solved.index == solved.total - 1 == 49
    assert calls / 50 < 15
    assert worst.max() < 1e-13
    assert (error <= 100 * worst.clamp(min=1e-15)).all()


def test_implicit_reports_what_it_did_not_solve(data):
    model, images = data
    nodes = (*uniform(SCHEDULE, 10)[:-1], 1)
    *_, solved = solve_encoding(model, SCHEDULE, nodes, images, iterations=2)
    assert solved.residual.max() > 1e-6


@pytest.mark.parametrize("codec", CODECS)
def test_rising_nodes_are_refused(codec):
    with pytest.raises(InputError, match="fall"):
        decoder(SCHEDULE, (0, 250, 500), codec)


def test_refusals():
    with pytest.raises(InputError, match="did you mean 'obelm'"):
        decoder(SCHEDULE, (500, 0), "obelmm")
    with pytest.raises(InputError, match="node 1"):
        decoder(SCHEDULE, (500, 250, 0), "implicit")
    with pytest.raises(InputError, match="solve_encoding"):
        encoder(SCHEDULE, (500, 250, 1), "implicit")
    with pytest.raises(InputError, match="at least 2 steps"):
        decoder(SCHEDULE, (500, 0), "obelm")
    with pytest.raises(InputError, match="α = 0"):
        decoder(SCHEDULE.rescaled_to_zero_snr(), (500, 250, 0), "obelm")


def test_an_image_that_is_solved_does_not_stop_the_others_of_its_batch():
    """It stands still, to the bit, while they go on: its least squares are all zeros."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 1, 8, 8, generator=generator) * 2 - 1
    other = torch.rand(1, 1, 8, 8, generator=generator) * 2 - 1
    schedule = Schedule.linear(1000)
    nodes = (*uniform(schedule, 10)[:-1], 1)
    solved = list(
        solve_encoding(Empirical(images), schedule, nodes, torch.cat([images[:1], other]))
    )
    residuals = torch.stack([step.residual for step in solved])
    assert residuals[0, 1] > 0.1  # a step that has no solution, which it says
    assert residuals[:, 0].max() < 5e-5 and residuals[-1, 1] < 5e-5


def test_a_step_without_a_network_call_is_refused(refuses):
    with refuses("iterations must be at least 1, not 0"):
        next(
            solve_encoding(
                Mixture(torch.zeros(1, 4)), SCHEDULE, (2, 1), torch.zeros(1, 4), iterations=0
            )
        )
