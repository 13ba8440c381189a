"""``ddim compare``."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def rows(answer):
    assert answer.status == 0, answer.err
    return json.loads(answer.out)["rows"]


def test_a_row_for_every_method_and_number_of_steps(ddim, tiny):
    found = rows(
        ddim(
            *("compare", "--model", tiny, "-n", 3, "--steps", 2, 5, 500, "--quiet", "--json"),
            *("--methods", "ddim", "dpmpp:order=3", "ddpm"),
        )
    )
    assert [row["network calls"] for row in found] == [2, 5, 20] * 3
    assert 0 < found[2]["RMS"] < found[0]["RMS"]
    with Image.open("comparison.png") as image:
        assert np.asarray(image).ndim == 3
    assert "steps = [" in Path("comparison.png.run.toml").read_text(encoding="utf-8")


FINEST = ("plms:nodes=quadratic", "deis:nodes=quadratic", "unipc:order=3", "dpm-solver-3")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_finest_contestant_is_measured_by_another(ddim, tiny, count):
    """Through all T nodes the usual reference is a row itself: something else stands in for it."""
    words = ("compare", "--model", tiny, "-n", 2, "--steps", 20, 4, "--quiet", "--methods")
    answer = ddim(*words, *FINEST[:count], "--json")
    found = rows(answer)
    assert all(row["RMS"] > 0 for row in found)
    judge = json.loads(answer.out)["reference"]
    assert judge.split(":")[0] == FINEST[count].split(":")[0]
    for fine, coarse in zip(found[::2], found[1::2], strict=True):
        assert fine["RMS"] < coarse["RMS"]
    assert f"RMS is to what {judge} draws" in ddim(*words, *FINEST[:count], "--force").out


def test_all_fine_samplers_at_once_leave_no_reference(fails, tiny):
    words = ("compare", "--model", tiny, "-n", 1, "--steps", 20, "--quiet", "--methods")
    fails(2, "no sampler is finer than .* leave one out", *words, *FINEST)


def test_random_samplers_have_no_solution_to_be_measured_from(ddim, tiny):
    answer = ddim(
        "compare", "--model", tiny, "-n", 1, "--steps", 3, "--eta", 1, "--quiet", "--json"
    )
    assert json.loads(answer.out)["reference"] is None
    assert "RMS" not in rows(answer)[0]


def test_lists_of_eta_and_of_nodes(ddim, tiny):
    common = ("compare", "--model", tiny, "-n", 2, "--steps", 4, "--quiet", "--force")
    lists = ("--eta", "0,1,sigma-hat", "--nodes", "quadratic", "20-5-0")
    found = rows(ddim(*common, *lists, "--json"))
    assert [(row["nodes"], row["eta"], row["steps"]) for row in found] == [
        ("quadratic", 0.0, 4), ("quadratic", 1.0, 4), ("quadratic", "sigma-hat", 4),
        ("20-5-0", 0.0, 2), ("20-5-0", 1.0, 2), ("20-5-0", "sigma-hat", 2),
    ]  # fmt: skip
    header = ddim(*common, *lists).out.splitlines()[0].split()
    assert header[:4] == ["method", "nodes", "eta", "steps"]
    # What is the same in every row is left out.
    assert ddim(*common).out.splitlines()[0].split()[:2] == ["method", "steps"]


def test_classes_and_guidance(ddim, conditional):
    common = ("compare", "--model", conditional, "-n", 4, "--steps", 2, "--quiet", "--force")
    assert ddim(*common, "--labels", 2, "--guidance", 2).status == 0
    first = Path("comparison.png").read_bytes()
    assert ddim(*common, "--labels", 1, "--guidance", 2).status == 0
    assert Path("comparison.png").read_bytes() != first


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--nodes", "20,10,0"], "families or lists, each list like 500-250-0, not '20'"),
        (["--methods", "dimm"], "did you mean 'ddim'"),
        (["--methods", "calibrated"], "has no calibration"),
        (["--labels", 1], "has no classes, so labels mean nothing to it"),
        (["--output", "a.npz"], "--output is a .png file, not a.npz"),
        (["-n", 0], "-n must be at least 1, not 0"),
    ],
)
def test_bad_input(fails, tiny, flags, match):
    fails(2, match, "compare", "--model", tiny, *flags)
