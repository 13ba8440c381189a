"""What is recorded is read again, whatever is in it."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddim.base.errors import InputError
from ddim.base.records import check_fields, checked, parse_json, read_toml, record, to_toml

PLAIN = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(),
    st.sampled_from(["[\n", ",\n]", ",\n", '"""', "'", "\\", "\r\n", "\x7f", "\u2028", "# no"]),
)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=5), max_leaves=30)


def same(one: object, other: object) -> bool:
    """Equal and of one type: a step count must not come back as 5.0, and nan is nan."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one.hex() == other.hex() or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and one == other


@given(values=st.dictionaries(st.text(), VALUES, max_size=5), comment=st.text("ab #\n\t"))
def test_what_is_written_is_read_again(tmp_path_factory, values, comment):
    path = tmp_path_factory.getbasetemp() / "record.toml"
    path.write_bytes(to_toml(values, comment).encode())
    found = read_toml(path, list(values))
    assert list(found) == list(values)
    assert all(same(found[key], values[key]) for key in values)


def test_a_record_is_for_people_too():
    values = {
        "model": "α/β.ckpt",
        "nodes": None,
        "labels": (3, 1),
        "pairs": [[1, 2], [], ["a, b", "c\n"]],
        "limit": math.inf,
        "many": ["a long word"] * 9,
    }
    assert to_toml(values, "ddim sample\nddim 1.0") == (
        "# ddim sample\n"
        "# ddim 1.0\n"
        'model = "α/β.ckpt"\n'
        "labels = [3, 1]\n"
        'pairs = [[1, 2], [], ["a, b", "c\\n"]]\n'
        "limit = inf\n"
        "many = [\n" + '    "a long word",\n' * 9 + "]\n"
    )
    assert to_toml({}) == ""


def test_a_value_that_toml_cannot_say():
    with pytest.raises(TypeError):
        to_toml({"a": object()})


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"steps = ", "is not valid TOML"),
        (b"steps = 1\nsteps = 2", "is not valid TOML"),
        (b"name = '\xff'", "is not valid TOML"),
        (b"stesp = 5", "unknown key 'stesp': did you mean 'steps'"),
        (b"qqq = 5", "unknown key 'qqq'$"),
        (b"[steps]\na = 1", "'steps' must be a plain value, not a table"),
        (b"steps.a = 1", "'steps' must be a plain value, not a table"),
    ],
)
def test_files_that_are_refused(tmp_path, refuses, content, match):
    path = tmp_path / "record.toml"
    path.write_bytes(content)
    with refuses(match):
        read_toml(path, ["steps", "name"])


def test_a_file_that_is_not_there(tmp_path, refuses):
    with refuses("there is no file .*absent.toml"):
        read_toml(tmp_path / "absent.toml", [])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("when = 1979-05-27", "'when' must be a plain value, not a table or a date"),
        ("when = [[1, 07:32:00]]", "'when' must be a plain value"),
        ("when = [{a = 1}]", "'when' must be a plain value"),
        ("when" + ".a" * 4000 + " = 1", "is nested in more than 20 levels"),
        ("when" + ".a" * 40_000 + " = 1", "is no record: it has 40,000 dots"),
        ("when = " + "[" * 100_000, "is no record: its brackets never end"),
        ("when = " + "[" * 60 + "]" * 60, "is nested in more than 20 levels"),
        (f"when = {2**64}", "has a whole number of more than 64 bits"),
        ("when = " + "9" * 9000, "is not valid TOML"),
        ("when = 0x" + "f" * 99_000, "has a whole number of more than 64 bits"),
        ("#" * 300_001, "has more than 300,000 bytes"),
        ("k" * 100_000 + " = 1", "unknown key 'kkk"),
    ],
)
def test_toml_that_no_record_is(tmp_path, refuses, content, match):
    path = tmp_path / "run.toml"
    path.write_text(content)
    begun = time.perf_counter()
    with refuses(f"run.toml.*{match}"):
        read_toml(path, ["when"])
    assert time.perf_counter() - begun < 2


def test_what_is_no_file(tmp_path, refuses):
    with refuses("cannot be read: Is a directory"):
        read_toml(tmp_path, [])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * 200_000, "x is no record: it has more than 20,000 brackets"),
        # Python 3.13 follows them to their end, where nothing stands.
        ("[" * 9_000, "x is no record: its brackets never end|x is not valid JSON"),
        ('{"a":' * 9_000, "x is no record: its brackets never end|x is not valid JSON"),
        ('{"a": ' + "[" * 30 + "]" * 30 + "}", "x is nested in more than 20 levels"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "x says 'c' twice"),
        ("{" + ", ".join(f'"{i % 60_000}": 0' for i in range(60_001)) + "}", "says '0' twice"),
        (f'{{"a": [{-(2**64)}]}}', "x has a whole number of more than 64 bits"),
        (f'{{"a": {"9" * 5000}}}', "x is not valid JSON"),
        ("3", "x is not a JSON object"),
        ("", "x is not valid JSON"),
        ('{"a": "\\ud800', "x is not valid JSON"),
    ],
    ids=range(11),
)
def test_json_that_no_record_is(refuses, text, match):
    begun = time.perf_counter()
    with refuses(match):
        parse_json(text, "x")
    assert time.perf_counter() - begun < 2


@dataclasses.dataclass(frozen=True)
class Part:
    size: int
    name: str = "none"


@dataclasses.dataclass(frozen=True)
class Whole:
    part: Part
    rate: float = 0.5
    on: bool = True
    kind: Literal["a", "b"] = "a"
    nodes: str | tuple[int, ...] = ()
    limit: float | None = None
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    places: dict[str, str] = dataclasses.field(default_factory=dict)


def test_a_record_is_made_of_plain_values():
    values = {"part": {"size": 3}, "nodes": [3, 0], "rate": 1, "limit": None, "more": {"x": [1]}}
    made = record(Whole, values)
    assert made == Whole(Part(3), 1, nodes=(3, 0), more={"x": [1]})
    assert record(Whole, {"part": {"size": 1}, "nodes": "uniform"}).nodes == "uniform"
    check_fields(made)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"part": 3}, "^part must be an object, not 3$"),
        ({"part": {}}, "^part: size is missing$"),
        ({"part": {"size": 1, "sise": 2}}, "^part: unknown key 'sise': did you mean 'size'"),
        ({"part": {"size": 1.0}}, "^part: size must be a whole number, not 1.0$"),
        ({"part": {"size": True}}, "^part: size must be a whole number, not True$"),
        ({"rate": math.inf}, "^rate must be a finite number, not inf$"),
        ({"rate": "1"}, "^rate must be a finite number, not '1'$"),
        ({"on": 1}, "^on must be true or false, not 1$"),
        ({"kind": "c"}, "^kind must be one of 'a', 'b', not 'c'$"),
        ({"kind": ["a"]}, "^kind must be one of 'a', 'b', not"),
        ({"nodes": [1, "2"]}, "^nodes must be text or a list whose parts are a whole number, not"),
        ({"limit": math.nan}, "^limit must be a finite number, not nan$"),
        ({"limit": []}, "^limit must be a finite number, not"),
        ({"places": {"a": 3}}, "^places.a must be text, not 3$"),
        ({"part": None}, "^part must be an object, not None$"),
        ({"kind": "x" * 10_000}, "^kind must be one of 'a', 'b', not '.{190,200}$"),
    ],
)
def test_fields_of_another_type_are_named(refuses, changes, match):
    with refuses(match):
        record(Whole, {"part": {"size": 1}, **changes})


def test_what_the_library_is_given_is_checked_by_the_same_rules(refuses):
    with refuses("rate must be a finite number, not 'x'"):
        check_fields(Whole(Part(1), rate="x"))  # pyright: ignore[reportArgumentType]
    with refuses(r"n\[1\] must be a whole number, not None"):
        checked("n", [1, None], list[int])


PLAIN_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Whole)]), inner),
    ),
    max_leaves=12,
)


@given(
    values=st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Whole)]), PLAIN_JSON)
)
def test_nothing_but_a_refusal_comes_of_any_values(values):
    try:
        made = record(Whole, values)
    except InputError:
        return
    check_fields(made)
