"""Whichever scheduler a config names: the noise that diffusers makes of it, or a refusal."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest

from ddim.checkpoints.scheduler import read_scheduler
from ddim.denoisers.target import Target

NAMES = [
    "DDIMScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]


@pytest.fixture(scope="module")
def schedulers(diffusers):
    import diffusers as package

    return package


def write(folder, **config):
    path = folder / "scheduler_config.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers beside NumPy 2
@pytest.mark.parametrize("name", NAMES)
def test_the_noise_and_the_habits_of_every_scheduler(schedulers, tmp_path, name):
    kind = getattr(schedulers, name)
    cases = [{}, {"beta_schedule": "scaled_linear", "beta_end": 0.01, "num_train_timesteps": 50}]
    if "prediction_type" in inspect.signature(kind.__init__).parameters:
        cases.append({"prediction_type": "v_prediction", "beta_schedule": "linear"})
    for case in cases:
        oracle = kind(**case)
        schedule, target, clipping = read_scheduler(write(tmp_path, _class_name=name, **case))
        alphas = oracle.alphas_cumprod.double().numpy()
        assert np.abs(schedule.alpha_bar[1:] - alphas).max() < 3e-6
        v = case.get("prediction_type") == "v_prediction"
        assert target is (Target.V if v else Target.EPS)
        assert (clipping.kind == "clip") is bool(oracle.config.get("clip_sample", False))
        # The file that diffusers itself writes says the same, with every field explicit.
        oracle.save_pretrained(tmp_path / "saved")
        again = read_scheduler(tmp_path / "saved" / "scheduler_config.json")
        assert np.array_equal(again[0].alpha, schedule.alpha)
        assert again[1:] == (target, clipping)


@pytest.mark.parametrize(
    "name",
    [
        "CogVideoXDDIMScheduler",
        "EDMEulerScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "IPNDMScheduler",
        "KarrasVeScheduler",
        "ScoreSdeVeScheduler",
        "VQDiffusionScheduler",
    ],
)
def test_schedulers_of_other_noise_are_refused(tmp_path, refuses, name):
    with refuses(f"scheduler_config.json: _class_name '{name}' has no β schedule of the DDPM kind"):
        read_scheduler(write(tmp_path, _class_name=name, num_train_timesteps=1000))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (
            {"trained_betas": [0.1, 0.2], "num_train_timesteps": 1000},
            "trained_betas has 2 values, but num_train_timesteps is 1000",
        ),
        ({"trained_betas": ["a"]}, "trained_betas must be a list of numbers"),
        ({"beta_start": 0.02, "beta_end": 0.0001}, "beta_start 0.02 and beta_end 0.0001: β rises"),
        ({"beta_start": -1}, "beta_start -1 and beta_end 0.02"),
        ({"beta_end": "0.02"}, "beta_end must be a number, not '0.02'"),
        ({"beta_end": float("nan")}, "beta_end must be a number, not nan"),
        ({"num_train_timesteps": None}, "num_train_timesteps must be a number, not None"),
        (
            {"num_train_timesteps": 10.5},
            "num_train_timesteps must be a whole number from 1 to 1000000, not 10.5",
        ),
        ({"use_flow_sigmas": True}, "use_flow_sigmas: flow noise contradicts a β schedule"),
        ({"clip_sample": True, "clip_sample_range": 0}, "clip_sample_range must be positive"),
        (
            {"thresholding": True, "sample_max_value": 0.5},
            "sample_max_value of at least 1, not 0.5",
        ),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": 0},
            "dynamic_thresholding_ratio in .*, not 0",
        ),
    ],
)
def test_contradictions_are_one_line_with_the_file_and_the_key(tmp_path, refuses, config, match):
    with refuses(f"scheduler_config.json: .*{match}"):
        read_scheduler(write(tmp_path, _class_name="DDPMScheduler", **config))
