"""``ddim reconstruct``: how well images survive encoding and decoding (the paper's Table 2)."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from ddim.base.errors import InputError, quoted
from ddim.base.files import read_json, refuse_existing, write_bytes, write_json
from ddim.base.plots import line_style
from ddim.base.ranks import here
from ddim.base.records import checked, in_file
from ddim.cli.files import make_figure, read_images, save_figure
from ddim.cli.groups import (
    Count,
    DataConditionOptions,
    DataOptions,
    NamedModelOptions,
    OutputOptions,
    PictureOptions,
    RunOptions,
    Switch,
    unset,
)
from ddim.cli.options import listed, parse, replaced
from ddim.cli.report import check_resumed, print_json, record, table

if TYPE_CHECKING:
    from torch import Tensor

    from ddim.latents.coding import Coding
    from ddim.latents.record import Latents
    from ddim.model.condition import Condition
    from ddim.model.model import Model

__all__ = ["ReconstructOptions", "main"]

SHOWN = 10
DTYPES = ("float32", "float64")


class _Case(NamedTuple):
    """A line of the table: a codec as it is spelled and as it is, and a precision."""

    text: str
    coding: Coding
    dtype: str

    @property
    def key(self) -> str:
        return f"{self.text} {self.dtype} {self.coding.sampler.steps}"


@dataclasses.dataclass(frozen=True)
class ReconstructOptions:
    """Encode real images, decode the latents, and compare.

    A line for each codec, precision and number of steps: the mean squared error per dimension of
    images in [0, 1], as in Table 2 of the paper; root mean square and largest error of images
    in [-1, 1]; for implicit the share of images that converged, and the error of those. The
    predicted x0 is not clipped, since clipping cannot be undone. The folder --output holds the
    table (errors.md, errors.json), a picture of originals, latents and reconstructions
    (images.png) and, where matplotlib is installed, a plot (errors.png). If implicit did not
    converge on all, the exit status is 1.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim reconstruct --data mnist -n 16",
        "ddim reconstruct --codecs obelm,edict --steps 10,50 --dtypes float32,float64",
    )

    n: Count = 16
    """How many images, from the first on."""
    codecs: Annotated[tuple[str, ...], unset("none", "CODEC ...")] = (
        "ddim",
        "obelm",
        "implicit",
        "edict",
        "bdia",
    )
    """obelm, ddim, implicit, edict, bdia."""
    steps: Annotated[tuple[int, ...], unset("none", "INT ...")] = (10, 20, 50, 100)
    """Numbers of steps, each from 1 to T."""
    nodes: str = "uniform"
    """Family of nodes: uniform, quadratic, log-snr and so on."""
    dtypes: Annotated[tuple[str, ...], unset("none", "NAME ...")] = ("float32",)
    """Precisions of the network and of the states: float32, float64 or both."""
    data: DataOptions = DataOptions()
    model: NamedModelOptions = dataclasses.field(default_factory=NamedModelOptions)
    condition: DataConditionOptions = dataclasses.field(default_factory=DataConditionOptions)
    output: OutputOptions = OutputOptions(output="reconstruct")
    picture: PictureOptions = PictureOptions()
    resume: Switch = False
    """Resume a folder that an earlier, interrupted run of the same options began."""
    run: RunOptions = RunOptions()

    def check(self) -> Path:
        """The output, if it is one that can be written.

        Raises:
            InputError: it is not, or there is nothing to measure.
        """
        output = Path(self.output.output)
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise InputError(f"--dtypes are {' or '.join(DTYPES)}, not {quoted(dtype)}")
        if self.n < 1:
            raise InputError(f"-n must be at least 1, not {self.n}")
        if not (self.codecs and self.steps and self.dtypes):
            raise InputError("--codecs, --steps and --dtypes need at least one each")
        if self.nodes[:1].isdigit():
            raise InputError("--nodes is the name of a family here: lists have their own length")
        if output.suffix:
            raise InputError(f"--output is a folder, not {output.name}")
        if not self.resume:
            refuse_existing(output, force=self.output.force)
        return output

    def cases(self) -> list[_Case]:
        """Every combination of the lists, each once.

        Raises:
            InputError: as :meth:`ddim.latents.coding.Coding.parse`.
        """
        from ddim.latents.coding import Coding

        return [
            _Case(codec, Coding.parse(codec, steps, self.nodes), dtype)
            for codec in listed(self.codecs)
            for dtype in listed(self.dtypes)
            for steps in dict.fromkeys(self.steps)
        ]


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`ReconstructOptions`."""
    options = parse(ReconstructOptions, "reconstruct", argv)
    output, cases = options.check(), options.cases()

    from ddim.model.drawing import pick_batch_size

    model = options.model.open(options.run)
    for case in cases:
        case.coding.place(model.schedule)
    labelled = not options.condition.labels
    images, found = read_images(options.data, model, options.n, labelled=labelled)
    condition = options.condition.condition(found).check(model, len(images))
    options.picture.check(model.shape, min(SHOWN, len(images)), 1 + 2 * len(cases))
    size = pick_batch_size(model, options.run.batch_size)
    resolved = replaced(
        options, n=len(images), batch_size=size, backend=model.runs_on, resume=False
    )
    subject = _subject(model, images)
    done = _earlier(output, resolved, subject) if options.resume else {}
    here().agree({f"what {output} holds": sorted(done)})
    output.mkdir(parents=True, exist_ok=True)
    record(output, "reconstruct", resolved, model=model.name, identity=model.identity)
    rows: dict[str, dict[str, Any]] = {}
    for case in cases:
        rows[case.key] = done.get(case.key) or _measure(model, images, condition, case, resolved)
        write_json(output / "errors.json", {"of": subject, "rows": {**done, **rows}})
    shown = list(rows.values())
    _write(output, shown)
    first = options.dtypes[0], options.steps[0]
    pictured = [case for case in cases if (case.dtype, case.coding.sampler.steps) == first]
    _picture(output / "images.png", model, images[:SHOWN], condition[:SHOWN], pictured, resolved)
    return _tell(resolved, model, shown, options.n)


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table and its plot."""
    write_bytes(output / "errors.md", _markdown([_line(row) for row in rows]).encode())
    try:
        save_figure(output / "errors.png", _plot(rows))
    except InputError as error:  # no matplotlib
        (output / "errors.png").unlink(missing_ok=True)  # it would be of other rows
        print(f"ddim reconstruct: no errors.png: {error}", file=sys.stderr)


def _tell(options: ReconstructOptions, model: Model, rows: list[dict[str, Any]], asked: int) -> int:
    """Print the results; the exit status."""
    output = options.output.output
    if options.run.json:
        print_json({"output": output, "images": options.n, "asked": asked, "rows": rows})
    else:
        print(table([_line(row) for row in rows]))
        print(
            f"\n{output}: {options.n} images of {options.data.data}, {model.name}, "
            f"batch size {options.run.batch_size}"
        )
    failed = [row for row in rows if row["unsolved"]]
    for row in failed:
        named = ", ".join(map(str, row["unsolved"][:20]))
        more = ", …" if len(row["unsolved"]) > 20 else ""
        print(
            f"ddim reconstruct: implicit, {row['steps']} steps, {row['dtype']}: "
            f"{len(row['unsolved'])} of {options.n} images did not converge ({named}{more})",
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
    check_resumed(path, resolved, ("codecs", "steps", "dtypes", "output", "scale"))
    if not (output / "errors.json").exists():
        return {}
    found = read_json(output / "errors.json")
    with in_file(output / "errors.json"):
        checked("of", found.get("of"), dict[str, str])
        checked("rows", found.get("rows"), dict[str, dict[str, Any]])
    for key, value in subject.items():
        if found.get("of", {}).get(key) != value:
            raise InputError(f"{output / 'errors.json'} is of other {key.rstrip('s')}s than these")
    return found["rows"]


def _coded(
    model: Model,
    images: Tensor,
    condition: Condition,
    case: _Case,
    options: ReconstructOptions,
    quiet: bool,
) -> tuple[Latents, Tensor]:
    """The latents of images, and what they decode to."""
    import torch

    from ddim.latents.coding import decode, encode

    dtype = getattr(torch, case.dtype)
    model = model.to(dtype=dtype)
    latents = encode(
        model,
        images,
        codec=case.coding.codec,
        steps=case.coding.sampler.steps,
        nodes=case.coding.sampler.nodes,
        condition=condition,
        batch_size=options.run.batch_size,
        dtype=dtype,
        progress=not quiet,
    )
    return latents, decode(model, latents, progress=not quiet)


def _measure(
    model: Model,
    images: Tensor,
    condition: Condition,
    case: _Case,
    options: ReconstructOptions,
) -> dict[str, Any]:
    """A line's numbers."""
    import torch

    from ddim.latents.codecs import decoder
    from ddim.samplers.methods.reversible import amplification

    start = time.perf_counter()
    latents, decoded = _coded(model, images, condition, case, options, options.run.quiet)
    error = (decoded.double() - images.double()).flatten(1)
    calls = decoder(model.schedule, latents.nodes, latents.codec).calls
    unsolved = latents.unsolved
    kept = torch.ones(len(images), dtype=torch.bool)
    kept[unsolved] = False
    good = error[kept]
    row: dict[str, Any] = {
        "codec": case.text,
        "dtype": case.dtype,
        "steps": len(latents.nodes) - 1,
        "calls": latents.calls + calls * (1 if condition.guidance == 1 else 2),
        "mse01": error.square().mean().item() / 4,
        "rms": error.square().mean().sqrt().item(),
        "max": error.abs().max().item(),
        "unsolved": unsolved,
        "caveat": latents.caveat,
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
    if latents.codec == "edict":
        row["amplification"] = amplification(0.93, len(latents.nodes) - 1)
    return row


def _line(row: Mapping[str, Any]) -> dict[str, object]:
    """A line of the table."""
    note = "approximate" if row.get("caveat") and "converged" not in row else ""
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
    figure = make_figure(7.5, 4.2)
    axes = figure.subplots()
    for number, codec in enumerate(dict.fromkeys(row["codec"] for row in rows)):
        for dtype, fill in zip(DTYPES, (None, "none"), strict=True):
            points = [
                (row["steps"], max(row["max"], 1e-17))
                for row in rows
                if (row["codec"], row["dtype"]) == (codec, dtype)
            ]
            if points:
                how = {**line_style(number), "mfc": fill, "label": f"{codec}, {dtype}"}
                axes.plot(*zip(*sorted(points), strict=True), **how)
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="largest error of a pixel, [-1, 1]")
    counts = sorted({row["steps"] for row in rows})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_title("Images encoded and decoded")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9)
    return figure


def _picture(
    path: Path,
    model: Model,
    images: Tensor,
    condition: Condition,
    cases: Sequence[_Case],
    options: ReconstructOptions,
) -> None:
    """Rows: originals; then, for each of the cases, latents and decoded."""
    from ddim.data.sheet import labelled, png

    rows, texts = [images], ["original"]
    for case in cases:
        latents, decoded = _coded(model, images, condition, case, options, quiet=True)
        # Noise of ±3 standard deviations fits into the scale of pictures.
        rows += [latents.tensors[0].float() / 3, decoded.float()]
        texts += [f"{case.text}, latent", f"{case.text}, decoded"]
    write_bytes(path, png(labelled(rows, texts, scale=options.picture.scale)))
