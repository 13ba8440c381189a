"""What measuring costs: seconds of each metric, memory for few and for many images, overhead.

    python benchmarks/metrics.py --json metrics.json

The overhead is the time that measuring a batch of images takes (rounding, the classifier, the sums,
the choice of features), beside the time of drawing it with the `mnist` model. Memory is the peak of
a fresh process that measures N images of random pixels.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch
from measure import Report, interleave, median, once, parser, spread

import ddim
from ddim.evaluate.distances.frechet import frechet_distance
from ddim.evaluate.distances.metrics import kid, precision_recall
from ddim.evaluate.features.extractor import lenet_extractor
from ddim.evaluate.features.statistics import Statistics

WIDE, MOST_SECONDS = 2048, 5.0
COUNT, WIDTH = 10_000, 64
FEW, MANY = 1_000, 50_000
MOST_GROWTH = 1.1
MOST_OVERHEAD = 0.1

PEAK = """
import resource, sys, torch
from ddim.evaluate.features.collection import collect
from ddim.evaluate.features.extractor import lenet_extractor
torch.set_num_threads(1)
extractor, n, batch_size = lenet_extractor(), int(sys.argv[1]), 100
g = torch.Generator().manual_seed(0)
batches = (
    (range(i, i + batch_size), torch.rand(batch_size, 1, 28, 28, generator=g) * 2 - 1)
    for i in range(0, n, batch_size)
)
collect(extractor, batches, "noise", keep=1000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--steps", type=int, nargs="+", default=[10, 50])
    args = made.parse_args()
    report = Report("metrics", args, ["torch", "numpy"])
    _seconds(report)
    _overhead(report, args.steps, 1 if args.quick else args.rounds)
    _memory(report, 2_000 if args.quick else MANY)
    return report.finish()


def _seconds(report: Report) -> None:
    rng = np.random.default_rng(0)

    def covariance(n: int) -> np.ndarray:
        x = rng.standard_normal((n, WIDE)) * np.logspace(-2, 1, WIDE)
        return x.T @ x / n

    few, a, b, zero = (*map(covariance, (FEW, 2 * WIDE, 2 * WIDE)), np.zeros(WIDE))
    x, y = rng.standard_normal((2, COUNT, WIDTH))
    cases = {
        f"Fréchet distance, {WIDE} features": lambda: frechet_distance(zero, a, zero, b),
        f"the same, N = {FEW}, singular": lambda: frechet_distance(zero, few, zero, b),
        f"KID, N = {COUNT}, {WIDTH} features": lambda: kid(x, y),
        f"precision and recall, N = {COUNT}, {WIDTH} features": lambda: precision_recall(x, y),
    }
    rows = []
    for name, action in cases.items():
        timing = min((once(action) for _ in range(3)), key=lambda t: t.wall)
        rows.append({"metric": name, "seconds": timing.wall, "CPU seconds": timing.cpu})
    report.table("seconds", rows, "the best of three")
    seconds = max(row["seconds"] for row in rows[:2])
    report.target(
        f"the Fréchet distance of {WIDE} features takes {seconds:.1f} s, at most {MOST_SECONDS:g}",
        seconds <= MOST_SECONDS,
    )


def _overhead(report: Report, steps: list[int], rounds: int) -> None:
    torch.set_num_threads(1)
    model, extractor = ddim.load("mnist"), lenet_extractor()
    batch_size = 8
    rows = []
    for count in steps:
        images = ddim.sample(model, batch_size, steps=count)
        statistics = Statistics(extractor.identity, "samples")
        # A full choice of features, the dearest state to add to.
        rng = np.random.default_rng(0)
        filling = rng.standard_normal((COUNT, WIDTH)).astype(np.float32)
        statistics.add(filling, np.ones((COUNT, 10)), range(COUNT), (1, 28, 28))
        seen = COUNT

        def add(images=images, statistics=statistics) -> None:
            nonlocal seen
            statistics.add(*extractor(images), range(seen, seen + batch_size), images.shape[1:])
            seen += batch_size

        def draw(count=count) -> None:
            ddim.sample(model, batch_size, steps=count)

        timings = interleave({"draw": draw, "measure": add}, rounds)
        pairs = zip(timings["measure"], timings["draw"], strict=True)
        share = spread([m.cpu / d.cpu for m, d in pairs])
        row = {name: 1e3 * median(taken, "cpu") for name, taken in timings.items()}
        rows.append({"steps": count, **row, "share": share})
        report.target(
            f"measuring costs {share} of drawing in {count} steps, at most {MOST_OVERHEAD:g}",
            share.median <= MOST_OVERHEAD,
        )
    report.table("overhead", rows, f"CPU milliseconds for {batch_size} images, one thread")


def _memory(report: Report, many: int) -> None:
    peaks = {}
    for count in (FEW, many):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(count)], check=True, capture_output=True, text=True
        )
        kib = int(done.stdout) if sys.platform != "darwin" else int(done.stdout) / 1024
        peaks[count] = kib / 1024
    report.table("memory", [{f"N = {n}, MiB": peak for n, peak in peaks.items()}], "peak")
    growth = peaks[many] / peaks[FEW]
    report.target(
        f"{many} images take {growth:.2f} times the memory of {FEW}, at most {MOST_GROWTH}",
        growth <= MOST_GROWTH,
    )


if __name__ == "__main__":
    sys.exit(main())
