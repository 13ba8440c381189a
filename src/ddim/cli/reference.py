"""Real images to measure samples against: the reference, and the floor."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ddim.base.errors import InputError
from ddim.base.files import locked
from ddim.base.progress import meter
from ddim.base.ranks import here
from ddim.cli.files import check_images
from ddim.cli.groups import Switch, unset

if TYPE_CHECKING:
    from ddim.data.base import ImageData
    from ddim.evaluate.distances.comparison import Comparison
    from ddim.evaluate.features.extractor import Extractor
    from ddim.evaluate.features.statistics import Statistics
    from ddim.model.model import Model

__all__ = ["RealImages", "ReferenceOptions"]


@dataclasses.dataclass(frozen=True)
class ReferenceOptions:
    """Which real images."""

    data: Annotated[str, unset("the shipped moments of MNIST, without KID, precision, recall")] = ""
    """Real images: their train split is the reference, their test split the floor."""
    data_root: Annotated[str | None, unset("the user's cache", "FOLDER")] = None
    """The folder that named data sets are kept in and downloaded to."""
    skip_broken: Switch = False
    """Leave out image files that cannot be read, and say which: all are decoded first."""
    reference: Annotated[str | None, unset("in the output", "FILE")] = None
    """Saved statistics of real images instead of --data; with --data they are written there."""


@dataclasses.dataclass(frozen=True)
class RealImages:
    """Where real images come from, and where what was measured of them is kept.

    Attributes:
        options: which.
        model: whose shape they have.
        extractor: what they are measured by.
        folder: for statistics without a file of their own.
        force: whether statistics of others may be written over.
        quiet: show no bars.
    """

    options: ReferenceOptions
    model: Model
    extractor: Extractor
    folder: Path
    force: bool = False
    quiet: bool = False

    def reference(self, n: int) -> tuple[Statistics, Comparison | None, list[str]]:
        """Statistics of real images, what n other real images measure, and notes on them.

        Raises:
            InputError: images that are not there or do not fit, or statistics of others.
        """
        if self.options.data:
            return self._measured(n)
        from ddim.evaluate.distances.comparison import compare
        from ddim.evaluate.features.collection import shipped_statistics
        from ddim.evaluate.features.statistics import Statistics

        if self.options.reference is not None:
            path = Path(self.options.reference)
            return Statistics.load(path, self.extractor), None, [_no_floor("--data")]
        if self.extractor.identity.name != "LeNet":
            raise InputError("features other than the shipped ones need --data or --reference")
        known, notes = self.model.facts.data.get("name"), []
        if known not in (None, "mnist"):
            notes.append(f"The reference is MNIST; {self.model.name} was trained on {known}.")
        reference, test = shipped_statistics("train"), shipped_statistics("test")
        if n != test.count:
            return reference, None, [*notes, _no_floor(f"--data, or -n {test.count}")]
        # The shipped moments have no features: neither side has KID, precision or recall.
        return reference, compare(test, reference), notes

    def planned(self, n: int) -> tuple[Statistics, Comparison | None, list[str]]:
        """The same for a dry run, which measures none.

        Raises:
            InputError: images that are not there or do not fit.
        """
        if not self.options.data:
            return self.reference(n)
        from ddim.evaluate.features.statistics import Statistics

        train = self._load("train")
        return Statistics(self.extractor.identity, f"{train.name} train"), None, []

    def held_out(self) -> ImageData:
        """The test split of --data.

        Raises:
            InputError: there is none.
        """
        test = self._test()
        if test is None:
            raise InputError(f"{self.options.data} has no test split, which --bits is measured on")
        return test

    def _measured(self, n: int) -> tuple[Statistics, Comparison | None, list[str]]:
        import numpy as np

        from ddim.evaluate.distances.comparison import compare

        train, test = self._load("train"), self._test()
        saved = self.options.reference
        path = self.folder / "reference.safetensors" if saved is None else Path(saved)
        reference = self._kept(path, train, None, f"{train.name} train")
        if test is None or len(test) < n:
            return reference, None, [_no_floor("a test split with as many images")]
        chosen = np.random.default_rng(0).permutation(len(test))[:n].tolist()
        path = self.folder / f"floor-{n}.safetensors"
        real = self._kept(path, test, chosen, f"{test.name} test")
        return reference, compare(real, reference), []

    def _load(self, split: str) -> ImageData:
        from ddim.data.load import load_data

        shape, root = self.model.shape, self.options.data_root
        check_images(self.model, pictures=False)
        if shape[1] != shape[2]:
            raise InputError(f"{self.model.name} has images that are not square: {shape}")
        return load_data(
            self.options.data,
            split=split,
            size=shape[1],
            channels=shape[0],
            root=Path(root) if root else None,
            skip_broken=self.options.skip_broken,
        )

    def _test(self) -> ImageData | None:
        from ddim.data.load import NoSuchSplitError

        try:
            return self._load("test")
        except NoSuchSplitError:
            return None

    def _kept(
        self, path: Path, data: ImageData, indices: Sequence[int] | None, name: str
    ) -> Statistics:
        """Statistics of real images: read, or measured and written."""
        from ddim.evaluate.features.collection import collect_data, source_of
        from ddim.evaluate.features.statistics import Statistics

        # One decision for several processes, of which the first writes the file.
        if here().share(path.exists() and not self.force):
            found = Statistics.load(path, self.extractor)
            if (found.data, found.source) == (name, source_of(data, indices)):
                return found
            other = found.data if found.data != name else f"other images that are called {name}"
            raise InputError(
                f"{path} holds {other}, not {name} of {self.options.data}: name another, or give "
                "--force"
            )
        total = len(data) if indices is None else len(indices)
        shown = meter(quiet=self.quiet, total=total, desc=name, unit=" images")
        with locked(path), shown as progress:
            found = collect_data(self.extractor, data, indices, data=name, watch=progress.update)
            found.save(path)
        return found


def _no_floor(needs: str) -> str:
    return f"There is no floor, what as many real test images measure: it takes {needs}."
