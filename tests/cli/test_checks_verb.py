import json

import numpy as np

from ddim.data.pixels import to_pixels
from ddim.model.drawing import sample
from ddim.model.opening import load


def test_an_untrained_model_is_found_out(ddim, tiny, noise_data):
    answer = ddim("checks", tiny, "--data", noise_data, "-n", 20, "--steps", 10, "--json")
    facts = json.loads(answer.out)
    assert facts["model"] == "tiny" and facts["target"] == "eps" and facts["shape"] == [1, 8, 8]
    assert [row["node"] for row in facts["predictions"]] == [2, 6, 10, 14, 19]
    problems = [f for f in facts["findings"] if f["level"] == "problem"]
    assert problems and all(f["what"] and f["why"] and f["do"] for f in problems)
    assert answer.status == 1


def test_a_good_model_has_no_problem(ddim, tmp_path):
    """Its own samples stand for its data."""
    pixels = to_pixels(sample(load("mnist"), 32, steps=10))
    np.savez(tmp_path / "digits.npz", images=pixels[:, 0].numpy())
    answer = ddim("checks", "mnist", "--data", tmp_path / "digits.npz", "-n", 32, "--json")
    assert answer.status == 0, answer
    rows = json.loads(answer.out)["predictions"]
    assert len(rows) == 5 and all(abs(row["sum"] - 1) < 0.1 for row in rows)


def test_without_data_it_looks_at_the_rest(ddim, conditional):
    answer = ddim("checks", conditional)
    assert answer.status == 0, answer.err
    assert "schedule" in answer.out and "[note] the network's predictions were not" in answer.out
    assert "3 for 'none'" in answer.out


def test_refusals(fails, tiny, noise_data):
    fails(2, "T = 20", "checks", tiny, "--steps", 21)
    fails(2, "-n", "checks", tiny, "-n", 0)
    fails(2, "did you mean 'mnist'", "checks", "mnits")
