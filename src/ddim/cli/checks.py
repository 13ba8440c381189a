"""``ddim checks``: a doctor for models."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from ddim.base.errors import InputError
from ddim.cli.files import read_images
from ddim.cli.groups import Count, DataOptions, ModelArgument, RunOptions, unset
from ddim.cli.options import parse
from ddim.cli.report import print_json, table

if TYPE_CHECKING:
    from ddim.model.doctor import Finding
    from ddim.model.model import Model
    from ddim.model.predictions import PredictionCheck

__all__ = ["ChecksOptions", "main"]

_PACKAGES = (
    "torch", "numpy", "safetensors", "tyro", "ncnn", "openvino", "diffusers", "huggingface_hub",
    "onnx", "onnxruntime", "scipy", "scikit-learn", "matplotlib",
)  # fmt: skip
"""What the behaviour of the package may depend on."""


@dataclasses.dataclass(frozen=True)
class ChecksOptions:
    """Say what a model is, and find what is wrong with it or with how it is taken.

    With --data, clean images of what it was trained on, the network's own predictions are looked at
    too, which is what finds a wrong target, time convention or schedule. The exit status is 1 if
    there is a problem. With --json it says the machine's versions and back ends too, which belongs
    into a report of something that does not work.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim checks model/ --data FOLDER",
        "ddim checks mine.py:model --data images.npz --steps 20 --json",
    )

    n: Count = 64
    """How many of the images to use."""
    steps: Annotated[int | None, unset("50", "INT")] = None
    """Steps of the sampler that is meant."""
    seed: int = 0
    """Seed of the noise."""
    model: ModelArgument = dataclasses.field(default_factory=ModelArgument)
    data: DataOptions = DataOptions(data="")
    run: RunOptions = RunOptions()


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`ChecksOptions`."""
    options = parse(ChecksOptions, "checks", argv)
    if options.n < 1:
        raise InputError(f"-n must be at least 1, not {options.n}")
    model = options.model.open(options.run)

    from ddim.model.condition import Condition
    from ddim.model.doctor import check_model
    from ddim.model.predictions import check_predictions

    predictions, used = [], 0
    if options.data.data:
        images, labels = read_images(options.data, model, options.n)
        used = len(images)
        predictions = check_predictions(
            model,
            images,
            condition=Condition(labels),
            seed=options.seed,
            batch_size=options.run.batch_size,
        )
    steps = min(50, model.schedule.T) if options.steps is None else options.steps
    findings = check_model(model, steps=steps, predictions=predictions)
    rows = [_row(check) for check in predictions]
    if options.run.json:
        found = [dataclasses.asdict(finding) for finding in findings]
        print_json(
            {
                **_about(model),
                "environment": _environment(model),
                "images": used,
                "asked": options.n,
                "predictions": rows,
                "findings": found,
            }
        )
    else:
        _tell(_about(model), rows, used, findings)
    return 1 if any(finding.level == "problem" for finding in findings) else 0


def _about(model: Model) -> dict[str, object]:
    from ddim.model.identity import bare

    return {
        "model": model.name,
        "shape": list(model.shape),
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "network": type(bare(model.net)).__name__,
        "target": model.target.value,
        "classes": model.classes,
        "schedule": str(model.schedule),
        "identity": model.identity,
    }


def _environment(model: Model) -> dict[str, object]:
    """What a report of something that does not work needs to say of the machine."""
    import platform

    import torch

    from ddim import __version__
    from ddim.backends.choice import standing
    from ddim.evaluate.speed.machine import machine

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "ddim": __version__,
        **machine(_PACKAGES),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
        "device": str(model.device),
        "backends": standing(model.network, model.device),
    }


def _row(check: PredictionCheck) -> dict[str, object]:
    return {
        "node": check.k,
        "E|eps_theta|^2": round(check.predicted, 4),
        "E|eps-eps_theta|^2": round(check.missed, 4),
        "sum": round(check.total, 4),
    }


def _tell(
    about: dict[str, object], rows: list[dict[str, object]], used: int, findings: list[Finding]
) -> None:
    for key, value in about.items():
        print(f"{key:<11} {value}")
    if rows:
        print(f"\n{table(rows)}\n\nof {used} images")
    for finding in findings:
        print(f"\n[{finding.level}] {_wrapped(finding.what, 4 + len(finding.level))}")
        print(f"    why: {_wrapped(finding.why, 9)}")
        if finding.do:
            print(f"    do:  {_wrapped(finding.do, 9)}")


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, 96 - indent, subsequent_indent=" " * min(indent, 9))
