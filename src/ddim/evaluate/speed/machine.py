"""What figures of speed depend on besides the code: the machine and what is installed there."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["has_bfloat16", "load_average", "machine"]

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
"""Names that Linux gives to the instructions."""


def machine(packages: Sequence[str]) -> dict[str, str]:
    """What the figures depend on: processor, cores, versions, load average.

    Args:
        packages: whose versions, those that are installed.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = _cpuinfo("model name") or platform.processor() or platform.machine()
    facts = {"cpu": model, "cores": str(usable), "python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            facts[package] = version(package)
    return facts | {"load average": load_average()}


def load_average() -> str:
    """Of the last 1, 5 and 15 minutes; a question mark where the system does not say."""
    return " ".join(f"{x:.2f}" for x in os.getloadavg()) if hasattr(os, "getloadavg") else "?"


def has_bfloat16() -> bool:
    """Whether the processor says that it has instructions for bfloat16."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return not BFLOAT16.isdisjoint(flags.split())


def _cpuinfo(key: str) -> str:
    """What Linux says of the first processor; empty elsewhere, and where it does not say."""
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""
