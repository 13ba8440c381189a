import json
import platform
from importlib.metadata import version

import numpy as np

from ddim import __version__
from ddim.data.pixels import to_pixels
from ddim.model.drawing import sample
from ddim.model.opening import load


def test_an_untrained_model_is_found_out(ddim, tiny, noise_data):
    answer = ddim("checks", tiny, "--data", noise_data, "-n", 20, "--steps", 10, "--json")
    facts = json.loads(answer.out)
    assert facts["model"] == "tiny" and facts["target"] == "eps" and facts["shape"] == [1, 8, 8]
    assert [row["node"] for row in facts["predictions"]] == [2, 6, 10, 14, 19, 20]
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
    assert len(rows) == 6 and all(abs(row["sum"] - 1) < 0.1 for row in rows)


def test_without_data_it_looks_at_the_rest(ddim, conditional):
    answer = ddim("checks", conditional)
    assert answer.status == 0, answer.err
    assert "schedule" in answer.out and "[note] the network's predictions were not" in answer.out
    assert "3 for 'none'" in answer.out


def test_without_a_model_it_says_what_a_report_needs(ddim):
    """The shipped model, and the machine."""
    answer = ddim("checks", "--json")
    assert answer.status == 0, answer.err
    facts = json.loads(answer.out)
    assert facts["model"] == "mnist"
    machine = facts["environment"]
    assert machine["ddim"] == __version__ and machine["python"] == platform.python_version()
    assert machine["torch"] == version("torch") and machine["platform"] == platform.platform()
    assert machine["cuda"] is None or isinstance(machine["cuda"], str)
    backends = machine["backends"]
    assert list(backends) == ["torch", "ncnn", "openvino", "cuda-graph", "compile"]
    assert backends["torch"] is None
    if machine["device"] == "cpu":
        assert backends["compile"] == "is for CUDA, not for cpu"


MINE = """
import sys
import ddim, torch

class Net(torch.nn.Module):
    def forward(self, x, t, y):
        print(*y.tolist(), sep="", end=" ", file=sys.stderr)
        return x

def model():
    return ddim.Model(Net(), ddim.Schedule.cosine(20), "eps", (1, 8, 8), classes=3, name="mine")
"""


def test_a_model_of_ones_own_is_given_the_labels_of_the_data(ddim, fails, tmp_path, noise_data):
    (tmp_path / "mine.py").write_text(MINE)
    answer = ddim("checks", "mine.py:model", "--data", noise_data, "-n", 6, "--json")
    facts = json.loads(answer.out)
    assert (facts["model"], facts["network"], facts["classes"]) == ("mine", "Net", 3)
    assert "01201222" in answer.err  # six images, padded to a batch of eight
    assert facts["images"] == 6 and len(facts["predictions"]) == 6
    np.savez(tmp_path / "bare.npz", images=np.load(noise_data)["images"])
    fails(
        2, "has 3 classes, and bare has no labels", "checks", "mine.py:model", "--data", "bare.npz"
    )


def test_refusals(fails, tiny, noise_data):
    fails(2, "T = 20", "checks", tiny, "--steps", 21)
    fails(2, "-n", "checks", tiny, "-n", 0)
    fails(2, "did you mean 'mnist'", "checks", "mnits")
