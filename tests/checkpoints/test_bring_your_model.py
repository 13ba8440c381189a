"""Every snippet of ``docs/bring-your-model.md`` runs, on small files under the names it uses."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch

from ddim.cli.main import main
from ddim.denoisers.target import Target
from ddim.model.model import Model
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.schedule import Schedule

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "bring-your-model.md").read_text("utf-8")
T = torch.tensor([3])


@pytest.fixture(scope="module")
def files(plain, tmp_path_factory):
    """A folder with a small file of each kind."""
    folder = tmp_path_factory.mktemp("files")

    def drawn(forward, channels=3, **options):
        p = plain.Plain()
        forward(p, plain.randn(1, channels, 16, 16), T, **options)
        return p.w

    official = drawn(plain.official, mult=(1,), blocks=1, attends=(0,))
    torch.save(official, folder / "model-790000.ckpt")
    states = [{f"module.{k}": v for k, v in official.items()}, {}, 1, 1, official]
    torch.save(states, folder / "ckpt.pth")
    torch.save(drawn(plain.openai, out=6), folder / "ema_0.9999_500000.pt")
    guided = {"heads": None, "residual": True, "out": 6, "classes": 4, "y": T}
    torch.save(drawn(plain.openai, **guided), folder / "64x64_diffusion.pt")
    notebook = {"names": plain.NOTEBOOK, "scale_shift": False, "attends": (), "channels": 1}
    torch.save(drawn(plain.openai, **notebook), folder / "unet.pth")
    betas = torch.tensor(Schedule.sigmoid(100).betas, dtype=torch.float32)
    lucid = {f"model.{k}": v for k, v in drawn(plain.lucid).items()}
    state = {"betas": betas, "alphas_cumprod": (1 - betas).cumprod(0)} | lucid
    average = {f"ema_model.{k}": v for k, v in state.items()}
    torch.save({"step": 1, "model": state, "ema": average}, folder / "model-10.pt")
    torch.save(torch.nn.Linear(2, 2), folder / "whole-network.pt")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = UNet(UNetConfig(sample_size=8, block_out_channels=(32, 64), layers_per_block=1))
    Model(net, Schedule.linear(50), Target.EPS, (3, 8, 8)).save(folder / "ddpm-folder")
    return folder


def test_every_snippet_runs_in_order(files, hub, monkeypatch, capsys):
    monkeypatch.chdir(files)
    hub.add("google/ddpm-cifar10-32", files / "ddpm-folder")
    module = import_module("ddim.model.drawing")  # ddim.generate is the function
    monkeypatch.setattr(module, "pick_batch_size", lambda *_: 2)  # no padding up to eight
    blocks = re.findall(r"```(python|console)\n(.*?)```", PAGE, re.DOTALL)
    assert [kind for kind, _ in blocks].count("python") == 12
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, "snippet", "exec"), {"__name__": "snippet"})
            continue
        for line in text.splitlines():
            words = shlex.split(line)[1:]
            if words[0] == "echo":
                Path(words[3]).write_text(words[1])
                continue
            assert words[0] == "ddim"
            assert main(words[1:]) == 0
    assert "whole-network.pt is refused" in capsys.readouterr().out


def test_every_source_has_a_section():
    for source in (
        "A diffusers folder",
        "A name on the Hugging Face Hub",
        "Official DDIM and DDPM",
        "improved-diffusion",
        "guided-diffusion",
        "denoising-diffusion-pytorch",
        "The MNIST notebook",
    ):
        assert f"\n## {source}\n" in PAGE
