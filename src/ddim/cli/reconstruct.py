"""``ddim reconstruct``: how well images survive encoding and decoding (the paper's Table 2)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ddim.base.errors import InputError
from ddim.base.files import read_json, refuse_existing, write_bytes, write_json
from ddim.base.records import read_toml
from ddim.cli.files import DataOptions, make_figure, read_images, save_figure
from ddim.cli.options import parse
from ddim.cli.report import print_json, record, table
from ddim.cli.sampler import RunOptions, open_model

if TYPE_CHECKING:
    from torch import Tensor

    from ddim.model.model import Model

__all__ = ["ReconstructOptions", "main"]

SHOWN = 10
DTYPES = ("float32", "float64")


@dataclasses.dataclass(frozen=True)
class ReconstructOptions(RunOptions, DataOptions):
    """Encode real images, decode the latents, and compare.

    A line for each codec, precision and number of steps: the mean squared error per dimension on
    [0, 1], as in Table 2 of the paper; root mean square and largest error on [-1, 1]; for implicit
    the share of images that converged, and the error of those. Into the folder --output go the
    table (errors.md, errors.json), a plot (errors.png) and a picture of originals, latents and
    reconstructions (images.png). If implicit did not converge on all, the exit status is 1.
    """

    model: str = "mnist"
    """A shipped model's name, a model folder, a training run or its checkpoint."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 16
    """How many images, from the first on."""
    codecs: tuple[str, ...] = ("ddim", "obelm", "implicit", "edict", "bdia")
    """Which codecs."""
    steps: tuple[int, ...] = (10, 20, 50, 100)
    """Which numbers of steps, from 1 to T."""
    dtypes: tuple[str, ...] = ("float32",)
    """Precisions of the network and of the states: float32, float64 or both."""
    nodes: str = "uniform"
    """Where the steps stop: uniform, quadratic or log-snr."""
    output: str = "reconstruct"
    """The folder."""
    resume: bool = False
    """Go on with a folder that an earlier, interrupted run of the same options began."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`ReconstructOptions`."""
    options = parse(ReconstructOptions, "reconstruct", argv)
    output = Path(options.output)
    for dtype in options.dtypes:
        if dtype not in DTYPES:
            raise InputError(f"--dtypes are {' or '.join(DTYPES)}, not {dtype!r}")
    if options.n < 1:
        raise InputError(f"-n must be at least 1, not {options.n}")
    if not (options.codecs and options.steps and options.dtypes):
        raise InputError("--codecs, --steps and --dtypes need at least one each")
    if options.nodes[:1].isdigit():
        raise InputError("--nodes is the name of a family here: lists have their own length")
    if output.suffix:
        raise InputError(f"--output is a folder, not {output.name}")
    if not options.resume:
        refuse_existing(output, force=options.force)

    from ddim.latents.coding import codec_nodes

    model = open_model(options.model, options)
    images, labels = read_images(options, model, options.n)
    cells = [(c, d, s) for c in options.codecs for d in options.dtypes for s in options.steps]
    for codec, _, steps in cells:
        codec_nodes(model, codec, options.nodes, steps)
    from ddim.model.drawing import pick_batch_size

    batch_size = pick_batch_size(model, options.batch_size)
    resolved = options.resolved(batch_size=batch_size, n=len(images), resume=False)
    subject = _subject(model, images)
    done = _earlier(output, resolved, subject) if options.resume else {}
    output.mkdir(parents=True, exist_ok=True)
    record(output, "reconstruct", resolved, model=model.name, identity=model.identity)
    rows: dict[str, dict[str, Any]] = {}
    for codec, dtype, steps in cells:
        key = f"{codec} {dtype} {steps}"
        rows[key] = done.get(key) or _measure(
            model, images, labels, codec, dtype, steps, options, batch_size
        )
        write_json(output / "errors.json", {"of": subject, "rows": {**done, **rows}})
    shown = [_line(row) for row in rows.values()]
    write_bytes(output / "errors.md", _markdown(shown).encode())
    try:
        save_figure(output / "errors.png", _plot(list(rows.values())))
    except InputError as error:  # no matplotlib
        print(f"ddim reconstruct: no errors.png: {error}", file=sys.stderr)
    _picture(output / "images.png", model, images[:SHOWN], labels, options, batch_size)
    if options.json:
        print_json({"output": str(output), "images": len(images), "rows": list(rows.values())})
    else:
        print(table(shown))
        print(
            f"\n{output}: {len(images)} images of {options.data}, {model.name}, "
            f"batch_size {batch_size}"
        )
    failed = [row for row in rows.values() if row["unsolved"]]
    for row in failed:
        listed = ", ".join(map(str, row["unsolved"][:20]))
        more = ", …" if len(row["unsolved"]) > 20 else ""
        print(
            f"ddim reconstruct: implicit, {row['steps']} steps, {row['dtype']}: "
            f"{len(row['unsolved'])} of {len(images)} images did not converge ({listed}{more})",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _subject(model: Model, images: Tensor) -> dict[str, str]:
    """What the errors are of, by checksums."""
    digest = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
    return {"model": model.identity, "images": digest}


def _earlier(output: Path, resolved: ReconstructOptions, subject: dict[str, str]) -> dict[str, Any]:
    """The lines that an earlier run of the same images, model and nodes has measured."""
    path = output / "run.toml"
    if not path.exists():
        refuse_existing(output, force=False)
        return {}
    now = json.loads(json.dumps(dataclasses.asdict(resolved)))
    before = read_toml(path, list(now))
    for key, value in now.items():
        free = key in ("codecs", "steps", "dtypes", "output", "resume")
        if not free and before.get(key) not in (value, "None" if value is None else value):
            raise InputError(f"{path} was begun with {key} = {before.get(key)}, not {value}")
    if not (output / "errors.json").exists():
        return {}
    found = read_json(output / "errors.json")
    for key, value in subject.items():
        if found.get("of", {}).get(key) != value:
            raise InputError(f"{output / 'errors.json'} is of other {key.rstrip('s')}s than these")
    return found["rows"]


def _measure(
    model: Model,
    images: Tensor,
    labels: list[int] | None,
    codec: str,
    dtype: str,
    steps: int,
    options: ReconstructOptions,
    batch_size: int,
) -> dict[str, Any]:
    import torch

    from ddim.latents.coding import decode, encode
    from ddim.samplers.methods.reversible import amplification

    kind = getattr(torch, dtype)
    model = model.to(dtype=kind)
    start = time.perf_counter()
    latents = encode(
        model,
        images,
        steps=steps,
        codec=codec,
        nodes=options.nodes,
        labels=labels,
        clip=False,
        batch_size=batch_size,
        dtype=kind,
        progress=not options.quiet,
    )
    decoded = decode(model, latents, progress=not options.quiet)
    error = (decoded.double() - images.double()).flatten(1)
    unsolved = latents.unsolved
    kept = torch.ones(len(images), dtype=torch.bool)
    kept[unsolved] = False
    good = error[kept]
    row: dict[str, Any] = {
        "codec": codec,
        "dtype": dtype,
        "steps": len(latents.nodes) - 1,
        "calls": latents.calls + _decoder_calls(model, latents),
        "mse01": error.square().mean().item() / 4,
        "rms": error.square().mean().sqrt().item(),
        "max": error.abs().max().item(),
        "unsolved": unsolved,
        "images": len(images),
        "seconds": round(time.perf_counter() - start, 1),
    }
    if latents.residual is not None:
        row |= {
            "converged": len(good) / len(images),
            "converged_max": good.abs().max().item() if len(good) else None,
            "residuals": latents.residual.tolist(),
            "image_rms": error.square().mean(dim=1).sqrt().tolist(),
        }
    if codec == "edict":
        row["amplification"] = amplification(0.93, steps)
    return row


def _decoder_calls(model: Model, latents: Any) -> int:
    from ddim.latents.codecs import decoder

    return decoder(model.schedule, latents.nodes, latents.codec).calls


def _line(row: Mapping[str, Any]) -> dict[str, object]:
    """A line of the table."""
    note = ""
    if "converged" in row:
        note = f"{row['converged']:.1%} converged"
        if row["converged_max"] is not None:
            note += f", max of those {row['converged_max']:.1e}"
            solved = set(range(row["images"])) - set(row["unsolved"])
            ratios = [row["image_rms"][i] / max(row["residuals"][i], 1e-300) for i in solved]
            note += f", RMS at most {max(ratios):.0f} x residual"
    if "amplification" in row:
        unit = 1.2e-7 if row["dtype"] == "float32" else 2.2e-16
        note = f"mixing amplifies rounding {row['amplification']:.0e} times, "
        note += f"RMS is {row['rms'] / unit:.0e} units"
    return {
        "codec": row["codec"],
        "dtype": row["dtype"],
        "S": row["steps"],
        "calls": row["calls"],
        "MSE, [0,1]": f"{row['mse01']:.1e}",
        "RMS, [-1,1]": f"{row['rms']:.1e}",
        "max, [-1,1]": f"{row['max']:.1e}",
        "note": note,
    }


def _markdown(rows: Sequence[Mapping[str, object]]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(str(v) for v in row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _plot(rows: Sequence[Mapping[str, Any]]) -> Any:
    figure = make_figure(7, 4.2)
    axes = figure.subplots()
    for codec in dict.fromkeys(row["codec"] for row in rows):
        for dtype, style in zip(DTYPES, ("o-", "s--"), strict=True):
            points = [
                (row["steps"], max(row["max"], 1e-17))
                for row in rows
                if (row["codec"], row["dtype"]) == (codec, dtype)
            ]
            if points:
                axes.plot(*zip(*sorted(points), strict=True), style, label=f"{codec}, {dtype}")
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="largest error, images in [-1, 1]")
    axes.set_title("Images encoded and decoded")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _picture(
    path: Path,
    model: Model,
    images: Tensor,
    labels: list[int] | None,
    options: ReconstructOptions,
    batch_size: int,
) -> None:
    """Rows: originals; then, for each codec at the first number of steps, latents and decoded."""
    import torch

    from ddim.data.pixels import save_image
    from ddim.latents.coding import decode, encode

    kind = getattr(torch, options.dtypes[0])
    model = model.to(dtype=kind)
    labels = None if labels is None else labels[: len(images)]
    rows = [images]
    for codec in options.codecs:
        latents = encode(
            model,
            images,
            steps=options.steps[0],
            codec=codec,
            nodes=options.nodes,
            labels=labels,
            clip=False,
            batch_size=batch_size,
            dtype=kind,
        )
        # Noise of ±3 standard deviations fits into the scale of pictures.
        rows += [latents.tensors[0].float() / 3, decode(model, latents).float()]
    save_image(path, torch.cat(rows), len(images))
