"""How long opening a large checkpoint takes, and how much memory.

    python benchmarks/load.py

The official network of bedroom and church, 113,673,219 parameters (455 MB), drawn at random and
written in every kind of file that it comes in. Each is opened in fresh processes, in random order,
medians of seven after two that are not counted, so the files are in the system's cache. The seconds
are those of ``ddim.load`` alone, without the imports. Memory is what the process's peak resident
set grew by, mapped pages of the file included, over the size of the parameters in float32.

Targets: under 2 s and under 1.3 times, for every file that can be memory-mapped; bare pickles,
which torch wrote until 2020, cannot be, and are shown beside them. The clock of the target is wall
time: on a busy machine look at CPU time, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from measure import Report, Timing, interleave, median, parser, spread

SECONDS, RATIO = 2.0, 1.3
PARAMETERS = 113_673_219
BARE = "official, a bare pickle of 2020"

MAKE = """
import logging, sys, torch
from pathlib import Path
logging.disable()
from ddim.checkpoints.official import official_picks
from ddim.model.model import Model
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.schedule import Schedule

folder = Path(sys.argv[1])
kinds = ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"]
config = UNetConfig(
    sample_size=256, block_out_channels=(128, 128, 256, 256, 512, 512),
    down_block_types=kinds, up_block_types=[k.replace("Down", "Up") for k in kinds[::-1]],
    attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
    norm_eps=1e-6,
)
net = UNet(config).requires_grad_(False).eval()
own = net.state_dict()
flat = {p.key: own[k].reshape(p.shape(own[k].shape)) for k, p in official_picks(net).items()}
torch.save(flat, folder / "flat.ckpt")
torch.save(flat, folder / "bare.ckpt", _use_new_zipfile_serialization=False)
optimizer = {"state": {i: {"exp_avg": v, "exp_avg_sq": v} for i, v in enumerate(flat.values())}}
raw = {"module." + k: v for k, v in flat.items()}
average = {k: v.clone() for k, v in flat.items()}
torch.save([raw, optimizer, 1, 1, average], folder / "list.pth")
torch.save({k: v.half() for k, v in flat.items()}, folder / "half.ckpt")
Model(net, Schedule.linear(1000), "eps", (3, 256, 256)).save(folder / "folder")
"""

OPEN = """
import json, logging, sys, time, torch
logging.disable()
torch.set_num_threads(1)
import ddim
ddim.load("mnist")
from pathlib import Path

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

before, wall, cpu = peak(), time.perf_counter(), time.process_time()
model = ddim.load(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
count = sum(p.numel() for p in model.net.parameters())
print(json.dumps({"wall": wall, "cpu": cpu, "grew": peak() - before, "parameters": count}))
"""


class Opened(NamedTuple):
    """One process: its times are a :class:`measure.Timing`'s, and what its peak grew by."""

    wall: float
    cpu: float
    grew: int


def main() -> int:
    args = parser(__doc__).parse_args()
    if args.quick:
        args.rounds = min(args.rounds, 3)
    report = Report(
        "opening a checkpoint of 114 million parameters", args, ["torch", "safetensors"]
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-c", MAKE, name], check=True)
        files = {
            "official, flat": folder / "flat.ckpt",
            "official, training list with its average": folder / "list.pth",
            "official, float16": folder / "half.ckpt",
            "diffusers' folder, safetensors": folder / "folder",
            BARE: folder / "bare.ckpt",
        }
        opened = interleave(files, args.rounds, time_one=open_in_a_process)
        sizes = {what: size(path) for what, path in files.items()}
    rows = []
    for what, runs in opened.items():
        ratio = spread([run.grew / (4 * PARAMETERS) for run in runs]).median
        timings = [Timing(run.wall, run.cpu) for run in runs]
        wall, cpu = median(timings), median(timings, "cpu")
        rows.append(
            {"file": what, "MB": sizes[what] / 1e6, "wall s": wall, "CPU s": cpu, "memory": ratio}
        )
        if what != BARE:
            busy = ", which meets it: the machine is busy" if cpu <= SECONDS < wall else ""
            seconds = f"{wall:.2f} s (CPU {cpu:.2f} s{busy})"
            report.target(f"{what}: under {SECONDS:g} s: {seconds}", wall < SECONDS)
            report.target(f"{what}: under {RATIO} times its size: {ratio:.2f}", ratio < RATIO)
    report.table("ddim.load", rows, f"medians of {args.rounds}; one thread")
    return report.finish()


def open_in_a_process(path: Path) -> Opened:
    command = [sys.executable, "-c", OPEN, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    if found["parameters"] != PARAMETERS:
        raise SystemExit(f"{path}: {found['parameters']:,} parameters, not {PARAMETERS:,}")
    return Opened(found["wall"], found["cpu"], found["grew"])


def size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    sys.exit(main())
