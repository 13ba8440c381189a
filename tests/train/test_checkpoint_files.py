"""Training checkpoints as models: damaged ones are a line that names the file and the key."""

import json

import pytest
import safetensors
import safetensors.torch
import torch

from ddim.model.opening import load
from ddim.train.config import TrainConfig
from ddim.train.run import Run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    import numpy as np

    folder = tmp_path_factory.mktemp("run")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8), dtype=np.uint8)
    np.savez(folder / "x.npz", images=pixels)
    config = TrainConfig(
        data=str(folder / "x.npz"), channels=(8,), blocks=1, groups=4, T=10, images=16,
        batch_size=8, sample_every=0, device="cpu",
    )  # fmt: skip
    run = Run(config, folder / "run")
    for _ in run.steps():
        pass
    return folder / "run" / "checkpoint.safetensors"


def changed(checkpoint, folder, tensors=lambda t: None, header=lambda h: None):
    """A copy of the checkpoint with changes to its tensors and its header."""
    with safetensors.safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    facts = json.loads(metadata["ddim"])
    tensors(values)
    header(facts)
    metadata["ddim"] = json.dumps(facts)
    path = folder / "changed.safetensors"
    safetensors.torch.save_file(values, path, metadata)
    return path


def test_what_was_trained_opens(checkpoint):
    assert torch.isfinite(load(checkpoint).net.conv_in.weight).all()
    assert load(checkpoint, weights="net").shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        (lambda t: t["ema.conv_in.bias"].fill_(float("nan")), "conv_in.bias holds values that are"),
        (lambda t: t.pop("ema.conv_in.bias"), r"1 missing \(conv_in.bias\)"),
        (lambda t: t.update({"ema.conv_in.bias": torch.ones(3)}), r"conv_in.bias has shape \(3,\)"),
        (lambda t: [t.pop(k) for k in list(t) if k.startswith("ema.")], "missing"),
    ],
)
def test_damaged_weights(checkpoint, tmp_path, refuses, tensors, match):
    with refuses(f"changed.safetensors.*{match}"):
        load(changed(checkpoint, tmp_path, tensors))


@pytest.mark.parametrize(
    "header",
    [
        lambda h: h.pop("facts"),
        lambda h: h.update(step="many"),
        lambda h: h["facts"].pop("unet"),
        lambda h: h["facts"].update(schedule="linear"),
        lambda h: h["facts"]["unet"].update(layers_per_block=0),
    ],
)
def test_damaged_headers(checkpoint, tmp_path, refuses, header):
    with refuses("changed.safetensors: its header is damaged"):
        load(changed(checkpoint, tmp_path, header=header))
