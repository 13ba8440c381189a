"""Turn a finished training run into a model folder with its card: figures, loss curve, samples.

    python scripts/model_card.py runs/mnist --name mnist --output src/ddim/shipped/mnist

Draws ``--samples`` images by DDIM in 50 steps (uniform nodes, η = 0) and measures them with the
shipped digit classifier. Writes the model folder, ``README.md`` (the card), ``samples.png`` and
``loss.png`` into ``--output``. The pictures drawn so far are kept beside the run, so that the same
command resumes a measurement that was interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

import ddim
from ddim.base.files import replacing, write_bytes
from ddim.base.plots import line_style
from ddim.evaluate.distances.digits import DigitReport, report_digits
from ddim.interop.card import checksum_table, command_of, history, size_rows, table
from ddim.nets.unet import UNet
from ddim.train.config import TrainConfig

STEPS = 50
CHUNK = 500


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished training run")
    parser.add_argument("--name", required=True, help="the model's name")
    parser.add_argument("--output", type=Path, required=True, help="where the model folder goes")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    model = ddim.load(arguments.run)
    more = {key: value for key, value in model.facts.more.items() if key != "interval"}
    facts = dataclasses.replace(model.facts, more=more)
    model = model.replace(name=arguments.name, facts=facts)
    images = draw(model, arguments.run / "measured", arguments)
    report = report_digits(images)
    print(report)
    model.save(arguments.output)
    ddim.save_image(arguments.output / "samples.png", images[:100], columns=10)
    runs = history(arguments.run)
    plot_loss(
        [*(Path(run.init or "") for run in runs[1:]), arguments.run], arguments.output / "loss.png"
    )
    card = write_card(model, report, arguments, runs)
    write_bytes(arguments.output / "README.md", card.encode())


def draw(model: ddim.Model, cache: Path, arguments: argparse.Namespace) -> torch.Tensor:
    """The images, as the pixels that a file would hold; drawn in resumable chunks."""
    weights = torch.cat([p.flatten() for p in model.net.parameters()])
    size, seed = arguments.batch_size, arguments.seed
    key = {"sum": float(weights.double().sum()), "batch_size": size, "seed": seed}
    cache.mkdir(exist_ok=True)
    marker = cache / "key.json"
    if marker.exists() and json.loads(marker.read_text()) != key:
        for old in cache.glob("*.npy"):
            old.unlink()
    marker.write_text(json.dumps(key))
    tableau = model.tableau(ddim.Sampler("ddim", STEPS))
    condition = ddim.Condition().check(model, arguments.samples, every_class=True)
    parts = []
    for first in tqdm(range(0, arguments.samples, CHUNK)):
        indices = range(first, min(first + CHUNK, arguments.samples))
        path = cache / f"{first:06d}-{len(indices)}.npy"
        if not path.exists():
            given = condition[indices]
            drawn = ddim.generate(
                model, tableau, indices, seed=seed, condition=given, batch_size=size
            )
            pixels = [ddim.to_pixels(event.images) for event in drawn if event.images is not None]
            with replacing(path) as temporary:
                np.save(temporary, torch.cat(pixels).numpy())
        parts.append(torch.from_numpy(np.load(path)))
    return ddim.from_pixels(torch.cat(parts))


def plot_loss(folders: Sequence[Path], output: Path) -> None:
    """The loss of the runs, one after the other; what it weighs may differ from run to run."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    before = 0
    for number, folder in enumerate(folders):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        images = [before + line["images"] for line in lines]
        how = line_style(number)
        how |= {"marker": "", "lw": 0.8, "label": Path(folder).name}
        axes.semilogy(images, [line["loss"] for line in lines], **how)
        before = images[-1]
    axes.set(xlabel="training images seen", ylabel="loss, mean over pixels", ylim=(None, 0.1))
    axes.grid(alpha=0.3)
    if len(folders) > 1:
        figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(output, dpi=110)


def write_card(
    model: ddim.Model,
    report: DigitReport,
    arguments: argparse.Namespace,
    runs: Sequence[TrainConfig],
) -> str:
    assert isinstance(model.net, UNet)
    config = runs[-1]
    folders = [*(run.init for run in runs[1:]), f"runs/{arguments.name}"]
    commands = "\n".join(
        f"{command_of(run)} --output {folder}" for run, folder in zip(runs, folders, strict=True)
    )
    shares = " ".join(f"{share:.1%}" for share in report.class_shares)
    rows = {
        **size_rows(model.net),
        "images seen": f"{sum(run.images for run in runs):,}",
        "seed, threads": f"{model.facts.more['seed']}, {model.facts.more['threads']}",
        "loss": f"{config.weighting}, γ = {config.gamma:g}",
        "optimizer": f"{config.optimizer}, learning rate {config.lr:g}",
        "precision": f"{config.precision} autocast, float32 weights",
    }
    labels = ", labels 0–9 in turn, no guidance" if model.classes else ""
    kind = "A class-conditional" if model.classes else "An unconditional"
    guidance = ""
    if model.classes:
        guidance = f"""
Labels were dropped with probability {config.label_dropout:g}, for classifier-free guidance:
label {model.null_label} is 'none'.
"""
    real = report.confident_share / report.relative_share
    sampler = f"DDIM in {STEPS} steps (uniform nodes, η = 0, seed {arguments.seed}"
    return f"""# {arguments.name}

{kind} DDPM of {model.shape[-2]}×{model.shape[-1]} handwritten digits, trained on MNIST: \
T = {model.schedule.T}, β linear from {config.beta_start:g} to {config.beta_end:g}, predicts ε.
The folder opens in `ddim` and in diffusers' `DDIMPipeline`; the weights are the moving average.

{table(rows)}

```
{commands}
```
{guidance}
## Figures

{report.count:,} images by {sampler}, batch size {arguments.batch_size}{labels}), judged by the
classifier in `ddim/shipped/lenet`:

| | this model | real test digits |
|---|---|---|
| share with top probability ≥ 0.9 | {report.confident_share:.4f} | {real:.4f} |
| ratio of the two | {report.relative_share:.4f} | 1 |
| LeNet-FD to the training set | {report.lenet_fd:.3f} | {report.floor:.4f} |
| share of each class, 0–9 | {shares} | |

Made by `python scripts/model_card.py RUN --name {arguments.name} --output FOLDER`.

![samples](samples.png)

![loss](loss.png)

## Data

MNIST (LeCun, Cortes, Burges), training set. SHA-256 of the uncompressed files:

{checksum_table(model.facts.data["sha256"])}
"""


if __name__ == "__main__":
    main()
