"""Sets of shards: memory, writing, processes beside each other, the manifest, checking.

python benchmarks/shards.py            # five minutes on two cores
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ddim.data.manifest import Manifest, Shard
from ddim.data.sharded import ShardData
from ddim.shards.checking import verify
from ddim.shards.progress import Progress

MEMORY = """
import resource, sys, torch, ddim
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
    def forward(self, x, t):
        return self.weight * 0.1 * x
schedule = ddim.Schedule.linear(20, 0.01, 0.4)
model = ddim.Model(Net().eval(), schedule, "eps", (1, 28, 28))
drawing = ddim.shards.draw(
    model, sys.argv[1], int(sys.argv[2]), steps=2, shard_size=500, batch_size=500
)
for told in drawing:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
WORKER = """
import sys, time, torch, ddim
torch.set_num_threads(int(sys.argv[2]))
model = ddim.load("mnist").with_backend("torch")
ddim.sample(model, 16, steps=4)
print("ready", flush=True)
sys.stdin.readline()
start, writing, drawn = time.perf_counter(), 0.0, 0
for told in ddim.shards.draw(model, sys.argv[1], 480, steps=10, shard_size=40, batch_size=8):
    writing, drawn = writing + told.seconds, drawn + told.images
print(time.perf_counter() - start, writing, drawn, flush=True)
"""


def memory(folder: Path) -> None:
    peaks = {}
    for n in (500, 50_000):
        words = [sys.executable, "-c", MEMORY, str(folder / str(n)), str(n)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        peaks[n] = float(done.stdout)
    print(f"peak memory: {peaks[500]:.0f} MiB for 500 images, {peaks[50_000]:.0f} for 50,000")


def _race(folder: Path, processes: int, threads: int) -> tuple[float, float]:
    """Seconds of the slowest, and the share of writing."""
    words = [sys.executable, "-c", WORKER, str(folder), str(threads)]
    started = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    results = [list(map(float, process.communicate()[0].split())) for process in started]
    assert sum(drawn for _, _, drawn in results) == 480
    seconds = max(result[0] for result in results)
    return seconds, max(result[1] / result[0] for result in results)


def processes(folder: Path, rounds: int = 5) -> None:
    kinds = {"1 process, 1 thread": (1, 1), "1 process, 2 workers": (1, 2), "2 processes": (2, 1)}
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for number in range(rounds):
        for kind, (count, threads) in kinds.items():
            taken[kind].append(_race(folder / f"{number} {kind}", count, threads))
    base = statistics.median(seconds for seconds, _ in taken["1 process, 1 thread"])
    for kind, results in taken.items():
        seconds = statistics.median(seconds for seconds, _ in results)
        writing = statistics.median(share for _, share in results)
        print(
            f"480 images of mnist in 10 steps, {kind}: {seconds:.2f} s, {base / seconds:.2f} times "
            f"one thread; writing {writing:.2%}"
        )
    print(f"load {os.getloadavg()[0]:.1f}")


def manifests(folder: Path) -> None:
    for count in (100, 10_000, 50_000):
        place = folder / str(count)
        manifest = Manifest(count, 1, "npz", (1, 8, 8), None, {}, {})
        progress = Progress(place, manifest)
        for number in range(count):
            progress.path(number).touch()
        shards = [Shard(number, 1, 0, "0" * 64) for number in range(count)]
        manifest.with_shards(shards).write(place)
        opening = min(_timed(lambda p=place: ShardData(p)) for _ in range(3))
        noting = min(_timed(lambda s=shards[-1], p=progress: p.note(s)) for _ in range(20))
        going_on = min(_timed(lambda p=place, m=manifest: Progress(p, m)) for _ in range(3))
        size = (place / "manifest.json").stat().st_size
        print(
            f"{count} shards: opened in {opening:.3f} s, gone on with in {going_on:.3f} s, a shard "
            f"noted in {noting * 1e3:.2f} ms, manifest of {size / 1e6:.2f} MB"
        )


def checking(folder: Path, megabytes: int = 512) -> None:
    progress = Progress(folder, Manifest(megabytes * 256, 256, "npz", (1, 64, 64), None, {}, {}))
    pixels = np.random.default_rng(0).integers(0, 256, (256, 64, 64, 1), dtype=np.uint8)
    for number in range(megabytes):
        progress.write(number, pixels, None)
    progress.fold()
    files = [str(path) for path in folder.glob("*.npz")]
    ratios = []
    for _ in range(5):
        theirs = _timed(lambda: subprocess.run(["sha256sum", *files], capture_output=True))
        ratios.append(theirs / _timed(lambda: verify(folder)))
    print(f"verify: {statistics.median(ratios):.2f} times as fast as sha256sum, {megabytes} MiB")


def _timed(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "2"
    for part in (memory, processes, manifests, checking):
        with tempfile.TemporaryDirectory() as name:
            part(Path(name) / "sets")
