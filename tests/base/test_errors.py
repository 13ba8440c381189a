import numpy as np
import pytest
import torch

import ddim
from ddim.base.device import pick_device
from ddim.base.errors import InputError, RunError, quoted, unknown


def test_unknown_offers_the_nearest_name_and_all_choices():
    error = unknown("schedule", "cosin", ["linear", "cosine"])
    assert isinstance(error, InputError)
    assert (
        str(error) == "unknown schedule 'cosin': did you mean 'cosine'? (choices: linear, cosine)"
    )


def test_unknown_offers_nothing_when_nothing_is_near():
    error = unknown("method", "xyzzy", iter(["ddim", "ddpm"]))
    assert str(error) == "unknown method 'xyzzy' (choices: ddim, ddpm)"


def test_input_and_run_errors_are_told_apart():
    """The one is the caller's to mend (exit status 2), the other is not (exit status 1)."""
    with pytest.raises(ValueError, match="wrong"):
        raise InputError("wrong")
    assert not issubclass(RunError, InputError)
    assert not issubclass(InputError, RunError)


@pytest.mark.parametrize(
    "value", ["x y " * 5000, list(range(5000)), {"a": [[1, 2]] * 5000}, np.zeros((300, 300))]
)
def test_a_value_is_one_line_of_at_most_200_characters(value):
    text = quoted(value)
    assert len(text) <= 200 and "\n" not in text
    assert text[:8] == repr(value)[:8] and text[-1] == repr(value)[-1]


def test_a_long_word_of_a_message_is_cut_in_the_middle():
    path = "/".join(["folder"] * 200) + "/model.safetensors"
    message = str(InputError(f"there is no file {path}: give one that is there"))
    assert message.startswith("there is no file folder/folder/")
    assert message.endswith("/model.safetensors: give one that is there")
    assert len(message) < 300


LONG = "a b" * 400


@pytest.mark.parametrize(
    "call",
    [
        lambda: ddim.Sampler.parse(LONG),
        lambda: ddim.Sampler.parse(f"ddim:{LONG}"),
        lambda: ddim.Sampler.parse(f"ddim:eta={LONG}"),
        lambda: ddim.Sampler("ddim", LONG),
        lambda: ddim.Sampler("ddim", nodes=[*range(3000), 5]),
        lambda: ddim.Sampler("ddim", nodes=LONG),
        lambda: ddim.Sampler("plms", order=LONG),
        lambda: ddim.load("folder/" * 300),
        lambda: ddim.Condition(guidance=LONG),
        lambda: ddim.Clipping(LONG),
        lambda: ddim.Schedule.from_spec({"kind": LONG}),
        lambda: ddim.TrainConfig.from_json({LONG: 1}),
        lambda: ddim.TrainConfig(focus=tuple(range(3000))),
        lambda: ddim.Model(torch.nn.Identity(), ddim.Schedule.linear(5), LONG, (1,)),
        lambda: ddim.Model(torch.nn.Identity(), ddim.Schedule.linear(5), "eps", [0] * 3000),
        lambda: ddim.encode(None, None, codec=LONG),
        lambda: pick_device(LONG),
    ],
)
def test_what_users_give_is_cut_at_every_door(call):
    with pytest.raises(InputError) as info:
        call()
    assert len(str(info.value)) < 800 and "\n" not in str(info.value)
    assert str(info.value).count("a b") < 150
