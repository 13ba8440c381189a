from __future__ import annotations

import errno
import json
import os
import stat

import pytest

from ddim.base.files import read_json, refuse_existing, replacing, write_bytes, write_json


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("told", [None, "data.bin"])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, told):
    """The system names none; a file that an error does name is another one, read for this."""
    path = tmp_path / "weights.bin"
    with pytest.raises(OSError, match="No space") as raised, replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), told)
    assert raised.value.filename == (told or str(path))


def test_until_the_end_readers_see_the_old_file(tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        assert temporary.parent == path.parent  # a rename is atomic within one file system only
        assert temporary.suffix == ".json"
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    """A temporary file is private; the finished one must not be."""
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "deep" / "er" / "a.bin", b"\x00\xff")
    finally:
        os.umask(before)
    path = tmp_path / "deep" / "er" / "a.bin"
    assert path.read_bytes() == b"\x00\xff"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_json_round_trip(tmp_path):
    value = {"α": [1, 2.5, None], "nested": {"yes": True}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "α" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_floats_survive_json_to_the_last_bit(tmp_path):
    value = {"x": [0.1, 1 / 3, 5e-324, 1e308]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_json_refusals(tmp_path, refuses):
    with refuses("there is no file"):
        read_json(tmp_path / "absent.json")
    for content, message in (
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "object"),
    ):
        (tmp_path / "bad.json").write_bytes(content)
        with refuses(message):
            read_json(tmp_path / "bad.json")


def test_a_value_that_json_cannot_say_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert not list(tmp_path.iterdir())


def test_existing_output_is_refused_unless_forced(tmp_path, refuses):
    path = tmp_path / "out"
    refuse_existing(path, force=False)
    path.mkdir()
    refuse_existing(path, force=False)  # an empty folder holds nothing to lose
    (path / "image.png").write_bytes(b"")
    with refuses("exists already: give --force"):
        refuse_existing(path, force=False)
    with refuses("exists already"):
        refuse_existing(path / "image.png", force=False)
    refuse_existing(path, force=True)
    assert json.dumps([p.name for p in path.iterdir()]) == '["image.png"]'
