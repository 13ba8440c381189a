"""A training step beside a plain loop on diffusers' network of the same shape.

    python benchmarks/train.py
    python benchmarks/train.py --precision float32 bfloat16 --batch 64 128 --threads 2

Images a second of :func:`ddim.fit` and of the loop that one writes by hand: diffusers'
``UNet2DModel`` and ``DDPMScheduler.add_noise``, mean squared error, clipped gradients, AdamW and a
moving average of the weights, on images that are tensors already. The network is that of the
``mnist`` preset or, with ``--preset``, of another, the optimizer AdamW. Both train in float32 and
under bfloat16 autocast, each beside its like.

There are two opponents. *plain* is written with the defaults: AdamW as it comes, the average in a
loop over the parameters. *tuned* is the same with what one line each can gain: a fused AdamW, a
fused average.

Time is wall time, interleaved (see ``measure.py``); a ratio above 1 says that ddim is faster.
Targets are judged by CPU time where there is one thread, else by wall time. The exit status is 1
where one is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import torch
from measure import Report, gigaflops, interleave, median, parser, speedup
from torch import Tensor

from ddim.nets.unet import UNet, count_flops
from ddim.train.batches import TensorData
from ddim.train.config import PRESETS, TrainConfig
from ddim.train.run import unet_config
from ddim.train.speed import advance, our_loop, plain_loop, twin

IMAGES = 2048
PRECISIONS = ("float32", "bfloat16")
LEAST = 1.0


def main() -> int:
    args = arguments()
    report = Report("training", args, ["torch", "diffusers", "ddim"])
    preset = TrainConfig.preset(args.preset)
    data = TensorData(_pictures(args.shape))
    net = UNet(unet_config(preset, args.shape, None))
    rows = []
    for precision in args.precision:
        for batch in args.batch or [preset.batch_size]:
            for threads in args.threads:
                torch.set_num_threads(threads)
                config = dataclasses.replace(
                    preset,
                    optimizer="adamw",
                    precision=precision,
                    batch_size=batch,
                    flip=False,
                    device="cpu",
                )
                row = {"precision": precision, "batch": batch, "threads": threads}
                rows.append(row | _one_case(config, net, data, args.rounds, args.steps))
                print(f"{precision}, batch {batch}, {threads} threads done", file=sys.stderr)
                _judge(report, rows[-1])
    flops = f"{args.preset}: {gigaflops(count_flops(net))}, three times that with the backward pass"
    report.table("training", rows, f"images/s; {flops}")
    return report.finish()


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--preset", choices=list(PRESETS), default="mnist")
    made.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    made.add_argument("--batch", nargs="+", type=int, help="default: the preset's")
    made.add_argument("--threads", nargs="+", type=int, default=[1])
    made.add_argument("--steps", type=int, default=4, help="in a round (default %(default)s)")
    args = made.parse_args()
    args.shape = (1, 28, 28) if args.preset in ("mnist", "mnist-cond", "fashion") else (3, 32, 32)
    if args.quick:
        args.rounds, args.steps = min(args.rounds, 3), 1
    return args


def _pictures(shape: tuple[int, int, int]) -> Tensor:
    return torch.rand((IMAGES, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 1


def _one_case(
    config: TrainConfig, net: UNet, data: TensorData, rounds: int, steps: int
) -> dict[str, Any]:
    loops: dict[str, Iterator[object]] = {
        "ddim": our_loop(net, data, config),
        "plain": plain_loop(twin(net), data, config),
        "tuned": plain_loop(twin(net), data, config, fused=True),
    }
    actions = {name: advance(loop, steps) for name, loop in loops.items()}
    timings = interleave(actions, rounds)
    row: dict[str, Any] = {
        name: steps * config.batch_size / median(taken) for name, taken in timings.items()
    }
    for name in ("plain", "tuned"):
        row[f"ratio to {name}"] = speedup(timings[name], timings["ddim"])
        by_cpu = speedup(timings[name], timings["ddim"], "cpu")
        row[f"CPU ratio to {name}"] = by_cpu if torch.get_num_threads() == 1 else "-"
    return row


def _judge(report: Report, row: dict[str, Any]) -> None:
    clock = "CPU ratio" if row["threads"] == 1 else "ratio"
    where = f"{row['precision']}, batch {row['batch']}, {row['threads']} threads"
    for name in ("plain", "tuned"):
        ratio = row[f"{clock} to {name}"]
        report.target(
            f"at least {LEAST} × the {name} loop, {where}: {ratio}", ratio.median >= LEAST
        )


if __name__ == "__main__":
    sys.exit(main())
