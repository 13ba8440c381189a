"""What consoles and notebooks show: one line, and HTML that is escaped and holds itself."""

from __future__ import annotations

import dataclasses
import html.parser
import re
from typing import NamedTuple

import numpy as np
import pytest

from ddim.base.display import Listing, Named, brief, curve, facts_table, rows_table, shown

VOID = {"img", "path", "polyline"}


class Checked(html.parser.HTMLParser):
    """Elements that open and close in order, none that runs or fetches anything."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe", "style")
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("src", "href") or value.startswith("data:")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


EVIL = '<script>alert("x")</script>&'


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    name: str
    values: object = None
    hidden: int = dataclasses.field(default=3, repr=False)
    more: dict[str, int] = dataclasses.field(default_factory=dict)


@shown
class Pair(NamedTuple):
    first: object
    second: object


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (Record("a"), "Record(name='a')"),
        (Record("a", 1.23456789), "Record(name='a', values=1.23457)"),
        (Record("a", range(9)), "Record(name='a', values=range(0, 9))"),
        (Record("a", list(range(9))), "Record(name='a', values=(0, 1, 2, … 9 of them))"),
        (Record("a", (1,), 4), "Record(name='a', values=(1,))"),
        (Record("a", more={"x": 1}), "Record(name='a', more={x: 1})"),
        (Record("a", np.zeros((2, 3))), "Record(name='a', values=(2, 3) float64)"),
        (Pair(np.zeros(4, np.float32), None), "Pair(first=(4,) float32, second=None)"),
    ],
)
def test_a_line_names_what_is_not_the_default(record, line):
    assert repr(record) == line


@pytest.mark.parametrize(
    "value", ["x" * 5000, "a\nb\n" * 500, {"k" * 90: "v" * 900}, [[1] * 99] * 9]
)
def test_a_line_is_short_whatever_it_holds(value):
    for record in (Record("n" * 500, value), Pair(value, value), Named({"k" * 500: value})):
        assert len(repr(record)) < 200
        assert "\n" not in repr(record)
    assert len(brief("Many", {str(i): value for i in range(100)})) < 200


def test_html_is_escaped_and_fetches_nothing():
    record = Record(EVIL, (EVIL, EVIL), more={EVIL: 1})
    rows = [{EVIL: EVIL, "n": i, "yes": True, "none": None} for i in range(200)]
    pages = [record._repr_html_(), rows_table(EVIL, rows), facts_table(EVIL, {EVIL: EVIL})]
    pages += [curve(EVIL, [0, 1, 2], [3.0, 1, 2], EVIL), Listing([record, record])._repr_html_()]
    pages += [Named({EVIL: record})._repr_html_(), rows_table("none", [])]
    for page in pages:
        assert EVIL not in page
    assert EVIL in Checked(pages[0]).text
    assert "and 100 more rows" in Checked(pages[1]).text
    assert all(Checked(page).text for page in pages)


def test_colours_are_those_of_the_page():
    """So that it is readable on light and on dark ground."""
    page = (
        facts_table("t", {"a": 1}) + rows_table("t", [{"a": 1}]) + curve("c", [0, 1], [0, 1], "x")
    )
    assert "currentColor" in page
    assert not re.search(r"#[0-9a-f]{3,6}\b|background", page)
    assert "black" not in page and "white" not in page


def test_a_curve_runs_from_the_lower_left_to_the_upper_right():
    points = re.search(r'points="([^"]*)"', curve("up", [0, 5, 10], [1.0, 2, 3], "x"))
    assert points is not None
    places = [tuple(map(float, pair.split(","))) for pair in points[1].split()]
    assert places == [(54.0, 120.0), (162.0, 71.0), (270.0, 22.0)]
    curve("flat", [1], [2.0], "x")  # a single point, where nothing can be divided by its length


def test_a_listing_is_a_list():
    listing = Listing([Record("a"), Record("b")])
    assert listing == list(listing)
    assert repr(listing) == "[2 x Record]"
    assert repr(Listing()) == "[]"
    assert Checked(listing._repr_html_()).text.count("None") == 0
