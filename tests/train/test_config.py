from __future__ import annotations

import dataclasses

import pytest

from ddim.noise.schedule import Schedule
from ddim.train.config import PRESETS, TrainConfig, check_signal


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip(name):
    config = TrainConfig.preset(name)
    assert TrainConfig.from_json(config.to_json()) == config
    assert Schedule.from_spec(config.schedule_spec()).T == config.T


def test_presets_mirror_only_what_looks_the_same_in_a_mirror():
    """Digits do not, and the shoes of Fashion-MNIST all point to the left."""
    assert {name for name, config in PRESETS.items() if config.flip} == {"cifar10", "celeba"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"T": 0}, "T must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        (
            {"batch_size": 128, "accumulate": 3},
            "accumulate = 3 does not divide a batch_size of 128",
        ),
        ({"batch_size": 4, "accumulate": 8}, "accumulate = 8 does not divide a batch_size of 4"),
        ({"seed": -1}, "seed must not be negative"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
        ({"lr": 0.0}, "lr must be positive, not 0.0"),
        ({"channels": []}, "at least one resolution"),
        ({"beta_start": 0.3, "beta_end": 0.1}, "β must rise"),
        ({"channels": [0, 8]}, "at least one resolution"),
        ({"channels": 8}, "channels must be a list"),
        ({"attention": [16.5]}, r"attention\[0\] must be a whole number, not 16.5"),
        ({"T": 20.5}, "T must be a whole number, not 20.5"),
        ({"T": "20"}, "T must be a whole number, not '20'"),
        ({"T": 10**12}, "T must be at most 1,000,000"),
        ({"seed": 2**64}, "seed must be from 0 to 2⁶⁴ - 1"),
        ({"classes": "no"}, "classes must be true or false, not 'no'"),
        ({"data": None}, "data must be text, not None"),
        ({"weight_decay": float("nan")}, "weight_decay must be a finite number, not nan"),
        ({"lr": float("inf")}, "lr must be a finite number, not inf"),
        ({"clip": -1.0}, "clip must be positive, or None"),
        ({"gamma": -1.0}, "gamma must be positive"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"size": 0}, "size must be at least 1"),
        ({"images": 0}, "images must be at least 1"),
        ({"label_dropout": 1.0}, r"label_dropout must be in \[0, 1\)"),
        ({"focus": (3,)}, "focus must be the first and last of nodes"),
        ({"focus": (9, 3)}, "focus must be"),
        ({"focus": (0, 3)}, "focus must be"),
        ({"T": 10, "focus": (3, 11)}, "focus must be the first and last of nodes 1..10"),
        ({"learning_rate": 1.0}, "unknown key 'learning_rate'"),
        ({"batchsize": 1}, "did you mean 'batch_size'"),
    ],
)
def test_configuration_refusals(changes, message, refuses):
    with refuses(message):
        TrainConfig.from_json(changes)


def test_preset_refusal(refuses):
    with refuses("unknown preset 'mnits': did you mean 'mnist'"):
        TrainConfig.preset("mnits")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "lion"),
        ("precision", "float16"),
        ("schedule", "scaled_linear"),
        ("target", "epsilon"),
        ("weighting", "min_snr"),
    ],
)
def test_choices_are_checked_where_they_are_kept(field, value, refuses):
    with refuses(f"{field} must be one of .*, not '{value}'"):
        TrainConfig(**{field: value})
    with refuses(f"{field} must be one of"):
        dataclasses.replace(PRESETS["mnist"], **{field: value})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"schedule": "cosine", "beta_end": 0.03}, "beta_end is for linear and scaled-linear"),
        ({"schedule": "sigmoid", "beta_start": 0.001}, "beta_start is for linear"),
        ({"schedule": "scaled-linear", "scaled": True}, "scaled is for the linear schedule"),
        ({"gamma": 3.0}, "gamma is for the weighting min-snr, and would have no effect here"),
        ({"label_dropout": 0.2}, "label_dropout is for training with classes"),
        ({"focus": (2, 5), "batch_size": 1}, "focus is for batches of two or more"),
    ],
)
def test_options_that_would_have_no_effect(changes, match, refuses):
    with refuses(match):
        TrainConfig(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_snr": True},
        {"zero_snr": True, "schedule": "cosine"},
        {"beta_end": 1.0},
        {"scaled": True, "T": 40, "beta_end": 0.04},
        {"schedule": "scaled-linear", "beta_end": 1.0},
        {"beta_start": 0.5, "beta_end": 0.5},  # α = 2⁻⁵⁰⁰ at T, which float32 has not
    ],
)
def test_trap_no_signal_at_the_last_node_whichever_way_it_came(changes, refuses):
    with refuses(r"α = 0 at node \d+ of \d+ \(zero SNR\), where ε says nothing about the image"):
        TrainConfig(**changes)
    for target in ("v", "x0"):
        assert TrainConfig(**changes, target=target).target == target


def test_schedules_that_keep_signal_may_have_the_target_eps(refuses):
    for schedule in (Schedule.linear(1000), Schedule.cosine(1000), Schedule.sigmoid(50)):
        check_signal(schedule, "eps")
    with refuses("α = 0 at node 10 of 10"):
        check_signal(Schedule.flow(10), "eps")
    with refuses("α = 0 at node 3 of 3"):
        check_signal(Schedule.from_alpha_bar([0.9, 0.4, 0.0]), "eps")


def test_the_schedule_of_a_configuration():
    for kind in ("linear", "scaled-linear"):
        config = TrainConfig(schedule=kind, T=30, beta_start=0.01, beta_end=0.3)
        assert Schedule.from_spec(config.schedule_spec()).T == 30
    for kind in ("cosine", "sigmoid"):
        assert Schedule.from_spec(TrainConfig(schedule=kind, T=30).schedule_spec()).T == 30
    scaled = TrainConfig(T=50, scaled=True, zero_snr=True, target="v").schedule_spec()
    expected = Schedule.linear(50, scaled=True).rescaled_to_zero_snr()
    assert (Schedule.from_spec(scaled).alpha == expected.alpha).all()
