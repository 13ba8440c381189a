"""``ddim encode``: images to latents."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing
from ddim.cli.files import read_images
from ddim.cli.groups import (
    CodecOptions,
    Count,
    DataConditionOptions,
    DataOptions,
    ModelOptions,
    OutputOptions,
    RunOptions,
    unset,
)
from ddim.cli.options import parse, replaced
from ddim.cli.report import print_json, record

if TYPE_CHECKING:
    from ddim.latents.record import Latents

__all__ = ["EncodeOptions", "main"]


@dataclasses.dataclass(frozen=True)
class _EncodedCondition(DataConditionOptions):
    """What the images are conditioned on."""

    clip: Annotated[
        bool | None, tyro.conf.FlagConversionOff, unset("the model's default", "{true,false}")
    ] = None
    """Clip the predicted x0: false for a model that clips, since clipping cannot be undone."""


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """Turn images into latents, from which `ddim decode` makes them again.

    Codecs: obelm is exact for any network at one call a step, and its latent is a pair of tensors;
    ddim is the paper's, with one tensor, and approximate; implicit has one tensor and DDIM itself
    as the decoder, and solves for the latent at some ten calls a step, which can fail; edict and
    bdia are other exact pairs. Images that implicit did not converge on are named, and the exit
    status is 1.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim encode --data mnist -n 16 --steps 20",
        "ddim encode --data photos --codec implicit --dtype float64 --output photos.safetensors",
    )

    n: Count = 64
    """How many images, from the first on."""
    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
    codec: CodecOptions = dataclasses.field(default_factory=CodecOptions)
    condition: _EncodedCondition = _EncodedCondition()
    output: OutputOptions = OutputOptions(output="latents.safetensors")
    run: RunOptions = RunOptions()

    def check(self) -> Path:
        """The output, if it is one that can be written.

        Raises:
            InputError: it is not, or there are no images to encode.
        """
        output = Path(self.output.output)
        if output.suffix != ".safetensors":
            raise InputError(f"--output is a .safetensors file, not {output.name}")
        if self.n < 1:
            raise InputError(f"-n must be at least 1, not {self.n}")
        refuse_existing(output, force=self.output.force)
        return output


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`EncodeOptions`."""
    options = parse(EncodeOptions, "encode", argv)
    output, coding = options.check(), options.codec.coding()

    import torch

    from ddim.latents.coding import encode

    model = options.model.open(options.run)
    labelled = not options.condition.labels
    images, found = read_images(options.data, model, options.n, labelled=labelled)
    start = time.perf_counter()
    latents = encode(
        model,
        images,
        codec=coding.codec,
        steps=coding.sampler.steps,
        nodes=coding.sampler.nodes,
        condition=options.condition.condition(found, options.condition.clip),
        batch_size=options.run.batch_size,
        dtype=getattr(torch, options.model.dtype),
        progress=not options.run.quiet,
    )
    seconds = time.perf_counter() - start
    latents.save(output)
    resolved = replaced(
        options,
        n=len(latents),
        steps=coding.sampler.steps or len(latents.nodes) - 1,
        batch_size=latents.batch_size,
        backend=latents.backend,
    )
    record(output, "encode", resolved, model=model.name, identity=model.identity)
    _tell(options, latents, seconds)
    return 1 if latents.unsolved else 0


def _tell(options: EncodeOptions, latents: Latents, seconds: float) -> None:
    from ddim.samplers.methods.reversible import amplification

    output, steps, unsolved = options.output.output, len(latents.nodes) - 1, latents.unsolved
    facts: dict[str, object] = {
        "output": output,
        "images": len(latents),
        "asked": options.n,
        "codec": latents.codec,
        "tensors": len(latents.tensors),
        "steps": steps,
        "network_calls": latents.calls,
        "seconds": round(seconds, 3),
        "dtype": options.model.dtype,
        "batch_size": latents.batch_size,
        "backend": latents.backend,
        "caveat": latents.caveat,
    }
    if latents.codec == "edict":
        facts["amplification"] = amplification(0.93, steps)
    if latents.residual is not None:
        facts |= {"residual": latents.residual.tolist(), "unsolved": unsolved}
    if options.run.json:
        print_json(facts)
    else:
        print(
            f"{output}: {len(latents)} images by {latents.codec} in {steps} steps, "
            f"{latents.calls} network calls each, {seconds:.1f} s"
        )
        if "amplification" in facts:
            print(f"EDICT's mixing alone amplifies rounding {facts['amplification']:.0e} times")
        if latents.residual is None and latents.caveat is not None:
            print(latents.caveat)
        if latents.residual is not None:
            _print_residuals(latents.residual.tolist(), unsolved)
    if unsolved:
        print(
            f"ddim encode: {len(unsolved)} of {len(latents)} images did not converge "
            f"({_listed(unsolved)}): more steps help, or the codec obelm",
            file=sys.stderr,
        )


def _print_residuals(residuals: Sequence[float], unsolved: Sequence[int]) -> None:
    solved = len(residuals) - len(unsolved)
    print(f"converged: {solved} of {len(residuals)} ({solved / len(residuals):.1%})")
    for i, residual in enumerate(residuals):
        print(f"  image {i}: residual {residual:.2e}" + (" (not solved)" * (i in unsolved)))


def _listed(indices: Sequence[int], most: int = 20) -> str:
    """Some numbers, and that there are more."""
    return ", ".join(map(str, indices[:most])) + (", …" if len(indices) > most else "")
