"""What is recorded is read again, whatever is in it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddim.base.records import read_toml, to_toml

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
