"""Real images to measure samples against: the reference, and the floor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ddim.base.errors import InputError
from ddim.base.progress import meter

if TYPE_CHECKING:
    from ddim.cli.evaluate import EvaluateOptions
    from ddim.data.base import ImageData
    from ddim.evaluate.distances.comparison import Comparison
    from ddim.evaluate.features.extractor import Extractor
    from ddim.evaluate.features.statistics import Statistics
    from ddim.model.model import Model

__all__ = ["ReferenceOptions", "held_out", "real_images"]


@dataclasses.dataclass(frozen=True)
class ReferenceOptions:
    """Which real images."""

    data: str = ""
    """Real images; their train split is the reference, their test split the floor. Without it, the
    shipped moments of MNIST, which have no KID, precision or recall."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    reference: str | None = None
    """Saved statistics of real images instead of --data; with --data they are written there."""


def real_images(
    options: EvaluateOptions, model: Model, extractor: Extractor
) -> tuple[Statistics, Comparison | None, list[str]]:
    """Statistics of real images, what as many other real images measure, and notes on them.

    A dry run measures none.
    """
    from ddim.evaluate.distances.comparison import compare
    from ddim.evaluate.features.collection import shipped_statistics
    from ddim.evaluate.features.statistics import Statistics

    saved = None if options.reference is None else Path(options.reference)
    if not options.data:
        if saved is not None:
            return Statistics.load(saved, extractor), None, [_no_floor("--data")]
        if extractor.identity.name != "LeNet":
            raise InputError("features other than the shipped ones need --data or --reference")
        known = model.facts.get("data", {}).get("name")
        notes = []
        if known not in (None, "mnist"):
            notes.append(f"The reference is MNIST; {model.name} was trained on {known}.")
        reference, test = shipped_statistics("train"), shipped_statistics("test")
        if options.n != test.count:
            return reference, None, [*notes, _no_floor(f"--data, or -n {test.count}")]
        # The shipped moments have no features: neither side has KID, precision or recall.
        return reference, compare(test, reference), notes
    import numpy as np

    train, test = _splits(options, model)
    if options.dry_run:
        return Statistics(extractor.identity, f"{train.name} train"), None, []
    kept = Path(options.output) / "reference.safetensors" if saved is None else saved
    reference = _kept(kept, extractor, train, None, f"{train.name} train", options)
    if test is None or len(test) < options.n:
        return reference, None, [_no_floor("a test split with as many images")]
    chosen = np.random.default_rng(0).permutation(len(test))[: options.n].tolist()
    kept = Path(options.output) / f"floor-{options.n}.safetensors"
    real = _kept(kept, extractor, test, chosen, f"{test.name} test", options)
    return reference, compare(real, reference), []


def held_out(options: EvaluateOptions, model: Model) -> ImageData:
    """The test split of --data."""
    from ddim.data.load import NoSuchSplitError

    try:
        return _load(options, model, "test")
    except NoSuchSplitError:
        raise InputError(f"{options.data} has no test split, which --bits is measured on") from None


def _no_floor(needs: str) -> str:
    return f"There is no floor, what as many real test images measure: it takes {needs}."


def _load(options: EvaluateOptions, model: Model, split: str) -> ImageData:
    from ddim.data.load import load_data

    root = Path(options.data_root) if options.data_root else None
    channels, height, _ = model.shape
    return load_data(options.data, split=split, size=height, channels=channels, root=root)


def _splits(options: EvaluateOptions, model: Model) -> tuple[ImageData, ImageData | None]:
    from ddim.data.load import NoSuchSplitError

    train = _load(options, model, "train")
    try:
        return train, _load(options, model, "test")
    except NoSuchSplitError:
        return train, None


def _kept(
    path: Path, extractor: Extractor, data, indices, name: str, options: EvaluateOptions
) -> Statistics:
    """Statistics of real images: read, or measured and written."""
    from ddim.evaluate.features.collection import collect_data, source_of
    from ddim.evaluate.features.statistics import Statistics

    if path.exists() and not options.force:
        found = Statistics.load(path, extractor)
        if (found.data, found.source) == (name, source_of(data, indices)):
            return found
        other = found.data if found.data != name else f"other images that are called {name}"
        raise InputError(
            f"{path} holds {other}, not {name} of {options.data}: name another, or give --force"
        )
    total = len(data) if indices is None else len(indices)
    with meter(quiet=options.quiet, total=total, desc=name, unit=" images") as progress:
        found = collect_data(extractor, data, indices, data=name, watch=progress.update)
    found.save(path)
    return found
