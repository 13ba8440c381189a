"""``ddim sample --shard-size``, ``ddim verify`` and ``ddim merge``."""

from __future__ import annotations

import json

import pytest

WORDS = ("--steps", "2", "--batch-size", "2", "--device", "cpu", "--quiet")


@pytest.fixture
def sets(ddim, tiny, tmp_path):
    """Draws seven images into a folder, by shards of three."""

    def draw(name: str, *words: object):
        more = ("--shard-size", 3, "--output", tmp_path / name, *words)
        return ddim("sample", "--model", tiny, "-n", 7, *WORDS, *more)

    return draw


def test_a_set_is_drawn_checked_and_grown(ddim, sets, tmp_path):
    said = sets("set")
    assert "7 images drawn of 7, in 3 shards" in said.out
    assert "7 images in 3 shards, all as they were written" in ddim("verify", tmp_path / "set").out
    assert "2 images drawn of 9" in sets("set", "-n", 9).out
    assert "0 images drawn of 9" in sets("set", "-n", 9).out
    known = json.loads(sets("set", "-n", 10, "--json").out)
    assert (known["images"], known["drawn"], known["missing"]) == (10, 1, 0)
    again = ("--config", tmp_path / "set/run.toml", "--output", tmp_path / "again", "--quiet")
    ddim("sample", *again)
    for path in (tmp_path / "set").glob("*.npz"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_parts_are_merged(ddim, sets, tmp_path):
    sets("whole")
    assert "2 of other processes to come" in sets("1", "--shard", "1/2").out
    assert "1 of other processes to come" in sets("0", "--shard", "0/2").out
    out = ("--output", tmp_path / "out", "--quiet")
    assert "1 of 3 shards, 2 still missing" in ddim("merge", tmp_path / "1", *out).out
    bad = ddim("verify", tmp_path / "out")
    assert bad.status == 1
    assert "2 of 3 shards missing: 0, 2" in bad.out
    assert ddim("merge", tmp_path / "1", tmp_path / "0", *out).out.endswith("3 of 3 shards\n")
    known = json.loads(ddim("verify", tmp_path / "out", "--json").out)
    assert (known["whole"], known["n"], known["missing"]) == (True, 7, [])
    for path in (tmp_path / "whole").glob("*.npz"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_a_long_run_is_watched(ddim, tiny, tmp_path):
    words = [word for word in WORDS if word != "--quiet"]
    more = ("--shard-size", 3, "--log", "--prometheus", tmp_path / "ddim.prom")
    said = ddim("sample", "--model", tiny, "-n", 7, *words, *more, "--output", tmp_path / "set")
    line = json.loads(said.err.strip().split("\n")[-1])
    assert (line["what"], line["done"], line["total"], line["shard"]) == ("sample", 7, 7, 2)
    assert line["time"] > 1e9
    numbers = dict(
        entry.split(" ")
        for entry in (tmp_path / "ddim.prom").read_text().splitlines()
        if entry[0] != "#"
    )
    assert float(numbers["ddim_sample_images_total"]) == 7
    assert float(numbers["ddim_sample_images_left"]) == 0
    assert float(numbers["ddim_sample_shard"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shard-size", 0), "the shard size must be"),
        (("--shard", "2/2"), "a share is i/N with i from 0 to N - 1, not 2/2"),
        (("--shard", "half"), "a share is written i/N"),
        (("--force",), "writes nothing over"),
        (("--columns", 3), "--columns does not go with --shard-size"),
        (("--images", "mnist", "--strength", 0.5), "--images does not go with --shard-size"),
        (("-n", 0), "n must be"),
    ],
)
def test_bad_input(fails, tiny, tmp_path, words, message):
    out = tmp_path / "set"
    base = ("sample", "--model", tiny, "-n", 7, *WORDS, "--shard-size", 3, "--output", out)
    fails(2, message, *base, *words)
    assert not out.exists()


def test_options_of_a_set_without_one(fails, tiny, tmp_path):
    out = ("--output", tmp_path / "out")
    fails(2, "--shard goes with", "sample", "--model", tiny, "--shard", "0/2", *out)
    fails(2, "--shard-format goes", "sample", "--model", tiny, "--shard-format", "tar", *out)


def test_outputs_that_are_no_folder(fails, tiny, tmp_path):
    words = ("sample", "--model", tiny, "--shard-size", 3, *WORDS)
    fails(2, "is a folder, not x.npz", *words, "--output", tmp_path / "x.npz")
    (tmp_path / "file").write_text("mine")
    fails(2, "is a file", *words, "--output", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_no_set(fails, sets, tmp_path):
    sets("set")
    fails(2, "no set of shards", "verify", tmp_path)
    fails(2, "no set of shards", "merge", tmp_path, "--output", tmp_path / "out")
    fails(2, "PARTS", "merge", "--output", tmp_path / "out")
    one = tmp_path / "set"
    fails(2, "is one of the parts", "merge", one, "--output", one)
