"""Metrics as a text file, which Prometheus' node exporter reads from a folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ddim.base.errors import InputError
from ddim.base.files import check_writable
from ddim.base.ranks import here

__all__ = ["Metric", "check_exposition", "exposition", "write_exposition"]

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number with what it means.

    Attributes:
        value: the number; NaN and the infinities are allowed.
        help: what it is, in a few words, with its unit.
        kind: a counter only grows, and its name ends in ``_total``.
    """

    value: float
    help: str
    kind: Literal["gauge", "counter"] = "gauge"


def exposition(metrics: Mapping[str, Metric], labels: Mapping[str, str] | None = None) -> str:
    r"""The text of some metrics, in Prometheus' exposition format, version 0.0.4.

    https://prometheus.io/docs/instrumenting/exposition_formats/

    Args:
        metrics: by name.
        labels: of all of them.

    Example:
        >>> text = exposition({"ddim_step": Metric(3, "Steps done.")}, {"run": "a\"b"})
        >>> print(text, end="")
        # HELP ddim_step Steps done.
        # TYPE ddim_step gauge
        ddim_step{run="a\"b"} 3
    """
    pairs = ",".join(f'{name}="{_escaped(v, quote=True)}"' for name, v in (labels or {}).items())
    lines: list[str] = []
    for name, metric in metrics.items():
        assert _NAME.fullmatch(name)
        assert (metric.kind == "counter") == name.endswith("_total"), name
        lines += [
            f"# HELP {name} {_escaped(metric.help)}",
            f"# TYPE {name} {metric.kind}",
            f"{name}{{{pairs}}} {_number(metric.value)}" if pairs else
            f"{name} {_number(metric.value)}",
        ]  # fmt: skip
    return "".join(f"{line}\n" for line in lines)


def check_exposition(path: Path) -> None:
    """Refuse a file that no node exporter would read, or that cannot be written.

    Raises:
        InputError: either.
    """
    if path.suffix != ".prom":
        raise InputError(f"{path}: node exporters read files that end in .prom: give such a name")
    check_writable(path)


def write_exposition(
    path: Path, metrics: Mapping[str, Metric], labels: Mapping[str, str] | None = None
) -> None:
    """Write such a file whole; of several processes the first does.

    The text goes to ``.NAME.prom.part`` beside it first, which node exporters pass over because of
    its suffix. It is not synchronised with the disk: after a crash of the machine it is old anyway.
    """
    if not here().first:
        return
    part = path.with_name(f".{path.name}.part")
    part.write_text(exposition(metrics, labels), encoding="utf-8")
    part.replace(path)


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quote else text
