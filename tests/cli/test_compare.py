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
    assert found[2]["RMS"] == 0 < found[0]["RMS"]
    with Image.open("comparison.png") as image:
        assert np.asarray(image).ndim == 3
    assert "steps = [" in Path("comparison.png.run.toml").read_text(encoding="utf-8")


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
        (["--nodes", "20,10,0"], "families or lists, each list like 500-250-0, not 20"),
        (["--methods", "dimm"], "did you mean 'ddim'"),
        (["--methods", "calibrated"], "has no calibration"),
        (["--labels", 1], "has no classes, so labels mean nothing to it"),
        (["--output", "a.npz"], "--output is a .png file, not a.npz"),
        (["-n", 0], "-n must be at least 1, not 0"),
    ],
)
def test_bad_input(fails, tiny, flags, match):
    fails(2, match, "compare", "--model", tiny, *flags)
