"""``ddim evaluate``."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.data.base import ArrayData
from ddim.data.load import load_data
from ddim.data.pixels import from_pixels
from ddim.evaluate.features.extractor import Extractor, Identity
from ddim.evaluate.features.lenet import LENET_FOLDER
from ddim.evaluate.likelihood.bits import BitsPerDimension
from ddim.evaluate.likelihood.bound import elbo
from ddim.evaluate.likelihood.ode import ode_bits
from ddim.model.condition import Condition
from ddim.model.opening import load
from ddim.noise.nodes import make_nodes

FEATURES = "mine.py"


@pytest.fixture
def features(tmp_path):
    """A file with an extractor of one's own, in the current folder."""
    (tmp_path / FEATURES).write_text(
        "import torch\n"
        "from ddim.evaluate.features.extractor import Extractor, Identity\n"
        "def blocks(images):\n"
        "    return torch.nn.functional.avg_pool2d(images, 4).flatten(1), None\n"
        "def mine():\n"
        "    return Extractor(Identity('mine', 'means of blocks', 4), blocks)\n"
        "def plain(images):\n"
        "    return blocks(images)[0]\n"
        "def wide(images):\n"
        "    return images\n"
        "def broken(images):\n"
        "    raise ValueError('broken')\n"
        "number = 3\n"
        "def nothing():\n"
        "    return 3\n"
        "class Blocks(torch.nn.Module):\n"
        "    def forward(self, images):\n"
        "        return plain(images)\n"
        "net = Blocks()\n"
        "from math import sqrt\n"
    )
    return f"{FEATURES}:mine"


@pytest.fixture
def arguments(tiny, noise_data, features):
    return (
        "evaluate", "--model", tiny, "--data", noise_data, "--features", features, "-n", 12,
        "--steps", "2,4", "--eta", "0,sigma-hat", "--seeds", "0,1", "--teacher", 2, "--quiet",
    )  # fmt: skip


def test_a_sweep_and_its_report(ddim, arguments):
    answer = ddim(*arguments, "--output", "out")
    assert answer.status == 0, answer
    assert "mine-FD by η and steps, N = 12" in answer.out
    assert answer.out.count("±") >= 8
    names = sorted(path.name for path in Path("out").iterdir() if path.suffix != ".safetensors")
    assert names == [
        "cells", "quality.png", "report.html", "results.csv", "results.json", "results.md",
        "run.toml", "sweep.json",
    ]  # fmt: skip
    document = json.loads(Path("out/results.json").read_text())
    assert [row["steps"] for row in document["rows"]] == [2, 4, 2, 4]
    assert all(len(row["seeds"]) == 2 for row in document["rows"])
    assert "--eta 0,sigma-hat" in document["facts"]["command"]
    # One digit of solver error counts: a few images decide it.
    table = Path("out/results.md").read_text(encoding="utf-8").split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in table]
    errors = [row[cells[0].index("teacher RMS")] for row in cells[2:4]]
    assert all(error == f"{float(error):.1g}" for error in errors), errors
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert "no floor" in page  # one file of images has no test split
    again = ddim(*arguments, "--output", "out", "--json")
    assert json.loads(again.out)["rows"] == document["rows"]


def test_more_cells_and_other_numbers(ddim, fails, arguments):
    assert ddim(*arguments, "--output", "out").status == 0
    more = ddim(*arguments, "--output", "out", "--steps", ["2", "4", "5"], "--json")
    more = ddim(*arguments[:-1], "--output", "out", "--steps", 2, 4, 5, "--json", "--quiet")
    assert [row["steps"] for row in json.loads(more.out)["rows"]] == [2, 4, 5, 2, 4, 5]
    fails(2, "begun with n = 12, not 13", *arguments, "--output", "out", "-n", 13)
    assert ddim(*arguments, "--output", "out", "-n", 13, "--force").status == 0


def test_the_network_in_bfloat16(ddim, fails, arguments):
    answer = ddim(*arguments, "--output", "low", "--dtype", "bfloat16", "--json")
    low = json.loads(answer.out)
    assert "--dtype bfloat16" in low["facts"]["command"]
    assert "network in bfloat16" in low["facts"]["run on"]
    high = json.loads(ddim(*arguments, "--output", "high", "--json").out)
    assert "network in float32" in high["facts"]["run on"]
    pairs = [(a["mine-FD"], b["mine-FD"]) for a, b in zip(low["rows"], high["rows"], strict=True)]
    assert all(0 < abs(a - b) < 0.05 * b for a, b in pairs), pairs
    fails(2, "begun with dtype = bfloat16, not float32", *arguments, "--output", "low")


def test_a_dry_run_says_what_there_is_to_do(ddim, arguments):
    answer = ddim(*arguments, "--output", "out", "--dry-run")
    assert answer.status == 0
    # 12 images, 2 seeds, (2 + 4) calls for each of two η, and the teacher: 2 images in T = 20.
    assert "4 samplers x 2 seeds x 12 images: 328 network calls of" in answer.out
    assert "GFLOP in all; about" in answer.out
    assert not Path("out").exists()


def test_an_option_that_is_no_whole_number(ddim, arguments):
    method = "gradient-estimation:gamma=1.5"
    answer = ddim(*arguments, "--methods", method, "--output", "out", "--json")
    assert [row["method"] for row in json.loads(answer.out)["rows"]] == [method] * 2


def test_a_method_may_say_its_own_eta(ddim, arguments):
    answer = ddim(
        *arguments, "--methods", "ddim:eta=0.5", "ddim:steps=3", "--output", "out", "--json"
    )
    rows = [(row["method"], row["eta"], row["steps"]) for row in json.loads(answer.out)["rows"]]
    assert rows == [
        ("ddim", 0.0, 3), ("ddim", 0.5, 2), ("ddim", 0.5, 4), ("ddim", "sigma-hat", 3),
    ]  # fmt: skip


def test_lists_of_nodes(ddim, arguments):
    answer = ddim(*arguments, "--nodes", "20-5-0", "quadratic", "--output", "out", "--json")
    rows = json.loads(answer.out)["rows"]
    assert [(row["nodes"], row["steps"]) for row in rows if row["eta"] == 0] == [
        ("20-5-0", 2), ("quadratic", 2), ("quadratic", 4),
    ]  # fmt: skip


def test_a_function_of_images_is_an_extractor(ddim, arguments):
    first = json.loads(ddim(*arguments, "--output", "a", "--json").out)
    plain = (*arguments, "--features", f"{FEATURES}:plain")
    second = json.loads(ddim(*plain, "--output", "b", "--json").out)
    assert second["distance"] == "plain-FD"
    assert [row["plain-FD"] for row in second["rows"]] == [row["mine-FD"] for row in first["rows"]]


def test_a_network_is_an_extractor(ddim, arguments):
    net = (*arguments, "--features", f"{FEATURES}:net", "--steps", 2, "--seeds", 0)
    document = json.loads(ddim(*net, "--output", "out", "--json").out)
    assert document["distance"] == "net-FD"
    # The file has changed, so that what is there was measured by something else.
    with Path(FEATURES).open("a") as file:
        file.write("blocks = lambda images: (images.flatten(1)[:, :4], None)\n")
    answer = ddim(*net, "--output", "out")
    assert answer.status == 2 and "weights" in answer.err, answer


def test_no_plot_is_claimed_without_matplotlib(ddim, arguments, monkeypatch):
    assert "with plots and pictures" in ddim(*arguments, "--output", "out").out
    assert Path("out/quality.png").exists()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    answer = ddim(*arguments, "--output", "out", "--steps", 3)
    assert answer.status == 0, answer
    assert "There is no plot: plots need matplotlib" in answer.out
    assert "everything, with pictures" in answer.out
    # That of the earlier samplers would pass for one of all.
    assert not Path("out/quality.png").exists()
    for name in ("results.json", "report.html"):
        assert "There is no plot" in Path("out", name).read_text(encoding="utf-8")
    assert json.loads(Path("out/results.json").read_text())["plot"] is None


def test_the_report_is_of_all_that_the_folder_holds(ddim, arguments):
    """Cells and seeds of several commands stand in one table."""
    one = ("--output", "out", "--json")
    assert ddim(*arguments, *one, "--steps", "4", "--eta", "1", "--seeds", "1").status == 0
    document = json.loads(ddim(*arguments, *one).out)
    rows = [(row["eta"], row["steps"], row["N"], len(row["seeds"])) for row in document["rows"]]
    assert rows == [
        (0.0, 2, 12, 2), (0.0, 4, 12, 2), (1.0, 4, 12, 1), ("sigma-hat", 2, 12, 2),
        ("sigma-hat", 4, 12, 2),
    ]  # fmt: skip
    # Of a cell whose first seed is asked for again, the other seed is still counted.
    again = json.loads(ddim(*arguments, *one, "--steps", "2", "--seeds", "0").out)
    assert again["rows"] == document["rows"]


def test_beginning_anew_waits_until_nothing_can_fail(ddim, fails, arguments):
    def cells():
        return sorted(str(path) for path in Path("out").rglob("*.safetensors"))

    given = (*arguments, "--output", "out", "--force")
    assert ddim(*given).status == 0
    before = cells()
    for flags, match in (
        (["--model", "nosuch"], "nosuch"),
        (["--methods", "dimm"], "unknown method 'dimm'"),
        (["--features", "nope.py:x"], "nope.py cannot be read: No such file"),
        (["--data", "nowhere"], "nowhere"),
    ):
        fails(2, match, *given, *flags)
        assert cells() == before
    assert "328 network calls" in ddim(*given, "--dry-run").out
    assert cells() == before
    assert ddim(*given, "--steps", 3, "--seeds", 0).status == 0
    assert sorted(path.name for path in Path("out/cells").iterdir()) == [
        "ddim_steps=3", "ddpm_variance=large_steps=3"
    ]  # fmt: skip


@pytest.fixture
def splits(tmp_path):
    """A folder of a train and a test split, images of 8 x 8."""
    folder = tmp_path / "splits"
    for split, count in (("train", 20), ("test", 14)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(100 * count + i).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{i}.png")
    return folder


def test_bits_per_dimension(ddim, arguments, splits, tiny):
    """The command's figures are those of the library, and an interruption costs one batch."""
    given = (*arguments, "--data", splits, "--bits", 5, "--batch-size", 2, "--output", "out")
    dry = ddim(*given, "--dry-run")
    # 328 calls of the sweep; of each of 5 images 20 for the bound, 19 * 3 + 20 * 2 for the path.
    assert f"bits of 5: {328 + 5 * (20 + 97):,} network calls" in dry.out
    answer = ddim(*given, "--json")
    assert answer.status == 0, answer
    found = json.loads(answer.out)["bits"]
    assert json.loads(Path("out/results.json").read_text())["bits"] == found
    model = load(str(tiny))
    test = load_data(str(splits), split="test", size=8, channels=1)
    x0 = from_pixels(test.batch(torch.from_numpy(np.random.default_rng(0).permutation(14)[:5])))
    every = make_nodes(model.schedule, "uniform", model.schedule.T)
    for name, values in (
        ("elbo", elbo(model.denoiser(), model.schedule, every, x0).total),
        ("ode", ode_bits(model.denoiser(), model.schedule, x0)),
    ):
        assert found[name]["mean"] == pytest.approx(values.mean(), rel=1e-4)
        assert found[name]["error"] == pytest.approx(values.std(ddof=1) / 5**0.5, rel=1e-3)
    kept = json.loads(Path("out/bits.json").read_text())
    cut = {**kept, "elbo": kept["elbo"][:2], "ode": kept["ode"][:2]}
    Path("out/bits.json").write_text(json.dumps(cut))
    again = ddim(*given)
    assert "bits per dimension: " in again.out
    assert json.loads(Path("out/bits.json").read_text()) == kept


def test_real_images_of_another_folder_with_the_same_name(ddim, fails, arguments, splits):
    """Neither the reference nor the bits of one are taken for the other's."""
    given = (*arguments, "--steps", 2, "--eta", 0, "--bits", 2, "--output", "out")
    assert ddim(*given, "--data", splits).status == 0
    other = shutil.copytree(splits, splits.parent / "elsewhere" / splits.name)
    assert ddim(*given, "--data", other).status == 0  # a copy is the same
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(other / "train" / "black.png")
    fails(2, "reference.safetensors holds other images that are", *given, "--data", other)
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(other / "test" / "black.png")
    fails(2, "bits.json is of another data", *given, "--data", other)
    assert ddim(*given, "--data", other, "--force").status == 0


def test_the_floor_and_the_bits_stand_in_every_table(ddim, arguments, splits):
    given = (*arguments, "--data", splits, "--bits", 2, "--output", "out")
    answer = ddim(*given)
    floor = json.loads(Path("out/results.json").read_text())["floor"]
    shown = f"{floor['fd']:.4g}"
    for name in ("results.md", "report.html"):
        text = Path("out", name).read_text(encoding="utf-8")
        assert "real test images" in text and shown in text
        assert "bits per dimension" in text
    last = Path("out/results.csv").read_text().splitlines()[-1]
    assert last.startswith("real test images,") and str(floor["fd"]) in last
    line = next(line for line in answer.out.splitlines() if line.startswith("real test images"))
    assert shown in line


def test_bits_of_another_model_are_refused_or_begun_anew(ddim, fails, arguments, splits):
    given = (*arguments, "--data", splits, "--bits", 2, "--output", "out")
    assert ddim(*given).status == 0
    kept = json.loads(Path("out/bits.json").read_text())
    Path("out/bits.json").write_text(json.dumps({**kept, "model": "another", "elbo": [0.0, 0.0]}))
    fails(2, "bits.json is of another model: give another --output", *given)
    assert ddim(*given, "--force").status == 0
    assert json.loads(Path("out/bits.json").read_text()) == kept


def test_bits_of_a_class_conditional_model_use_the_labels(conditional, tmp_path):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (9, 1, 8, 8), generator=g, dtype=torch.uint8)
    data = ArrayData("noise", pixels, torch.arange(9) % 3, 3)
    model = load(str(conditional))
    bits = BitsPerDimension(model, data, 4, tmp_path / "bits.json", batch_size=4)
    assert list(bits.run()) == [4]
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(9)[:4])
    every = make_nodes(model.schedule, "uniform", model.schedule.T)
    x0 = from_pixels(data.batch(chosen))
    right, wrong = (
        elbo(model.denoiser(Condition(labels)), model.schedule, every, x0).total.mean()
        for labels in (chosen % 3, (chosen + 1) % 3)
    )
    assert bits.figures()["elbo"].mean == pytest.approx(right, rel=1e-6)
    assert right != pytest.approx(wrong, rel=1e-6)


@pytest.mark.parametrize("other", ["pixels", "labels", "number", "precision"])
def test_bits_of_other_data_in_memory_are_refused(conditional, tmp_path, refuses, other):
    """No file stands for it, so that the images and labels themselves do."""
    model, labels = load(str(conditional)), torch.arange(9) % 3
    pixels = torch.zeros(9, 1, 8, 8, dtype=torch.uint8)
    path = tmp_path / "bits.json"
    made = BitsPerDimension(model, ArrayData("grey", pixels, labels, 3), 2, path, batch_size=2)
    assert list(made.run()) == [2]
    assert (
        BitsPerDimension(model, ArrayData("same", pixels, labels, 3), 2, path, batch_size=2).left
        == 0
    )
    if other == "pixels":
        pixels = pixels.index_fill(0, torch.tensor([7]), 1)
    if other == "labels":
        labels = (labels + 1) % 3
    if other == "number":
        pixels, labels = pixels[:8], labels[:8]
    if other == "precision":
        model = model.to(dtype=torch.bfloat16)
    with refuses(f"is of another {'dtype' if other == 'precision' else 'data'}: give another"):
        BitsPerDimension(model, ArrayData("other", pixels, labels, 3), 2, path, batch_size=2)


def test_an_existing_folder_is_left_alone(fails, arguments):
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    fails(2, "out exists already", *arguments, "--output", "out")
    assert Path("out/mine.txt").read_text() == "mine"


def test_an_interruption_before_the_first_cell_leaves_nothing_in_the_way(
    ddim, arguments, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ddim.evaluate.sweep.sweep.Sweep.begin", interrupted)
        assert ddim(*arguments, "--output", "out").status == 130
    assert [path.name for path in Path("out").iterdir()] == ["reference.safetensors"]
    assert ddim(*arguments, "--output", "out").status == 0


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--seeds", ","], "--seeds needs at least one number"),
        (["--steps", "2,x"], "--steps takes whole numbers, not 'x'"),
        (["--eta", "half"], "--eta takes numbers, not 'half'"),
        (["--seeds", "-1"], "--seeds must not be negative: -1|unrecognized|expected"),
        (["-n", 1], "-n must be at least 2, not 1"),
        (["--steps", 0], "number of steps must be at least 1, not 0"),
        (["--methods", "ddmi"], "unknown method 'ddmi'"),
        (["--methods", "calibrated"], "has no calibration"),
        (["--nodes", "calibrated"], "calibrated nodes come with their method"),
        (["--features", "nothing"], "--features is FILE.py:NAME or a folder, not 'nothing'"),
        (["--features", "mine:plain"], "--features is FILE.py:NAME or a folder, not 'mine:plain'"),
        (["--features", "no_such.py:x"], "no_such.py cannot be read: No such file"),
        (["--features", f"{FEATURES}:plian"], "did you mean 'plain'"),
        (["--features", f"{FEATURES}:number"], "is no Extractor"),
        (["--features", f"{FEATURES}:nothing"], "is no Extractor"),
        (["--features", f"{FEATURES}:wide"], r"features \(N, D\) of N images, not \(2, 1, 8, 8\)"),
        (["--features", f"{FEATURES}:broken"], f"{FEATURES}:broken: ValueError: broken"),
        (["--features", f"{FEATURES}:sqrt"], f"{FEATURES}:sqrt: TypeError|ValueError"),
        (["--methods", "ddim:eta=half"], "eta .*half"),
        (["--methods", "restart:strength=0.5"], "'restart' has no option 'strength': it has low"),
        (["--inception", "x.pt"], "two kinds of features: give one"),
        (["--data", "nowhere"], "nowhere"),
        (["--bits", 5], "has no test split, which --bits is measured on"),
        (["--bits", -1], "--bits must not be negative: -1|unrecognized|expected"),
    ],
)
def test_bad_input(fails, arguments, flags, match):
    fails(2, match, *arguments, "--output", "out", *flags)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("count", "match"), [(1, "bits of 1 images: .* has 2 to 14"), (15, "bits of 15 images")]
)
def test_bits_of_too_few_or_too_many(fails, arguments, splits, count, match):
    fails(2, match, *arguments, "--data", splits, "--bits", count, "--output", "out")


def test_bits_need_single_precision(fails, arguments):
    fails(2, "needs the network in float32", *arguments, "--bits", 4, "--dtype", "bfloat16")


def test_bits_need_real_images(fails, arguments, noise_data):
    assert "--data" in arguments
    without = [a for a in arguments if a not in ("--data", noise_data)]
    fails(2, "--bits is of real test images: give --data", *without, "--bits", 5)


def test_images_that_the_shipped_features_cannot_read(fails, tiny):
    fails(2, "the shipped classifier does not read", "evaluate", "--model", tiny, "--quiet")


def test_a_missing_inception_file(fails, tiny):
    fails(2, "there is no file x.pt: FID needs", "evaluate", "--model", tiny, "--inception", "x.pt")


def test_a_saved_reference(ddim, fails, arguments, noise_data):
    assert ddim(*arguments, "--output", "a", "--reference", "real.safetensors").status == 0
    without = [a for a in arguments if a not in ("--data", noise_data)]
    answer = ddim(*without, "--output", "b", "--reference", "real.safetensors", "--json")
    assert answer.status == 0, answer
    first = json.loads(Path("a/results.json").read_text())["rows"]
    second = json.loads(answer.out)["rows"]
    assert [row["mine-FD"] for row in first] == [row["mine-FD"] for row in second]
    fails(2, "need --data or --reference", *without, "--output", "c")


def test_the_real_images_of_a_sweep_stay(ddim, fails, arguments, noise_data, splits):
    """Its figures are distances to them."""
    assert ddim(*arguments, "--output", "a", "--reference", "noise.safetensors").status == 0
    before = Path("a/results.json").read_bytes()
    without = [a for a in arguments if a not in ("--data", noise_data)]
    other = (*without, "--data", splits, "--output", "b", "--reference", "other.safetensors")
    assert ddim(*other).status == 0
    changed = (*without, "--output", "a", "--reference", "other.safetensors")
    fails(2, "sweep.json was begun with reference = noise train, not splits train", *changed)
    assert Path("a/results.json").read_bytes() == before


def test_the_shipped_model_and_features(ddim):
    answer = ddim(
        "evaluate", "--steps", 1, "-n", 4, "--teacher", 0, "--batch-size", 4, "--quiet", "--json",
        "--output", "out",
    )  # fmt: skip
    document = json.loads(answer.out)
    assert document["distance"] == "LeNet-FD"
    assert "rank 3 at most" in " ".join(document["notes"])
    assert document["rows"][0]["chi2"] != ""


def test_the_classifier_of_a_folder(ddim, tmp_path):
    folder = shutil.copytree(LENET_FOLDER, tmp_path / "classifier")
    flags = (
        "evaluate",
        "--steps",
        1,
        "-n",
        4,
        "--teacher",
        0,
        "--batch-size",
        4,
        "--quiet",
        "--json",
    )
    shipped = ddim(*flags, "--output", "shipped")
    found = ddim(*flags, "--output", "found", "--features", folder)
    distances = [json.loads(answer.out)["rows"][0]["LeNet-FD"] for answer in (shipped, found)]
    assert distances[0] == distances[1] > 0


def test_extractors_are_what_the_docs_say():
    made = Extractor(Identity("x", "y", 1), lambda images: (images.mean((1, 2, 3))[:, None], None))
    assert made(torch.zeros(2, 1, 4, 4))[0].shape == (2, 1)
