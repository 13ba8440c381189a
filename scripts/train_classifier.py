"""Train the digit classifier that ships with the package, and measure real digits with it.

    python scripts/train_classifier.py --data FOLDER

FOLDER holds the four IDX files of MNIST, or of Fashion-MNIST or other images of that format, whose
classifier goes elsewhere (--output) and is used by ``ddim evaluate --features``. The same seed,
threads, machine and build of torch give the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from ddim.base.files import write_bytes, write_json
from ddim.data.load import load_data
from ddim.data.pixels import from_pixels
from ddim.evaluate.distances.digits import CONFIDENCE, class_shares, confident_share
from ddim.evaluate.distances.frechet import FeatureStatistics
from ddim.evaluate.features.lenet import FEATURES, LENET_FOLDER, LeNet, extract

PREPROCESSING = "x = pixels/127.5-1"
BATCH = 128
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.02
# The range of the random affine maps: pixels, degrees, and the logarithm of the scale.
SHIFT, ROTATION, SCALE = 2.0, 12.0, 0.12


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)

    pixels, labels = {}, {}
    for split in ("train", "test"):
        data = load_data(args.data, split=split)
        every = torch.arange(len(data))
        pixels[split], labels[split] = data.batch(every), data.labels(every)

    model = train(from_pixels(pixels["train"]), labels["train"], args.epochs, args.seed)

    weights = save({name: t.contiguous() for name, t in model.state_dict().items()})
    moments, facts = {}, {}
    for split in ("train", "test"):
        features, probabilities = extract(model, from_pixels(pixels[split]))
        statistics = FeatureStatistics(FEATURES)
        statistics.update(features.numpy())
        moments[f"{split}.mean"] = torch.from_numpy(statistics.mean)
        moments[f"{split}.cov"] = torch.from_numpy(statistics.cov)
        facts[split] = {
            "count": statistics.count,
            "accuracy": (probabilities.argmax(dim=1) == labels[split]).double().mean().item(),
            "confident_share": confident_share(probabilities),
            "class_shares": class_shares(probabilities),
            "pixels_sha256": sha256(pixels[split].numpy().tobytes()),
            "labels_sha256": sha256(labels[split].to(torch.uint8).numpy().tobytes()),
        }
        print(
            f"{split}: accuracy {facts[split]['accuracy']:.4%}, "
            f"probability {CONFIDENCE} or more for {facts[split]['confident_share']:.4%}"
        )

    config = {
        "architecture": "ddim.evaluate.features.lenet.LeNet",
        "features": FEATURES,
        "parameters": sum(p.numel() for p in model.parameters()),
        "preprocessing": PREPROCESSING,
        "command": (
            f"python scripts/train_classifier.py --data FOLDER --seed {args.seed} "
            f"--epochs {args.epochs} --threads {args.threads}"
        ),
        "seed": args.seed,
        "epochs": args.epochs,
        "threads": args.threads,
        "torch": torch.__version__,
        "model_sha256": sha256(weights),
        "confidence": CONFIDENCE,
        **facts,
    }
    metadata = {
        "extractor_sha256": sha256(weights),
        "preprocessing": PREPROCESSING,
        "count": {split: facts[split]["count"] for split in facts},
    }
    write_bytes(args.output / "model.safetensors", weights)
    # One entry that holds them all, because several are saved in no fixed order.
    described = {"statistics": json.dumps(metadata)}
    write_bytes(args.output / "statistics.safetensors", save(moments, described))
    write_json(args.output / "config.json", config)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train the digit classifier that ships with the package"
    )
    parser.add_argument("--data", required=True, help="folder of the MNIST IDX files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--threads", type=int, default=1, help="part of what fixes the result")
    parser.add_argument("--output", type=Path, default=LENET_FOLDER)
    return parser.parse_args()


def train(images: Tensor, labels: Tensor, epochs: int, seed: int) -> LeNet:
    """A classifier of images (N, 1, 28, 28) in [-1, 1], in evaluation mode."""
    torch.manual_seed(seed)
    model = LeNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.99)
    )
    steps = epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=steps, pct_start=0.15, cycle_momentum=False
    )
    started = time.perf_counter()
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(images)).split(BATCH):
            loss = F.cross_entropy(model(augment(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        elapsed = time.perf_counter() - started
        print(f"epoch {epoch + 1}: loss {total / len(images):.4f}, {elapsed:.0f} s", flush=True)
    return model.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def augment(images: Tensor) -> Tensor:
    """Shift, turn and scale each image (N, 1, H, W) at random, on the background of -1."""
    n = len(images)
    angle, log_scale, dx, dy = (torch.rand(4, n) * 2 - 1).unbind()
    angle = angle * math.radians(ROTATION)
    scale = (log_scale * SCALE).exp()
    # affine_grid spans an image from -1 to 1, so that a pixel is 2 / width.
    reach = 2 * SHIFT / images.shape[-1]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, dx * reach, sin, cos, dy * reach], dim=1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # Outside the image grid_sample reads 0, which must mean background.
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
