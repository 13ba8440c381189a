"""Lines of JSON in the place of progress bars."""

from __future__ import annotations

import json
import math
import time

from ddim.base.lines import LineMeter, as_lines, say, wanted
from ddim.base.progress import bar, meter


def told(capsys) -> list[dict[str, object]]:
    answer = capsys.readouterr()
    assert answer.out == ""
    return [json.loads(line, parse_constant=None) for line in answer.err.splitlines()]


def test_a_line_has_the_time_and_the_fields(capsys):
    say(shard=3, name="ä", loss=math.nan)
    (line,) = told(capsys)
    assert abs(line.pop("time") - time.time()) < 10
    assert line == {"shard": 3, "name": "ä", "loss": None}


def test_bars_are_lines_where_that_is_wanted(capsys):
    with as_lines():
        assert wanted()
        assert list(bar(iter("abc"), 3, "drawing", quiet=False)) == ["a", "b", "c"]
        assert list(bar(iter("abc"), 3, "drawing", quiet=True)) == ["a", "b", "c"]
    assert not wanted()
    (line,) = told(capsys)
    assert line["per_second"] > 0
    known = {"what": "drawing", "done": 3, "total": 3, "unit": "step", "seconds_left": 0.0}
    assert {key: line[key] for key in known} == known


def test_lines_come_now_and_then_and_at_the_end(capsys):
    with LineMeter(total=40, desc="train", unit=" images", initial=10, every=0.05) as shown:
        for _ in range(3):
            shown.set_postfix(loss=0.5, refresh=False)
            time.sleep(0.06)
            shown.update(10)
        shown.close()
    lines = told(capsys)
    assert [line["done"] for line in lines] == [20, 30, 40]
    assert [line["unit"] for line in lines] == ["images"] * 3
    assert all(line["loss"] == 0.5 for line in lines)
    assert 50 < lines[0]["per_second"] < 170
    assert 0.09 < lines[0]["seconds_left"] < 0.5
    assert lines[0]["time"] < lines[1]["time"]


def test_what_tqdm_takes_is_taken(capsys):
    with as_lines(), meter(quiet=False, total=None, desc="a", unit="B", unit_scale=True) as shown:
        shown.set_description("b")
        shown.update(5)
    (line,) = told(capsys)
    assert (line["what"], line["done"], line["total"], line["seconds_left"]) == ("b", 5, None, None)
