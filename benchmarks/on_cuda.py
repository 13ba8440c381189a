"""Sampling on a GPU beside diffusers on the same weights: eager, compiled, by CUDA graphs.

    python benchmarks/on_cuda.py
    python benchmarks/on_cuda.py --models cifar10 --batch 64 256 --steps 50 --dtype float16

Images a second of DDIM, η = 0, from drawing the noise to float images in [0, 1] on the host: for
the shipped ``mnist`` model, and for the network of the DDPM paper for CIFAR-10 with random weights
(it predicts v, because what such weights make of eps overflows). Loading is left out, and so is
writing files. The batch is the batch. Contestants, on the same weights:

diffusers, diffusers compiled, diffusers graphs
    ``DDIMPipeline`` as it is, with its network through ``torch.compile``, and the same with
    ``mode="reduce-overhead"``, which is CUDA graphs of the network.

torch, compile, cuda-graph
    :func:`ddim.sample` by each back end. ``--mode`` is how ``compile`` asks torch to compile.

Beside the speeds stand

- the ratio of each to diffusers as it is, and of our best to the best of diffusers, paired by
  round;
- the seconds that the first call took more than the others, and the images after which compiling
  or capturing has paid for itself;
- the largest difference of a pixel to diffusers as it is, from the same noise, and whether the
  graph drew the bits of plain torch;
- each network's error against float64, of the largest number in what it says.

Float32 is float32: TF32 is off for everybody unless ``--tf32`` is given. The lower precision is
float16, since DDIMPipeline cannot return bfloat16. Times are between CUDA events, interleaved (see
``measure.py``); a ratio above 1 says that ddim is faster. The exit status is 1 where a target is
missed, 2 where there is no CUDA.

The file is not called ``cuda.py``, which would stand in the place of NVIDIA's package.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from measure import Action, Report, Timing, Timings, interleave, median, parser, speedup

import ddim
from ddim.backends import compiled

if TYPE_CHECKING:
    from diffusers import DDIMPipeline

DEVICE = "cuda"
OURS = ("torch", "compile", "cuda-graph")
THEIRS = {"diffusers": None, "diffusers compiled": "default", "diffusers graphs": "reduce-overhead"}
CLOSE = {"float32": 1e-3, "float16": 0.1}
FINE = 1e-5
LEVEL = 0.5
Drawn = dict[str, np.ndarray]


def main() -> int:
    args = arguments()
    if not torch.cuda.is_available():
        print("on_cuda.py measures on a GPU, and torch finds no CUDA here")
        return 2
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = args.tf32
    compiled.MODE = args.mode
    report = Report("sampling on CUDA", args, ["torch", "diffusers", "ddim", "triton"])
    print(f"  gpu: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    measure(report, args)
    return report.finish()


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument(
        "--models", nargs="+", choices=("mnist", "cifar10"), default=["mnist", "cifar10"]
    )
    made.add_argument("--steps", nargs="+", type=int, default=[10, 50])
    made.add_argument("--batch", nargs="+", type=int, default=[1, 16, 64, 256])
    made.add_argument("--dtype", choices=list(CLOSE), default="float32")
    made.add_argument(
        "--mode", choices=("default", "max-autotune-no-cudagraphs"), default="default"
    )
    made.add_argument("--tf32", action="store_true", help="float32 may be rounded to TF32, for all")
    args = made.parse_args()
    if args.quick:
        args.rounds, args.steps, args.batch = min(args.rounds, 3), [10], [1, 16]
    return args


def measure(report: Report, args: argparse.Namespace) -> None:
    """Every model, batch size and number of steps."""
    from loop import opened

    speeds, costs, errors = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            ours, theirs = opened(name, Path(folder) / name)
            dtype = getattr(torch, args.dtype)
            ours, theirs = ours.to(DEVICE, dtype), theirs.to(DEVICE, dtype)
            errors += [{"model": name, **row} for row in network_errors(ours)]
            for batch, steps in itertools.product(args.batch, args.steps):
                # Dynamo keeps eight compiled forms of diffusers' network, and then none.
                torch._dynamo.reset()
                case = {"model": name, "batch": batch, "steps": steps}
                speed, cost = one_case(ours, theirs, batch, steps, args.rounds)
                speeds.append(case | speed)
                costs.append(case | cost)
                judge(report, speeds[-1], costs[-1], CLOSE[args.dtype])
                print(f"{name}: batch {batch}, {steps} steps done", file=sys.stderr)
    how = f"{args.dtype}, {'TF32' if args.tf32 else 'no TF32'}, torch.compile's mode {args.mode}"
    report.table("images", speeds, f"images/s and ratios to diffusers as it is; {how}")
    report.table("what it costs and whether it is right", costs, "s, images, and of [0, 1]")
    report.table("error of the network against float64", errors, "of the largest number in it")
    for row in errors:
        if args.dtype == "float32" and not args.tf32:
            text = (
                f"{row['model']} by {row['back end']} within {FINE} of float64: {row['error']:.1e}"
            )
            report.target(text, row["error"] < FINE)


def one_case(
    ours: ddim.Model, theirs: DDIMPipeline, batch: int, steps: int, rounds: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Speeds and ratios of all contestants; what making them cost, and what they drew."""
    actions: dict[str, Action] = {
        name: functools.partial(draw_theirs, with_mode(theirs, mode), batch, steps)
        for name, mode in THEIRS.items()
    }
    for name in OURS:
        actions[name] = functools.partial(draw_ours, by(ours, name), batch, steps)
    noise = ddim.Noise(0, range(batch), ours.shape, DEVICE, ours.dtype)(0)
    first, drawn = {}, {}
    with same_noise(noise):
        for name, action in actions.items():
            began = time.perf_counter()
            drawn[name] = action()
            first[name] = time.perf_counter() - began
    timings = interleave(actions, rounds, timed)
    taken = {name: median(values) for name, values in timings.items()}
    speed: dict[str, Any] = {name: batch / seconds for name, seconds in taken.items()}
    for name in list(actions)[1:]:
        speed[f"{name} ratio"] = speedup(timings["diffusers"], timings[name])
    speed["best ratio"] = speedup(best_of(timings, THEIRS), best_of(timings, OURS))
    return speed, costs_of(first, taken, drawn, batch)


def costs_of(
    first: dict[str, float], taken: dict[str, float], drawn: Drawn, batch: int
) -> dict[str, Any]:
    """Seconds of making what is made at a first call, when they are back, and differences."""
    cost: dict[str, Any] = {}
    for name, eager in {
        "compile": "torch",
        "cuda-graph": "torch",
        "diffusers compiled": "diffusers",
    }.items():
        made, gained = first[name] - taken[name], (taken[eager] - taken[name]) / batch
        cost[f"{name} s"] = made
        cost[f"{name} pays after"] = round(made / gained) if gained > 0 else "never"
    for name in OURS:
        cost[f"{name} difference"] = float(np.abs(drawn[name] - drawn["diffusers"]).max())
    cost["graph is torch"] = bool((drawn["cuda-graph"] == drawn["torch"]).all())
    return cost


def network_errors(model: ddim.Model) -> list[dict[str, Any]]:
    """How far ε is from that of the same weights in float64, of the largest number in it."""
    level = model.schedule.level(round(LEVEL * model.schedule.T))
    x = ddim.Noise(0, range(16), model.shape, DEVICE)(0)
    exact = copy.deepcopy(model).to(dtype=torch.float64).replace(backend="torch")
    true = exact.denoiser()(x.double(), level).eps
    rows = []
    for name in OURS[:2]:
        found = by(model, name).denoiser()(x, level).eps
        rows.append(
            {"back end": name, "error": float((found - true).abs().max() / true.abs().max())}
        )
    return rows


def judge(report: Report, speed: dict[str, Any], cost: dict[str, Any], close: float) -> None:
    where = f"{speed['model']}, batch {speed['batch']}, {speed['steps']} steps"
    best = speed["best ratio"]
    report.target(f"our best at least the best of diffusers on {where}: {best}", best.median >= 1)
    worst = max(cost[f"{name} difference"] for name in OURS)
    report.target(f"the same images within {close} on {where}: {worst:.1e}", worst < close)
    report.target(f"a graph draws the bits of torch on {where}", cost["graph is torch"])


def best_of(timings: Timings, names: Any) -> list[Timing]:
    """Those of the contestant with the lowest median."""
    return min((timings[name] for name in names), key=median)


def by(model: ddim.Model, backend: str) -> ddim.Model:
    return model.with_backend(backend)


def with_mode(pipeline: DDIMPipeline, mode: str | None) -> DDIMPipeline:
    """The pipeline with its network through ``torch.compile``; as it is for None."""
    if mode is None:
        return pipeline
    unet = torch.compile(pipeline.unet, mode=mode, fullgraph=True)
    made = type(pipeline)(unet=unet, scheduler=pipeline.scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def draw_ours(model: ddim.Model, batch: int, steps: int) -> np.ndarray:
    drawn = ddim.sample(model, batch, steps=steps, batch_size=batch)
    return drawn.div(2).add_(0.5).clamp_(0, 1).permute(0, 2, 3, 1).numpy()


def draw_theirs(pipeline: DDIMPipeline, batch: int, steps: int) -> np.ndarray:
    return pipeline(batch, num_inference_steps=steps, output_type="np").images


@contextlib.contextmanager
def same_noise(noise: torch.Tensor) -> Iterator[None]:
    """diffusers starts from this, which is what image i of seed 0 starts from here."""
    where = "diffusers.pipelines.ddim.pipeline_ddim.randn_tensor"
    with mock.patch(where, side_effect=lambda *_, **__: noise.clone()):
        yield


def timed(action: Action) -> Timing:
    """Seconds between two events on the device, before the first and after the last kernel."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    cpu = time.process_time()
    began.record()
    action()
    ended.record()
    torch.cuda.synchronize()
    return Timing(began.elapsed_time(ended) / 1e3, time.process_time() - cpu)


if __name__ == "__main__":
    sys.exit(main())
