"""Digits of few grey levels by DDIM for discrete data, drawn in 10, 20 and 50 steps.

    python examples/discrete_mnist.py --data FOLDER_WITH_IDX

Trains a small network on images whose pixels are categories (2 levels: black and white), then
draws the same images of a seed in several numbers of steps, side by side in one picture. Some ten
minutes of one CPU core. The training is saved as it goes, and resumed by the same command.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ddim
from ddim.base.files import refuse_existing
from ddim.checkpoints.training import read_training
from ddim.data.load import load_data
from ddim.nets.unet import UNet, UNetConfig
from ddim.samplers.discrete import discrete_loss, sample_discrete
from ddim.train.checkpoint import load_checkpoint, save_checkpoint, saved_config


class PatchUNet(nn.Module):
    """The UNet on patches of 2 × 2 pixels, from categories to logits of categories."""

    def __init__(self, size: int, levels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels
        self.unet = UNet(
            UNetConfig(
                sample_size=size // 2,
                in_channels=4 * levels,
                out_channels=4 * levels,
                block_out_channels=channels,
                down_block_types=("DownBlock2D",) * len(channels),
                up_block_types=("UpBlock2D",) * len(channels),
                layers_per_block=1,
                attention_head_dim=8,
                norm_num_groups=8,
            )
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Values of shape (N, H, W) to logits of x0, shape (N, K, H, W)."""
        planes = F.one_hot(x, self.levels).movedim(-1, 1).float()
        return F.pixel_shuffle(self.unet(F.pixel_unshuffle(planes, 2), t), 2)


def read_levels(source: str, levels: int) -> Tensor:
    """Grey images as categories 0..levels-1, uint8 of shape (N, H, W)."""
    if not 2 <= levels <= 256:
        raise ddim.InputError(f"levels must be from 2 to 256, not {levels}")
    data = load_data(source, channels=1)
    if data.shape[1] % 4 or data.shape[2] % 4:
        raise ddim.InputError(f"height and width must be divisible by 4: {data.shape[1:]}")
    pixels = data.batch(torch.arange(len(data)))[:, 0]
    return (pixels.int() * levels // 256).to(torch.uint8)


def train(
    state: ddim.TrainState,
    images: Tensor,
    schedule: ddim.Schedule,
    config: ddim.TrainConfig,
    levels: int,
    checkpoint: Path,
) -> None:
    """Train to the end of the configuration, from the checkpoint if there is one."""
    if checkpoint.exists():
        saved = read_training(checkpoint)
        if saved_config(saved) != config:
            raise ddim.InputError(f"{checkpoint} is of a run with other options: name another one")
        load_checkpoint(saved, state)
    loss = functools.partial(discrete_loss, categories=levels)
    total = 0.0
    for step in ddim.fit(state, ddim.TensorData(images), schedule, config, loss=loss):
        total += step.loss
        if step.step % config.log_every == 0 or step.step == config.steps:
            count = (step.step - 1) % config.log_every + 1
            mean, total = total / count, 0.0
            print(f"step {step.step}/{config.steps}: {mean:.4f} nats a pixel", file=sys.stderr)
            save_checkpoint(checkpoint, state, config, {})


def main() -> None:
    """Train, draw, write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="mnist", help="folder of IDX files, .npz, or a name")
    parser.add_argument("--levels", type=int, default=2, help="categories of a pixel")
    parser.add_argument("--images", type=int, default=64_000, help="training images to see")
    parser.add_argument("--eta", type=float, default=0.0, help="0 is the least random, 1 the most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("discrete.png"))
    parser.add_argument("--checkpoint", type=Path, help="default: beside the output")
    parser.add_argument("--force", action="store_true", help="write over the picture")
    parser.add_argument("--quick", action="store_true", help="seconds: to see that it runs")
    options = parser.parse_args()
    try:
        run(options)
    except ddim.InputError as error:
        parser.error(str(error))


def run(options: argparse.Namespace) -> None:
    """Do what the options say."""
    if options.threads < 1:
        raise SystemExit(f"--threads must be at least 1, not {options.threads}")
    refuse_existing(options.output, force=options.force)
    torch.set_num_threads(options.threads)
    images = read_levels(options.data, options.levels)
    quick = options.quick
    config = ddim.TrainConfig(
        data=options.data,
        channels=(8, 16) if quick else (48, 64),
        T=20 if quick else 500,
        schedule="cosine",
        images=160 if quick else options.images,
        batch_size=8 if quick else 32,
        lr=2e-3,
        warmup_images=3_200,
        decay_images=options.images // 2,
        ema=0.995,
        seed=options.seed,
        threads=options.threads,
        log_every=100,
    )
    schedule = ddim.Schedule.from_spec(config.schedule_spec())
    torch.manual_seed(config.seed)
    network = PatchUNet(images.shape[-1], options.levels, config.channels)
    state = ddim.TrainState.start(network, config)
    samplers = {
        steps: sample_discrete(
            state.ema,
            schedule,
            ddim.make_nodes(schedule, "uniform", steps),
            ddim.Noise(options.seed, range(4 if quick else 64), images.shape[1:]),
            options.levels,
            options.eta,
        )
        for steps in ((2, 3, 5) if quick else (10, 20, 50))
    }
    checkpoint = options.checkpoint or options.output.with_suffix(".safetensors")
    train(state, images, schedule, config, options.levels, checkpoint)

    blocks = []
    for steps, sampler in samplers.items():
        *_, last = sampler
        grey = (last.x[:, None] * 255 // (options.levels - 1)).to(torch.uint8)
        block = ddim.grid(grey)
        blocks += [block, torch.full((1, block.shape[1], 6), 255, dtype=torch.uint8)]
        print(f"{steps} steps: {last.x.double().mean() / (options.levels - 1):.4f} mean grey")
    print(f"data: {images.double().mean() / (options.levels - 1):.4f} mean grey")
    ddim.save_image(options.output, torch.cat(blocks[:-1], dim=2))


if __name__ == "__main__":
    main()
