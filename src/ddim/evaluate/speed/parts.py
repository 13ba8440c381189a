"""The parts of a measurement: which entries each of them times, and the table that they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ddim.evaluate.speed.accuracy import Exact, deviation
from ddim.evaluate.speed.contestants import Ours
from ddim.evaluate.speed.lineup import Lineup
from ddim.evaluate.speed.plan import Plan
from ddim.evaluate.speed.race import Entry, Result
from ddim.evaluate.speed.tables import Cell, Table

__all__ = ["Grid"]

PAIRED = (
    "ratios are medians over rounds of the time that the other took over this one's, with quartiles"
)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The entries of each part. In a part plain torch is the first, opponents are the last.

    Attributes:
        images: all threads, N images, default batch sizes.
        one: one image, in a batch of the default size and alone.
        threads: one thread, fewer images.
        busy: the entries that are timed quietly and beside a busy process.
        dtype: bfloat16, as ``images``.
    """

    images: Sequence[Entry]
    one: Sequence[Entry]
    threads: Sequence[Entry]
    busy: Sequence[Entry]
    dtype: Sequence[Entry]

    @classmethod
    def of(cls, lineup: Lineup, plan: Plan) -> Grid:
        """The entries that a plan asks for."""
        n, few, count, theirs = plan.n, plan.few, lineup.threads, lineup.opponents
        images = [Entry(one, n, one.batch_size, count) for one in lineup.ours]
        images += [Entry(one.contestant, n, one.batch_size, count) for one in theirs]
        single = [Entry(one, few, one.batch_size, 1) for one in lineup.single]
        alone = [Entry(one.contestant, few, one.single, 1) for one in theirs]
        latency = [
            Entry(one, 1, size, count)
            for one in lineup.ours
            for size in dict.fromkeys((one.batch_size, 1))
        ]
        latency += [Entry(one.contestant, 1, 1, count) for one in theirs]
        halves = [Entry(one, n, one.batch_size, count) for one in lineup.halves]
        halves += [Entry(one.half, n, one.batch_size, count) for one in theirs if one.half]
        busy = images + ([] if count == 1 else alone)
        return cls(
            images=images if plan.has("images", "busy", "dtype") else [],
            one=latency if plan.has("one") else [],
            threads=single + alone if plan.has("threads") else [],
            busy=busy if plan.has("busy") else [],
            dtype=halves if plan.has("dtype") else [],
        )

    def entries(self) -> list[Entry]:
        """All that are to be timed."""
        beside = [dataclasses.replace(entry, busy=True) for entry in self.busy]
        return [*self.images, *self.one, *self.threads, *self.busy, *beside, *self.dtype]

    # -- the tables -----------------------------------------------------------------------------

    def images_table(self, result: Result, exact: Exact) -> Table:
        """Speed at the default settings, and how exact the images are."""
        reference = result.images[self.images[0]]
        rows = _rows(self.images, result)
        for row, entry in zip(rows, self.images, strict=True):
            row["difference"] = deviation(result.images[entry], reference).largest
            row["network error"] = exact.error(entry.contestant)
        first = self.images[0]
        note = (
            f"{first.n} images, {_threads(first)}, float32; {PAIRED}; difference: the largest of "
            "images in [0, 1] from plain torch's; network error: relative, to float64"
        )
        small = {"difference": ".1e", "network error": ".1e"}
        return Table("images", f"{first.n} images", note, rows, small)

    def one_table(self, result: Result) -> Table:
        """Latency, with and without the padding of a batch."""
        rows = _rows(self.one, result)
        for row in rows:
            row["ms"] = 1000 / row.pop("images/s")  # pyright: ignore[reportOperatorIssue]
        order = ("contestant", "batch", "ms")
        rows = [{**{key: row[key] for key in order}, **row} for row in rows]
        note = (
            f"one image, {_threads(self.one[0])}, float32; a batch larger than 1 is filled up with "
            "copies, which is what -n 1 costs at the default batch size; ratios as above, to plain "
            "torch's first row"
        )
        return Table("one", "One image", note, rows, {"ms": ".0f"})

    def threads_table(self, result: Result) -> Table:
        """One thread, by CPU time."""
        note = (
            f"{self.threads[0].n} images, one thread, float32; ratios of CPU time, which other "
            "programs hardly change"
        )
        return Table("threads", "One thread", note, _rows(self.threads, result, "cpu"))

    def busy_table(self, result: Result) -> Table:
        """What is left beside another program."""
        rows: list[dict[str, Cell]] = []
        loaded = [dataclasses.replace(entry, busy=True) for entry in self.busy]
        for row, quiet, beside in zip(_rows(loaded, result), self.busy, loaded, strict=True):
            speeds = {"quiet images/s": result.rate(quiet), "busy images/s": row.pop("images/s")}
            if quiet.threads != self.busy[0].threads:
                row["contestant"] = f"{row['contestant']}, one thread"
            head = {"contestant": row.pop("contestant"), "batch": row.pop("batch")}
            rows.append(head | speeds | {"share": result.ratio(beside, quiet)} | row)
        note = (
            "the same with one other process that computes without a pause, at the same priority, "
            "and in the same rounds without it; share: of the quiet speed; the other ratios are "
            "those beside the busy process"
        )
        return Table("busy", "Beside a busy process", note, rows)

    def dtype_table(self, result: Result) -> Table:
        """Speed in bfloat16, and how far off its images are."""
        wide = {entry.contestant.name: entry for entry in self.images}
        reference = result.images[self.images[0]]
        rows = _rows(self.dtype, result)
        for row, entry in zip(rows, self.dtype, strict=True):
            own = wide[entry.contestant.name.split(",")[0]]
            off = deviation(result.images[entry], reference)
            row |= {"× own float32": result.ratio(entry, own)}
            row |= {"largest": off.largest, "RMS": off.rms, "PSNR dB": off.psnr}
        note = (
            f"{self.dtype[0].n} images, {_threads(self.dtype[0])}, the network in bfloat16 and the "
            "states in float32, diffusers under autocast; largest, RMS, PSNR: the deviation of "
            "images in [0, 1] from plain torch's in float32"
        )
        return Table("dtype", "bfloat16", note, rows, {"PSNR dB": ".1f"})


def _rows(entries: Sequence[Entry], result: Result, clock: str = "wall") -> list[dict[str, Cell]]:
    """Speeds, and the ratios to the opponent and to plain torch, the first of the entries."""
    theirs = next((e for e in entries if not isinstance(e.contestant, Ours)), None)
    rows: list[dict[str, Cell]] = []
    for entry in entries:
        row: dict[str, Cell] = {"contestant": entry.contestant.name, "batch": entry.batch_size}
        row["images/s"] = result.rate(entry)
        if theirs is not None:
            row[f"× {theirs.contestant.name}"] = result.ratio(entry, theirs, clock)
        row[f"× {entries[0].contestant.name}"] = result.ratio(entry, entries[0], clock)
        rows.append(row)
    return rows


def _threads(entry: Entry) -> str:
    return f"{entry.threads} threads" if entry.threads > 1 else "1 thread"
