"""Weights in whatever training programs put them in: found where it is clear, else listed."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ddim.checkpoints.containers import select, state_dict
from ddim.checkpoints.record import Hints
from ddim.model.opening import load

HINTS = Hints(image_size=8)


@pytest.fixture(scope="module")
def weights(plain):
    p = plain.Plain()
    plain.official(p, plain.randn(1, 3, 8, 8), torch.tensor([3]), blocks=1, mult=(1,))
    return p.w


def plus(weights, amount=1.0):
    return {key: value + amount for key, value in weights.items()}


def bias(path, weights="ema"):
    model = load(path, hints=HINTS, weights=weights)
    return model.net.conv_in.bias, model.facts.weights


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model_state_dict": w, "optimizer_state_dict": {"state": {}, "step": 1}},
        lambda w: {"net": {f"_orig_mod.{k}": v for k, v in w.items()}, "loss": 0.1},
        lambda w: {"trainer": {"model": w}, "args": {"lr": 0.1}},
        lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()}},
        lambda w: {**w, "epoch": 7},
    ],
    ids=["state_dict", "model_state_dict", "compiled", "two levels", "lightning", "epoch beside"],
)
def test_raw_weights_in_a_container(tmp_path, weights, wrap):
    torch.save(wrap(weights), tmp_path / "x.pt")
    found, kind = bias(tmp_path / "x.pt")
    assert torch.equal(found, weights["conv_in.bias"])
    assert kind in ("net", "only")


@pytest.mark.parametrize(
    "name", ["ema", "model_ema", "ema_state_dict", "state_dict_ema", "averaged_model"]
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_an_average_beside_raw_weights(tmp_path, weights, name, prefix):
    average = {f"{prefix}{key}": value for key, value in plus(weights).items()}
    torch.save({"state_dict": weights, name: average, "step": 3}, tmp_path / "x.pt")
    for kind, amount in (("ema", 1), ("net", 0)):
        found, said = bias(tmp_path / "x.pt", kind)
        assert torch.equal(found, weights["conv_in.bias"] + amount)
        assert said == kind


def test_an_average_as_a_list_of_parameters(tmp_path, refuses, weights):
    shadow = list(plus(weights).values())
    for ema in ({"decay": 0.99, "shadow_params": shadow, "collected_params": None}, shadow):
        torch.save({"model": weights, "ema": ema}, tmp_path / "x.pt")
        assert torch.equal(bias(tmp_path / "x.pt")[0], weights["conv_in.bias"] + 1)
        assert torch.equal(bias(tmp_path / "x.pt", "net")[0], weights["conv_in.bias"])
    torch.save({"model": weights, "ema": {"shadow_params": shadow[1:]}}, tmp_path / "x.pt")
    with refuses("x.pt: ema lists 73 parameters without names, which are not those of model"):
        bias(tmp_path / "x.pt")
    assert torch.equal(bias(tmp_path / "x.pt", "net")[0], weights["conv_in.bias"])


def test_an_average_that_is_not_understood_is_not_passed_over(tmp_path, refuses, weights):
    for ema in ({"a": torch.ones(2)}, {"rates": [torch.ones(2)], "decay": 0.9}):
        torch.save({"model": weights, "ema": ema}, tmp_path / "x.pt")
        with refuses("x.pt: ema holds other keys than model: it has (a|rates, decay); the raw"):
            bias(tmp_path / "x.pt")
        assert bias(tmp_path / "x.pt", "net")[1] == "net"
    for ema in (None, 0.999, torch.tensor(0.999)):  # a decay is no average
        torch.save({"model": weights, "ema": ema, "ema_decay": 0.9}, tmp_path / "x.pt")
        assert bias(tmp_path / "x.pt")[1] == "net"


def test_an_averaged_model_of_torch(tmp_path, weights):
    net = nn.Module()
    for key, value in weights.items():
        net.register_parameter(key.replace(".", "_"), nn.Parameter(value))
    averaged = AveragedModel(net).state_dict()
    names = {key.replace(".", "_"): key for key in weights}
    named = {
        f"module.{names[key.removeprefix('module.')]}" if key != "n_averaged" else key: value
        for key, value in averaged.items()
    }
    assert "n_averaged" in named
    torch.save(named, tmp_path / "x.pt")
    assert torch.equal(bias(tmp_path / "x.pt")[0], weights["conv_in.bias"])


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (
            {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
            "x.pt holds no state_dict of .*: it is the state of an optimizer",
        ),
        ({"epoch": 3, "best_loss": 0.1}, "x.pt holds no state_dict of .*: it has epoch, best_loss"),
        ([1, 2], "x.pt holds no state_dict of .*: it is a list of 2"),
        ({"shadow_params": [torch.ones(2)], "decay": 0.9}, "it has shadow_params, decay"),
    ],
)
def test_what_was_found_instead_is_listed(tmp_path, refuses, value, match):
    torch.save(value, tmp_path / "x.pt")
    with refuses(match):
        load(tmp_path / "x.pt")


def test_more_than_one_network_is_not_chosen_from(tmp_path, refuses, weights):
    torch.save({"generator": weights, "teacher": plus(weights)}, tmp_path / "x.pt")
    with refuses(r"x.pt holds more than one network \(generator, teacher\)"):
        bias(tmp_path / "x.pt")
    two = {"model": weights, "ema_0.99": plus(weights), "ema_0.999": plus(weights)}
    torch.save(two, tmp_path / "x.pt")
    with refuses(r"x.pt holds more than one network \(ema_0.99, ema_0.999\)"):
        bias(tmp_path / "x.pt")
    assert bias(tmp_path / "x.pt", "net")[1] == "net"
    torch.save({"ema": weights}, tmp_path / "x.pt")
    assert bias(tmp_path / "x.pt")[1] == "ema"
    with refuses(r"x.pt holds an average \(ema\) and no raw weights"):
        bias(tmp_path / "x.pt", "net")


def test_prefixes_go_whoever_put_them_there():
    value = torch.ones(1)
    for prefix in ("", "module.", "module.module.", "_orig_mod.module."):
        assert state_dict({f"{prefix}a.b": value, f"{prefix}c": value}) == {
            "a.b": value,
            "c": value,
        }
    assert state_dict({"a._orig_mod.b": value}) == {"a.b": value}
    assert state_dict({"module.a": value, "b": value}) == {"module.a": value, "b": value}
    assert state_dict({"a": 3}) is None


def test_a_list_in_a_list_without_end(tmp_path, refuses):
    endless: list = []
    endless.append(endless)
    with refuses("no state_dict"):
        select(endless, "ema", tmp_path / "x", lambda _: True, "any")


def test_shards_of_another_program(tmp_path, refuses, weights):
    from ddim.checkpoints.tensors import write_safetensors

    places = {key: f"part-{i % 3}.safetensors" for i, key in enumerate(weights)}
    for name in set(places.values()):
        part = {k: v for k, v in weights.items() if places[k] == name}
        write_safetensors(tmp_path / name, part, {"format": "pt"})
    index = tmp_path / "model.safetensors.index.json"

    def write(places):
        import json

        index.write_text(json.dumps({"weight_map": places}))

    write(places)
    assert torch.equal(bias(index)[0], weights["conv_in.bias"])
    for changed, match in (
        ({**places, "a": "part-0.safetensors"}, "part-0.safetensors does not hold 'a'"),
        ({**places, "a": "gone.safetensors"}, "names gone.safetensors, and there is no such file"),
        ({**places, "a": "../x.safetensors"}, "'../x.safetensors' is no file beside it"),
        ({**places, "a": 3}, "weight_map.a must be text, not 3"),
        ({}, "names no tensors"),
    ):
        write(changed)
        with refuses(f"model.safetensors.index.json.*{match}"):
            bias(index)


def test_equal_tensors_are_equal_bytes(tmp_path):
    from ddim.checkpoints.tensors import read_safetensors, write_safetensors

    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(3, dtype=torch.int64)}
    metadata = {f"key {i}": "α" * i for i in range(9)}
    seen = set()
    for turn in range(8):
        order = list(metadata.items())[turn:] + list(metadata.items())[:turn]
        path = tmp_path / "x.safetensors"
        write_safetensors(path, dict(list(tensors.items())[:: 1 if turn % 2 else -1]), dict(order))
        seen.add(path.read_bytes())
    assert len(seen) == 1
    found, said = read_safetensors(path)
    assert said == metadata
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert torch.equal(safetensors.torch.load_file(path)["b"], tensors["b"])
    head = int.from_bytes(path.read_bytes()[:8], "little")
    assert head % 8 == 0
