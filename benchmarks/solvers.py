"""Which sampler: the order of each, and its error on a real network against the network calls.

    python benchmarks/solvers.py [--model mnist] [--images 16] [--plot docs/solvers.png]
    python benchmarks/solvers.py --orders

The order is measured in the lab of ``ddim.samplers.order``. The error is the distance, on [-1, 1],
between a sampler's image and the one that the same network and the same noise lead to in the limit
of many steps: DPM-Solver++(2M) over all T nodes. RMS over an image's pixels, the median over the
images, since single images may change into others. Random samplers have no such limit and are not
in the table. Results are kept in --cache and not measured twice. --orders prints the order of every
method in all its forms, and draws nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

import ddim
from ddim.base.errors import InputError
from ddim.base.plots import line_style

CALLS = (5, 8, 10, 20, 50)
SAMPLERS = [
    # name, method with its options, network calls a step, and those that the last step saves
    ("DDIM", "ddim", 1, 0),
    ("probability-flow Euler", "pf-euler", 1, 0),
    ("gradient estimation", "gradient-estimation", 1, 0),
    ("PLMS, 4", "plms:order=4", 1, 0),
    ("DEIS in ρ, 3", "deis:order=3", 1, 0),
    ("DEIS in t, 3", "deis:order=3:variable=t", 1, 0),
    ("DPM-Solver++ 2M", "dpmpp:order=2", 1, 0),
    ("DPM-Solver++ 3M", "dpmpp:order=3", 1, 0),
    ("DPM-Solver++ 3M, published", "dpmpp:order=3:form=published", 1, 0),
    ("UniPC, 2", "unipc:order=2", 1, 0),
    ("UniPC, 3", "unipc:order=3", 1, 0),
    ("Heun", "heun", 2, 1),
    ("DPM-Solver-3", "dpm-solver-3", 3, 2),
    ("O-BELM", "obelm", 1, 0),
]
NODES = ("uniform", "quadratic", "log-snr")
SHOWN = ("DDIM", "PLMS, 4", "DEIS in ρ, 3", "DPM-Solver++ 2M", "UniPC, 3", "Heun", "DPM-Solver-3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("solvers.json"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--orders", action="store_true")
    options = parser.parse_args()
    if options.orders:
        print_orders()
        return
    torch.set_num_threads(options.threads)
    model = ddim.load(options.model)
    key = f"{model.identity[:12]} {options.images}"
    cache = json.loads(options.cache.read_text()) if options.cache.exists() else {}
    found = cache.setdefault(key, {})
    limit = draw(model, options.images, ddim.Sampler("dpmpp", model.schedule.T))
    for nodes in NODES:
        for name, method, a_step, saved in SAMPLERS:
            for calls in CALLS:
                cell = f"{name} | {nodes} | {calls}"
                steps = (calls + saved) // a_step
                if cell in found or steps < 1:
                    continue
                try:
                    sampler = ddim.Sampler.parse(method, steps, nodes)
                    images = draw(model, options.images, sampler)
                except InputError:
                    continue  # a reversible method needs more steps
                errors = (images - limit).flatten(1).square().mean(1).sqrt().tolist()
                found[cell] = statistics.median(errors)
                options.cache.write_text(json.dumps(cache, indent=1))
    print(f"{options.images} images of {options.model}, seed 0, T = {model.schedule.T}\n")
    table(found)
    if options.plot:
        plot(found, options.plot, options.model)


def print_orders() -> None:
    print("| `--method` | options | order measured |\n|---|---|---|")
    for name, method in ddim.METHODS.items():
        for options in method.orders:
            sampler = ddim.Sampler.parse(f"{name}:{options}" if options else name)
            said = options.replace("=", " ").replace(":", ", ")
            print(f"| `{name}` | {said} | {ddim.measured_order(sampler):.2f} |")


def draw(model: ddim.Model, images: int, sampler: ddim.Sampler) -> torch.Tensor:
    drawn = ddim.generate(model, model.tableau(sampler), range(images))
    return torch.cat([event.images for event in drawn if event.images is not None])


def table(found: dict[str, float]) -> None:
    for nodes in NODES:
        print(f"| {nodes} nodes | order | " + " | ".join(f"{c} calls" for c in CALLS) + " |")
        print("|---" * (2 + len(CALLS)) + "|")
        columns = [best(found, nodes, calls) for calls in CALLS]
        for name, method, _, _ in SAMPLERS:
            order = ddim.measured_order(method)
            cells = []
            for calls, least in zip(CALLS, columns, strict=True):
                value = found.get(f"{name} | {nodes} | {calls}")
                text = "" if value is None else f"{value:.3f}"
                cells.append(f"**{text}**" if value is not None and value == least else text)
            print(f"| {name} | {order:.1f} | " + " | ".join(cells) + " |")
        print()


def best(found: dict[str, float], nodes: str, calls: int) -> float:
    return min(v for k, v in found.items() if k.endswith(f" | {nodes} | {calls}"))


def plot(found: dict[str, float], path: Path, model: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, len(NODES), sharey=True)
    for nodes, axes in zip(NODES, panels, strict=True):
        for number, name in enumerate(SHOWN):
            cells = [(c, found.get(f"{name} | {nodes} | {c}")) for c in CALLS]
            points = [(c, v) for c, v in cells if v is not None]
            axes.plot(*zip(*points, strict=True), label=name, **line_style(number))
        axes.set(xscale="log", yscale="log", xlabel="network calls", title=f"{nodes} nodes")
        axes.set_xticks(CALLS, [str(c) for c in CALLS])
        axes.minorticks_off()
        axes.set_ylim(1e-3, 1)  # solvers of one step at a time go off it with two or three steps
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"median RMS to the limit, {model}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
