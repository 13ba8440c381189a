"""Sampling beside diffusers on the same weights, tables, encoding, memory.

    python benchmarks/loop.py
    python benchmarks/loop.py --parts images --steps 50 --batch 1 16 64 --threads 1 2

Five parts, of which ``--parts`` picks:

overhead
    Microseconds a step when the network costs nothing (a function that returns one and the same
    tensor): :func:`ddim.integrate` and a plain loop over diffusers' ``DDIMScheduler.step``. Apart
    from it, what each needs beforehand: the nodes and the tableau, or ``set_timesteps``.

images
    Images a second of :func:`ddim.sample` and of diffusers' ``DDIMPipeline``, both eager and in
    float32, from drawing the noise to float images in [0, 1], η = 0: for the shipped ``mnist``
    model, and for the network of the DDPM paper for CIFAR-10 with random weights (it predicts v,
    because what such weights make of eps overflows). Loading is left out, and so is writing files.
    The batch is the batch. Once in each case both are given the same noise, and the largest
    difference of a pixel is printed.

tables
    Milliseconds of CPU to build the table of each method at S = T = 1000, schedule and nodes
    included, the best of five.

codecs
    CPU a step of encoding and decoding 8 images with the ``mnist`` model, beside sampling them.

memory
    Peak resident memory of a fresh process that draws images in 10 and in 200 steps: with the
    ``mnist`` model, and with a network that only multiplies, whose states are so large that a loop
    that kept them could not hide it behind the allocator.

Time is wall time, interleaved (see ``measure.py``); a ratio above 1 says that ddim is faster.
Targets are judged by CPU time where there is one thread, else by wall time. The exit status is 1
where one is missed.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from measure import Action, Report, gigaflops, interleave, median, once, parser, speedup
from torch import Tensor

import ddim
from ddim.denoisers.network import NetworkDenoiser
from ddim.nets.unet import UNet, count_flops
from ddim.samplers.loop import final, integrate
from ddim.train.run import unet_config

SHAPES = ((1, 1, 28, 28), (16, 3, 32, 32))
FREE_STEPS = 100
LEAST = {"mnist": 1.1, "cifar10": 1.0}
CLOSE = 1e-3
TABLE_MS = 50
CODEC_STEPS = 10
PEAK_STEPS = (10, 200)
PEAK = """
import pathlib, resource, sys, ddim, torch

class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.1))
    def forward(self, x, t):
        return x * self.scale

torch.set_num_threads(1)
network, steps = sys.argv[1:]
if network == "mnist":
    ddim.sample(ddim.load("mnist"), 32, steps=int(steps), batch_size=32)
else:
    schedule = ddim.Schedule.linear(1000)
    model = ddim.Model(Scale(), schedule, "v", (3, 128, 128))
    ddim.sample(model, 16, steps=int(steps), batch_size=16)
status = pathlib.Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
# The peak that getrusage tells begins with what the parent process had.
peaks += [] if peaks else [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
print(peaks[0])
"""
PEAK_CASES = {"mnist": "32×1×28×28", "none, a product": "16×3×128×128"}
PEAK_STATE = 16 * 3 * 128 * 128 * 4 / 2**20  # MiB of the last case's states


def main() -> int:
    args = arguments()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    report = Report("sampling", args, ["torch", "diffusers", "ddim"])
    if "overhead" in args.parts:
        overhead(report, args.rounds)
    if "images" in args.parts:
        images(report, args)
    if "tables" in args.parts:
        tables(report)
    if "codecs" in args.parts:
        codecs(report, args.rounds)
    if "memory" in args.parts:
        memory(report)
    return report.finish()


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    parts = ["overhead", "images", "tables", "codecs", "memory"]
    made.add_argument("--parts", nargs="+", choices=parts, default=parts)
    made.add_argument("--models", nargs="+", choices=list(LEAST), default=list(LEAST))
    made.add_argument("--steps", nargs="+", type=int, default=[50, 10], help="for mnist")
    made.add_argument("--cifar10-steps", nargs="+", type=int, default=[4], help="for cifar10")
    made.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    made.add_argument("--threads", nargs="+", type=int, default=[1])
    args = made.parse_args()
    if args.quick:
        args.rounds, args.steps, args.cifar10_steps = min(args.rounds, 3), [10], [1]
    return args


def overhead(report: Report, rounds: int) -> None:
    """The loop with a free network, one thread."""
    torch.set_num_threads(1)
    cases = {"×".join(map(str, shape)): _loops(shape) for shape in SHAPES}
    rows = []
    for case, contestants in {**cases, "none: the plan": _plans()}.items():
        timings = interleave(contestants, max(rounds, 7))
        row: dict[str, Any] = {"states": case}
        for name, taken in timings.items():
            row[name] = median(taken, "cpu") / FREE_STEPS * 1e6
        row["ratio"] = speedup(timings["diffusers"], timings["ddim"])
        row["CPU ratio"] = speedup(timings["diffusers"], timings["ddim"], "cpu")
        rows.append(row)
    note = f"µs of CPU a step, {FREE_STEPS} steps, one thread; the network costs nothing, 0 GFLOP"
    report.table("overhead", rows, note)
    plan = rows.pop()["ddim"]
    for row in rows:
        report.target(
            f"overhead a step below diffusers', states {row['states']}: {row['ddim']:.1f} µs and "
            f"{plan:.1f} µs of plan, diffusers {row['diffusers']:.1f} µs",
            row["ddim"] + plan < row["diffusers"],
        )


def _loops(shape: tuple[int, ...]) -> dict[str, Action]:
    schedule = ddim.Schedule.linear(1000)
    tableau = ddim.Sampler("ddim", FREE_STEPS).tableau(schedule)
    generator = torch.Generator().manual_seed(0)
    start, output = (torch.randn(shape, generator=generator) for _ in range(2))

    def network(x: Tensor, t: Tensor) -> Tensor:
        return output

    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(FREE_STEPS)

    def ours() -> Tensor:
        return final(integrate(NetworkDenoiser(network), tableau, start))[0]

    def theirs() -> Tensor:
        x = start
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x).prev_sample
        return x

    expected = theirs()
    worst = ((ours() - expected).abs().max() / expected.abs().max()).item()
    if worst > CLOSE:
        raise RuntimeError(f"the two loops disagree by {worst:.1e}")
    return {"ddim": ours, "diffusers": theirs}


def _plans() -> dict[str, Action]:
    schedule = ddim.Schedule.linear(1000)
    scheduler = DDIMScheduler(timestep_spacing="trailing")

    def ours() -> ddim.Tableau:
        return ddim.Sampler("ddim", FREE_STEPS).tableau(schedule)

    def theirs() -> None:
        scheduler.set_timesteps(FREE_STEPS)

    return {"ddim": ours, "diffusers": theirs}


def images(report: Report, args: argparse.Namespace) -> None:
    """Whole images, for each model, number of threads, batch size and number of steps."""
    rows, flops = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            ours, theirs = opened(name, Path(folder) / name)
            flops.append(f"{name}: {gigaflops(count_flops(ours.net))}")
            steps = args.steps if name == "mnist" else args.cifar10_steps
            for threads, batch, S in _grid(args.threads, args.batch, steps):
                torch.set_num_threads(threads)
                row = _one_case(ours, theirs, batch, S, args.rounds, threads)
                row = {"model": name, "threads": threads, "batch": batch, "steps": S, **row}
                print(f"{name}: batch {batch}, {S} steps done", file=sys.stderr)
                rows.append(row)
                _judge(report, row)
    report.table("images", rows, "images/s; " + "; ".join(flops))


def _grid(*axes: list[int]) -> list[tuple[int, ...]]:
    grid: list[tuple[int, ...]] = [()]
    for axis in axes:
        grid = [(*point, value) for point in grid for value in axis]
    return grid


def opened(name: str, folder: Path) -> tuple[ddim.Model, DDIMPipeline]:
    """The same weights, in a folder that both open."""
    if name == "mnist":
        ddim.load("mnist").save(folder)
    else:
        config = ddim.TrainConfig.preset("cifar10")
        torch.manual_seed(0)
        net = UNet(unet_config(config, (3, 32, 32), None)).eval()
        schedule = ddim.Schedule.from_spec(config.schedule_spec())
        ddim.Model(net, schedule, "v", (3, 32, 32)).save(folder)
    theirs = DDIMPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    return ddim.load(folder).with_backend("torch"), theirs  # the loop is measured, not back ends


def _one_case(
    ours: ddim.Model, theirs: DDIMPipeline, batch: int, steps: int, rounds: int, threads: int
) -> dict[str, Any]:
    draw = functools.partial(_ours, ours, batch, steps)
    call = functools.partial(_theirs, theirs, batch, steps)
    noise = ddim.Noise(0, range(batch), ours.shape)(0)
    with mock.patch("diffusers.pipelines.ddim.pipeline_ddim.randn_tensor", return_value=noise):
        difference = float(np.abs(draw() - call()).max())
    timings = interleave({"ddim": draw, "diffusers": call}, rounds)
    row = {name: batch / median(taken) for name, taken in timings.items()}
    row |= {"ratio": speedup(timings["diffusers"], timings["ddim"])}
    by_cpu = speedup(timings["diffusers"], timings["ddim"], "cpu") if threads == 1 else "-"
    return row | {"CPU ratio": by_cpu, "difference": difference}


def _ours(model: ddim.Model, batch: int, steps: int) -> np.ndarray:
    drawn = ddim.sample(model, batch, steps=steps, batch_size=batch)
    return drawn.div(2).add_(0.5).clamp_(0, 1).permute(0, 2, 3, 1).numpy()


def _theirs(model: DDIMPipeline, batch: int, steps: int) -> np.ndarray:
    return model(batch, num_inference_steps=steps, output_type="np").images


def _judge(report: Report, row: dict[str, Any]) -> None:
    least = LEAST[row["model"]]
    ratio = row["CPU ratio"] if row["threads"] == 1 else row["ratio"]
    where = f"{row['model']}, batch {row['batch']}, {row['steps']} steps, {row['threads']} threads"
    report.target(f"at least {least} × diffusers on {where}: {ratio}", ratio.median >= least)
    report.target(
        f"the same images within {CLOSE} on {where}: {row['difference']:.1e}",
        row["difference"] < CLOSE,
    )


def tables(report: Report) -> None:
    """Building every table at S = T = 1000."""

    def build(method: str) -> int:
        return len(ddim.Sampler(method, 1000).tableau(ddim.Schedule.linear(1000)).rows)

    rows = []
    for method in (name for name, entry in ddim.METHODS.items() if not entry.needs):
        best = min(once(functools.partial(build, method)).cpu for _ in range(5))
        rows.append({"method": method, "rows": build(method), "ms": best * 1e3})
    report.table("tables", rows, "CPU time to build a table, S = T = 1000")
    worst = max(rows, key=lambda row: row["ms"])
    report.target(
        f"every table in {TABLE_MS} ms: the slowest is {worst['method']}, {worst['ms']:.1f} ms",
        worst["ms"] <= TABLE_MS,
    )


def codecs(report: Report, rounds: int) -> None:
    """Encoding and decoding beside sampling, one thread."""
    torch.set_num_threads(1)
    model = ddim.load("mnist")
    given = ddim.sample(model, 8, steps=CODEC_STEPS)
    kinds = ("ddim", "obelm", "bdia", "edict")
    latents = {c: ddim.encode(model, given, steps=CODEC_STEPS, codec=c) for c in kinds}
    actions: dict[str, Action] = {"sample": lambda: ddim.sample(model, 8, steps=CODEC_STEPS)}
    for codec in kinds:
        actions[f"{codec} encode"] = functools.partial(
            ddim.encode, model, given, steps=CODEC_STEPS, codec=codec
        )
        actions[f"{codec} decode"] = functools.partial(ddim.decode, model, latents[codec])
    timings = interleave(actions, max(rounds, 7))
    rows = []
    for name, taken in timings.items():
        ratio = speedup(taken, timings["sample"], "cpu")
        rows.append({"run": name, "ms a step": median(taken, "cpu") / CODEC_STEPS * 1e3})
        rows[-1]["of sampling's"] = ratio
    report.table("codecs", rows, f"CPU a step, 8 images of mnist, {CODEC_STEPS} steps, one thread")
    default = [row["of sampling's"].median for row in rows if row["run"].startswith("obelm")]
    report.target(
        f"encoding and decoding by obelm cost {default[0]:.2f} and {default[1]:.2f} times a step "
        "of sampling",
        max(default) <= 1.1,
    )


def memory(report: Report) -> None:
    """Peak memory for few and for many steps."""
    few, many = PEAK_STEPS
    rows = []
    for network, states in PEAK_CASES.items():
        row: dict[str, Any] = {"network": network, "states": states}
        rows.append(row | {f"{S} steps, MiB": _peak(network, S) for S in PEAK_STEPS})
    report.table("memory", rows, "peak of a fresh process that draws one batch of images")
    growth = rows[-1][f"{many} steps, MiB"] - rows[-1][f"{few} steps, MiB"]
    kept = (many - few) * PEAK_STATE
    report.target(
        f"{many - few} steps more take {growth:.0f} MiB more at the peak, "
        f"less than a tenth of the {kept:.0f} MiB that keeping one state a step would take",
        growth < kept / 10,
    )


def _peak(network: str, steps: int) -> float:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, network, str(steps)],
        check=True,
        capture_output=True,
        text=True,
    )
    kib = int(done.stdout) if sys.platform != "darwin" else int(done.stdout) / 1024
    return kib / 1024


if __name__ == "__main__":
    sys.exit(main())
