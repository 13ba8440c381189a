"""``ddim checks``: a doctor for models."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Annotated

import tyro

from ddim.base.errors import InputError
from ddim.cli.files import DataOptions, read_images
from ddim.cli.options import parse
from ddim.cli.report import print_json, table
from ddim.cli.sampler import RunOptions, open_model

__all__ = ["ChecksOptions", "main"]


@dataclasses.dataclass(frozen=True)
class ChecksOptions(RunOptions, DataOptions):
    """Say what a model is, and find what is wrong with it or with how it is taken.

    With --data, clean images of what it was trained on, the network's own predictions are looked at
    too, which is what finds a wrong target, time convention or schedule. The exit status is 1 if
    there is a problem.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = "mnist"
    """A shipped model's name, a model folder, a training run, a checkpoint of any known kind."""
    data: str = ""
    """Clean images: a data set's name, an image, a folder of images or IDX files, an .npz."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 64
    """How many of them to use."""
    steps: int | None = None
    """Steps of the sampler that is meant; 50 if not given."""
    seed: int = 0
    """Seed of the noise."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`ChecksOptions`."""
    options = parse(ChecksOptions, "checks", argv)
    if options.n < 1:
        raise InputError(f"-n must be at least 1, not {options.n}")

    from ddim.model.doctor import check_model
    from ddim.model.predictions import check_predictions

    model = open_model(options.model, options)
    predictions, used = [], 0
    if options.data:
        images, labels = read_images(options, model, options.n)
        used = len(images)
        predictions = check_predictions(
            model, images, labels=labels, seed=options.seed, batch_size=options.batch_size
        )
    steps = min(50, model.schedule.T) if options.steps is None else options.steps
    findings = check_model(model, steps=steps, predictions=predictions)
    model: dict[str, object] = {
        "model": model.name,
        "shape": list(model.shape),
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "network": type(model.net).__name__,
        "target": model.target.value,
        "classes": model.classes,
        "schedule": str(model.schedule),
        "identity": model.identity,
    }
    rows = [
        {
            "node": c.k,
            "E|eps_theta|^2": round(c.predicted, 4),
            "E|eps-eps_theta|^2": round(c.missed, 4),
            "sum": round(c.total, 4),
        }
        for c in predictions
    ]
    if options.json:
        print_json(
            {
                **model,
                "images": used,
                "predictions": rows,
                "findings": [dataclasses.asdict(f) for f in findings],
            }
        )
    else:
        for key, value in model.items():
            print(f"{key:<11} {value}")
        if rows:
            print(f"\n{table(rows)}\n\nof {used} images")
        for finding in findings:
            print(f"\n[{finding.level}] {_wrapped(finding.what, 4 + len(finding.level))}")
            print(f"    why: {_wrapped(finding.why, 9)}")
            if finding.do:
                print(f"    do:  {_wrapped(finding.do, 9)}")
    return 1 if any(finding.level == "problem" for finding in findings) else 0


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, 96 - indent, subsequent_indent=" " * min(indent, 9))
