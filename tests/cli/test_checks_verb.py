import json


def test_an_untrained_model_is_found_out(ddim, tiny, noise_data):
    answer = ddim("checks", tiny, "--data", noise_data, "-n", 20, "--steps", 10, "--json")
    facts = json.loads(answer.out)
    assert facts["model"] == "tiny" and facts["target"] == "eps" and facts["shape"] == [1, 8, 8]
    assert [row["node"] for row in facts["calibration"]] == [2, 6, 10, 14, 19]
    problems = [f for f in facts["findings"] if f["level"] == "problem"]
    assert problems and all(f["what"] and f["why"] and f["do"] for f in problems)
    assert answer.status == 1


def test_without_data_it_looks_at_the_rest(ddim, conditional):
    answer = ddim("checks", conditional)
    assert answer.status == 0, answer.err
    assert "schedule" in answer.out and "[note] the network's predictions were not" in answer.out
    assert "3 for 'none'" in answer.out


def test_refusals(fails, tiny, noise_data):
    fails(2, "T = 20", "checks", tiny, "--steps", 21)
    fails(2, "-n", "checks", tiny, "-n", 0)
    fails(2, "did you mean 'mnist'", "checks", "mnits")
