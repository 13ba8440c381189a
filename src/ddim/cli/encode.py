"""``ddim encode``: images to latents."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing
from ddim.cli.files import DataOptions, read_images
from ddim.cli.options import parse
from ddim.cli.report import print_json, record
from ddim.cli.sampler import RunOptions, open_model

__all__ = ["EncodeOptions", "main"]


@dataclasses.dataclass(frozen=True)
class EncodeOptions(RunOptions, DataOptions):
    """Turn images into latents, from which `ddim decode` makes them again.

    Codecs: obelm is exact for any network at one call a step, its latent a pair of tensors; ddim is
    the paper's, one tensor, approximate; implicit has one tensor and DDIM itself as the decoder,
    and solves for it at some ten calls a step, which can fail; edict and bdia are other exact
    pairs. Images that implicit did not converge on are named, and the exit status is 1.
    """

    model: str = "mnist"
    """A shipped model's name, a model folder, a training run or its checkpoint."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 64
    """How many images, from the first on."""
    codec: str = "obelm"
    """obelm, ddim, implicit, edict or bdia."""
    steps: int | None = None
    """Steps, from 1 to T; 50 if neither this nor a list of nodes is given."""
    nodes: str = "uniform"
    """Where the steps stop: uniform, quadratic, log-snr, or a falling list like 500,250,1."""
    guidance: float = 1.0
    """Classifier-free guidance scale; 1 is none."""
    clip: bool | None = None
    """Must come out as off, since clipping cannot be undone; None for the model's own habit."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the network and of the latents."""
    output: str = "latents.safetensors"
    """The file."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`EncodeOptions`."""
    options = parse(EncodeOptions, "encode", argv)
    output = Path(options.output)
    if output.suffix != ".safetensors":
        raise InputError(f"--output is a .safetensors file, not {output.name}")
    if options.n < 1:
        raise InputError(f"-n must be at least 1, not {options.n}")
    refuse_existing(output, force=options.force)

    import torch

    from ddim.latents.coding import encode
    from ddim.samplers.methods.reversible import amplification

    model = open_model(options.model, options, options.dtype)
    images, labels = read_images(options, model, options.n)
    start = time.perf_counter()
    latents = encode(
        model,
        images,
        steps=options.steps,
        codec=options.codec,
        nodes=options.nodes,
        labels=labels,
        guidance=options.guidance,
        clip=options.clip,
        batch_size=options.batch_size,
        dtype=getattr(torch, options.dtype),
        progress=not options.quiet,
    )
    seconds = time.perf_counter() - start
    latents.save(output)
    resolved = options.resolved(batch_size=latents.batch_size, n=len(latents))
    if not options.nodes[:1].isdigit() and options.codec != "implicit":
        resolved = dataclasses.replace(resolved, steps=len(latents.nodes) - 1)
    record(output, "encode", resolved, model=model.name, identity=model.identity)
    facts: dict[str, object] = {
        "output": str(output),
        "images": len(latents),
        "codec": latents.codec,
        "tensors": len(latents.tensors),
        "steps": len(latents.nodes) - 1,
        "network_calls": latents.calls,
        "seconds": round(seconds, 3),
        "dtype": options.dtype,
        "batch_size": latents.batch_size,
    }
    if latents.codec == "edict":
        facts["amplification"] = amplification(0.93, len(latents.nodes) - 1)
    unsolved = latents.unsolved
    if latents.residual is not None:
        facts |= {"residual": latents.residual.tolist(), "unsolved": unsolved}
    if options.json:
        print_json(facts)
    else:
        print(
            f"{output}: {len(latents)} images by {latents.codec} in {len(latents.nodes) - 1} "
            f"steps, {latents.calls} network calls each, {seconds:.1f} s"
        )
        if "amplification" in facts:
            print(f"EDICT's mixing alone amplifies rounding {facts['amplification']:.0e} times")
        if latents.residual is not None:
            _print_residuals(latents.residual.tolist(), unsolved)
    if unsolved:
        print(
            f"ddim encode: {len(unsolved)} of {len(latents)} images did not converge "
            f"({_listed(unsolved)}): more steps help, or the codec obelm",
            file=sys.stderr,
        )
    return 1 if unsolved else 0


def _print_residuals(residuals: Sequence[float], unsolved: Sequence[int]) -> None:
    solved = sorted(set(range(len(residuals))) - set(unsolved))
    share = len(solved) / len(residuals)
    print(f"converged: {len(solved)} of {len(residuals)} ({share:.1%})")
    for i, residual in enumerate(residuals):
        print(f"  image {i}: residual {residual:.2e}" + (" (not solved)" * (i in unsolved)))


def _listed(indices: Sequence[int], most: int = 20) -> str:
    """Some numbers, and that there are more."""
    return ", ".join(map(str, indices[:most])) + (", …" if len(indices) > most else "")
