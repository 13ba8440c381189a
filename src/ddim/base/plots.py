"""How the curves of a plot differ: by colour, and in grey by marker and line too."""

from __future__ import annotations

from typing import Any

__all__ = ["line_style"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Colours that most people tell apart (Okabe and Ito 2008, https://jfly.uni-koeln.de/color/)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def line_style(number: int) -> dict[str, Any]:
    """What tells the curve of that number from others: arguments of matplotlib's ``plot``.

    Colours, markers and lines turn with periods of 7, 11 and 5, so that the first 385 all differ,
    and of the first 55 no two have the same marker and line.

    Example:
        >>> line_style(0)["marker"], line_style(1)["linestyle"]
        ('o', '--')
    """
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
        "markersize": 5,
    }
