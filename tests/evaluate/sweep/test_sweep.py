"""A sweep: what is measured is what sampling draws, however often it was killed."""

import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

import ddim
from ddim.base.errors import RunError
from ddim.checkpoints.calibration import write_calibration
from ddim.denoisers.clipping import Clipping
from ddim.evaluate.deviation.teacher import teacher_tableau
from ddim.evaluate.distances.comparison import compare
from ddim.evaluate.features.collection import collect
from ddim.evaluate.features.extractor import Extractor, Identity
from ddim.evaluate.sweep import report as reports
from ddim.evaluate.sweep.plan import eta_of, folder_name, left_out, name_of, plan_samplers
from ddim.evaluate.sweep.sweep import Sweep
from ddim.samplers.sampler import Sampler


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)
        self.calls = 0

    def forward(self, x, t):
        self.calls += len(x)
        return torch.tanh(self.conv(x) + t.view(-1, 1, 1, 1) / 10)


def means(images):
    return torch.nn.functional.avg_pool2d(images, 4).flatten(1), None


EXTRACTOR = Extractor(Identity("means", "means of 4 x 4 blocks", 4), means)
N = 24


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    return ddim.Model(
        Network().requires_grad_(False),
        ddim.Schedule.cosine(12),
        ddim.Target.EPS,
        (1, 8, 8),
        name="small",
        calibration=tmp_path / "calibrated.json",
    )


@pytest.fixture
def reference():
    images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return collect(EXTRACTOR, [(range(80), images)], "real")


def sweep(model, folder, reference, samplers, **options):
    given = {"n": N, "seeds": (0, 1), "batch_size": 4, **options}
    made = Sweep(model, samplers, folder, EXTRACTOR, reference, **given)
    made.begin()
    return made


def plan(model, steps=(), etas=(), methods=("ddim",), nodes=()):
    return plan_samplers(model, methods, steps, nodes, etas)


def finished(made):
    for _ in made.run():
        pass
    return made.results()


def test_a_sampler_is_measured_on_what_sampling_draws(model, reference, tmp_path):
    samplers = plan(model, [3, 6], [0.0, "sigma-hat"], ["ddim", "dpmpp:order=3"], ["uniform"])
    assert [(name_of(s), eta_of(s), s.steps) for s in samplers] == [
        ("ddim", 0.0, 3), ("ddim", 0.0, 6), ("ddim", "sigma-hat", 3), ("ddim", "sigma-hat", 6),
        ("dpmpp:order=3", None, 3), ("dpmpp:order=3", None, 6),
    ]  # fmt: skip
    results = finished(sweep(model, tmp_path / "s", reference, samplers, teacher=6))
    assert [r.sampler for r in results] == samplers
    for result in results:
        for seed, one in zip((0, 1), result.seeds, strict=True):
            drawn = ddim.generate(
                model, model.tableau(result.sampler), range(N), seed=seed, batch_size=4
            )
            images = torch.cat([d.images for d in drawn if d.images is not None])
            own = collect(EXTRACTOR, [(range(N), images.clamp(-1, 1))], "own")
            assert one.fd == pytest.approx(compare(own, reference).fd, rel=1e-9)
            assert one.kid == pytest.approx(compare(own, reference).kid, rel=1e-9)
        fds = [one.fd for one in result.seeds]
        assert result.fd == pytest.approx(np.mean(fds))
        assert result.summary.figures["fd"].sd == pytest.approx(np.std(fds, ddof=1))
    # The teacher's errors are those of the first images, of deterministic samplers alone.
    assert [r.rms is None for r in results] == [eta_of(s) == "sigma-hat" for s in samplers]
    drawn = ddim.generate(model, teacher_tableau(model.schedule), range(6), batch_size=4)
    exact = torch.cat([d.images for d in drawn if d.images is not None])
    first = ddim.generate(model, model.tableau(samplers[0]), range(6), batch_size=4)
    first = torch.cat([d.images for d in first if d.images is not None])
    assert results[0].rms == pytest.approx((first - exact).square().mean().sqrt().item(), rel=1e-6)


@pytest.mark.parametrize("after", [1, 3, 7, 13])
def test_a_sweep_that_was_killed_goes_on_to_the_same_figures(
    model, reference, tmp_path, monkeypatch, after
):
    monkeypatch.setattr("ddim.evaluate.sweep.sweep.SAVE_SECONDS", 0.0)
    samplers = plan(model, [2, 5])
    whole = finished(sweep(model, tmp_path / "whole", reference, samplers, teacher=3))
    killed = sweep(model, tmp_path / "killed", reference, samplers, teacher=3)
    total = killed.work()
    done = 0
    for n, (_, calls) in enumerate(killed.run(), start=1):
        done += calls
        if n == after:
            break
    again = sweep(model, tmp_path / "killed", reference, samplers, teacher=3)
    assert 0 < again.work() <= total - done + 4 * 12  # what was under way when it was killed
    model.net.calls = 0
    results = finished(again)
    assert model.net.calls <= total + 12  # the teacher's last batch_size is padded
    for one, other in zip(whole, results, strict=True):
        assert one.seeds == other.seeds
        assert one.rms == other.rms
        assert torch.equal(one.strip, other.strip)
    assert sweep(model, tmp_path / "killed", reference, samplers, teacher=3).work() == 0


def test_a_larger_teacher_looks_at_images_that_were_not_kept(model, reference, tmp_path):
    samplers = plan(model, [2], [0.0, 1.0])
    finished(sweep(model, tmp_path / "s", reference, samplers))
    more = sweep(model, tmp_path / "s", reference, samplers, teacher=17)
    model.net.calls = 0
    results = finished(more)
    # Twelve first images were kept, in whole batches; the other five are drawn again.
    assert model.net.calls == 20 * 12 + 2 * 8
    fresh = finished(sweep(model, tmp_path / "t", reference, samplers, teacher=17))
    assert [r.rms for r in results] == [r.rms for r in fresh]
    assert results[0].rms > 0 and results[1].rms is None
    files = tmp_path / "s" / "cells" / folder_name(samplers[0]) / "first-0.safetensors"
    files.unlink()
    assert finished(sweep(model, tmp_path / "s", reference, samplers, teacher=17))[0].rms == (
        fresh[0].rms
    )


def test_the_teacher_has_the_seed_of_the_images(model, reference, tmp_path):
    samplers = plan(model, [2])
    for seed in (0, 1):
        finished(sweep(model, tmp_path / "s", reference, samplers, teacher=4, seeds=[seed]))
        fresh = sweep(model, tmp_path / f"t{seed}", reference, samplers, teacher=4, seeds=[seed])
        again = sweep(model, tmp_path / "s", reference, samplers, teacher=4, seeds=[seed])
        assert again.results()[0].rms == finished(fresh)[0].rms
    both = sweep(model, tmp_path / "s", reference, samplers, teacher=4, seeds=[1, 0])
    assert both.work() == 0
    assert both.results()[0].rms == again.results()[0].rms


def test_damaged_files(model, reference, tmp_path, refuses):
    samplers = plan(model, [2])
    made = sweep(model, tmp_path / "s", reference, samplers, teacher=4)
    finished(made)
    for name in ("teacher-0-4", f"cells/{folder_name(samplers[0])}/first-0"):
        path = tmp_path / "s" / f"{name}.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with refuses(f"{path} cannot be read, remove it"):
            made.results()
        path.write_bytes(whole)


def test_a_reference_without_spread_is_refused_before_the_work(model, tmp_path, refuses):
    images = torch.zeros(8, 1, 8, 8)
    same = collect(EXTRACTOR, [(range(8), images)], "one image")
    with refuses("the same features for every one of the 8 images"):
        sweep(model, tmp_path / "s", same, plan(model, [2]))
    assert not (tmp_path / "s").exists()


def test_what_is_left_is_known_without_reading_features(
    model, reference, tmp_path, monkeypatch, refuses
):
    samplers = plan(model, [2])
    finished(sweep(model, tmp_path / "s", reference, samplers))
    monkeypatch.setattr("ddim.evaluate.sweep.kept.Statistics.load", None)
    assert sweep(model, tmp_path / "s", reference, samplers, seeds=[0, 1, 2]).work() == 2 * N
    path = tmp_path / "s" / "cells" / folder_name(samplers[0]) / "seed-1.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with refuses(f"{path} cannot be read as statistics of images"):
        sweep(model, tmp_path / "s", reference, samplers).work()


def test_figures_are_computed_once(model, reference, tmp_path, monkeypatch):
    made = sweep(model, tmp_path / "s", reference, plan(model, [2, 3]))
    first = finished(made)
    monkeypatch.setattr("ddim.evaluate.sweep.sweep.compare", None)
    assert [r.seeds for r in made.results()] == [r.seeds for r in first]


def test_samplers_can_be_added_and_nothing_else_changed(model, reference, tmp_path, refuses):
    folder = tmp_path / "s"
    finished(sweep(model, folder, reference, plan(model, [2])))
    more = sweep(model, folder, reference, plan(model, [2, 3]))
    assert more.work() == 2 * N * 3
    few = sweep(model, folder, reference, plan(model, [2], methods=["dpmpp:order=3"]))
    # In two steps the order 3 is the order 2, which is the default.
    assert [name_of(r.sampler) for r in finished(few)] == ["ddim", "dpmpp"]
    assert len(sweep(model, folder, reference, plan(model, [2])).results()) == 2
    for options, match in (
        ({"n": 30}, "begun with n = 24, not 30"),
        ({"batch_size": 5}, "begun with batch_size = 4, not 5"),
    ):
        with refuses(match):
            sweep(model, folder, reference, plan(model, [2]), **options)
    torch.manual_seed(1)
    other = model.replace(net=Network().requires_grad_(False))
    with refuses("begun with identity"):
        sweep(other, folder, reference, plan(other, [2]))


def test_plans(model, refuses):
    assert plan(model, [5, 50, 12]) == [Sampler("ddim", steps=5), Sampler("ddim", steps=12)]
    assert plan(model) == [Sampler("ddim", steps=12)]
    listed = plan(model, [5], nodes=["12-3-0", "quadratic"])
    assert listed == [Sampler(nodes=(12, 3, 0)), Sampler(steps=5, nodes="quadratic")]
    with refuses("families or lists, each list like 500-250-0, not '12'"):
        plan(model, [5], nodes=["12", "3", "0"])
    with refuses("unknown method 'ddmi'"):
        plan(model, [5], methods=["ddmi"])
    with refuses("unknown nodes 'quadratc'"):
        plan(model, [5], nodes=["quadratc"])
    # What a method says itself stands for it alone.
    said = plan(model, [5], [0.0, 1.0], ["ddim:eta=0.5", "ddim:steps=3", "dpmpp:nodes=log-snr"])
    assert list(map(str, said)) == [
        "ddim:eta=0.5:steps=5", "ddim:steps=3", "ddim:eta=1.0:steps=3",
        "dpmpp:steps=5:nodes=log-snr",
    ]  # fmt: skip
    with refuses("'dpmpp' has no option 'gamma': it has order, form"):
        plan(model, [5], methods=["dpmpp:gamma=1"])
    with refuses("KEY=VALUE, not 'order'"):
        plan(model, [5], methods=["dpmpp:order"])
    with refuses("no sampler to run"):
        plan(model, [5], methods=[])
    with refuses("calibrated nodes come with their method"):
        plan(model, [5], nodes=["calibrated"])


def calibrated(model, nodes, method):
    write_calibration(
        model.calibration,
        model.identity,
        model.schedule,
        Sampler(method, nodes=nodes),
        ((12, 0), np.array([0.5]), 1),
        {},
    )


def test_plans_of_what_needs_a_calibration(model, refuses):
    with refuses("has no calibration"):
        plan(model, [5], methods=["calibrated"])
    calibrated(model, (12, 6, 3, 0), "dpmpp")
    samplers = plan(model, [3, 5], methods=["calibrated"])
    assert samplers == [Sampler("calibrated", steps=3)] == plan(model, methods=["calibrated"])
    assert model.tableau(samplers[0]).method == "calibrated dpmpp"
    note = ["The model is not calibrated for 5 steps."]
    assert left_out(samplers, ["ddim", "calibrated"], [3, 5]) == note
    assert left_out(samplers, ["calibrated"], [3]) == []
    assert left_out(samplers, ["ddim", "calibrated:steps=3"], [3, 5]) == []
    with refuses("calibrated for 3 steps, not 4, 5"):
        plan(model, [4, 5], methods=["calibrated"])
    # The optimal variance has η, which is 1 unless a number above 0 is given.
    samplers = plan(model, [3], [0.0, 0.5, 1.0, "sigma-hat"], ["analytic"])
    assert [eta_of(sampler) for sampler in samplers] == [0.5, 1.0]
    half, whole = map(model.tableau, samplers)
    assert 0 < half.rows[0].noise < whole.rows[0].noise
    (default,) = plan(model, [3], [0.0], ["analytic"])
    assert default == samplers[1] and model.tableau(default).rows == whole.rows


def test_folders_of_long_lists_have_short_names():
    listed = [Sampler(nodes=range(200, -1, -1)), Sampler(nodes=[*range(200, 1, -1), 0])]
    first, second = map(folder_name, listed)
    assert first != second and len(first) == len(second) < 130
    assert folder_name(Sampler("dpmpp", steps=5, order=3)) == "dpmpp_order=3_steps=5"


def test_a_new_calibration_is_measured_anew(model, reference, tmp_path):
    def measured(nodes, method):
        calibrated(model, nodes, method)
        planned = plan(model, [3], methods=["calibrated"])
        made = sweep(model, tmp_path / "sweep", reference, planned)
        left = made.work()
        return left, finished(made)[0].fd

    first = measured((12, 6, 3, 0), "ddim")
    second = measured((12, 9, 2, 0), "ddim")
    third = measured((12, 9, 2, 0), "dpmpp")
    assert first[0] == second[0] == third[0] == 2 * N * 3
    assert len({first[1], second[1], third[1]}) == 3
    assert measured((12, 6, 3, 0), "ddim") == (0, first[1])


def test_bad_numbers(model, reference, tmp_path, refuses):
    samplers = plan(model, [2])
    for options, match in (
        ({"n": 1}, "at least 2 images, not 1"),
        ({"seeds": ()}, "seeds must be different"),
        ({"seeds": (1, 1)}, "seeds must be different"),
        ({"teacher": -1}, "not be fewer than 0"),
    ):
        with refuses(match):
            sweep(model, tmp_path / "s", reference, samplers, **options)
    other = dataclasses.replace(EXTRACTOR, identity=Identity("others", "otherwise", 4))
    with refuses("the reference was not measured as the samples will be"):
        Sweep(model, samplers, tmp_path / "s", other, reference, n=4)


def test_images_that_are_not_finite_stop_it(model, reference, tmp_path):
    model.net.conv.bias.data.fill_(float("nan"))
    with pytest.raises(RunError, match="draws of seed 0 is not finite, image 0 from step 1 of"):
        finished(sweep(model, tmp_path / "s", reference, plan(model, [2])))


@pytest.fixture
def results(model, reference, tmp_path):
    samplers = plan(model, [2, 6], [0.0, 1.0, "sigma-hat"], ["ddim", "heun"])
    return finished(sweep(model, tmp_path / "s", reference, samplers, teacher=2))


def test_the_front_is_what_nothing_beats(results):
    front = reports.pareto(results)
    for one in results:
        beaten = [
            o
            for o in results
            if (o.calls <= one.calls and o.fd < one.fd) or (o.calls < one.calls and o.fd <= one.fd)
        ]
        assert (one.sampler in front) == (not beaten)
    assert min(results, key=lambda r: r.fd).sampler in front
    by_time = reports.pareto(results, lambda r: r.seconds)
    assert min(results, key=lambda r: r.seconds).sampler in by_time
    turned = reports.pareto(results, lambda r: -r.calls)
    assert max(results, key=lambda r: (r.calls, -r.fd)).sampler in turned


def test_tables(results):
    one = reports.table_one(results)
    assert [row["eta"] for row in one] == ["0", "1", "σ̂"]
    assert list(one[0]) == ["nodes", "eta", "S=2", "S=6"]
    assert one[1]["S=6"] == str(results[3].summary.figures["fd"])
    rows = reports.rows(results)
    assert [row["calls"] for row in rows if row["method"] == "heun"] == [
        r.calls for r in results if r.sampler.method == "heun"
    ]
    lines = reports.csv_text(results).splitlines()
    assert len(lines) == len(results) + 1
    assert lines[0].split(",")[:5] == ["method", "nodes", "eta", "steps", "calls"]
    text = reports.markdown(reports.compact(results))
    assert text.count("\n") == len(results) + 2 and "means-FD" in text
    assert "chi2" not in text  # no classes: the column is left out
    json.dumps(rows)


def test_the_page_needs_nothing_but_itself(results):
    page = reports.html_report("Title <&>", {"command": "ddim <x>"}, results, b"png", ["a note"])
    assert "Title &lt;&amp;&gt;" in page and "ddim &lt;x&gt;" in page
    assert "http" not in page.replace("http-equiv", "") and page.count("<script>") == 1
    assert not re.search(r"(src|href)=(?!\"data:)|url\(|@import|fetch\(|import\(", page)
    assert page.count("data:image/png;base64,") == len(results) + 1
    assert len(re.findall("<tr[ >]", page)) >= 1 + 3 + len(results)


def test_the_page_escapes_what_it_is_given(results):
    """A model may be called anything, and so may a folder of data."""
    evil = "<script>alert('&\"')</script>"
    page = reports.html_report(evil, {evil: evil}, results, None, [evil])
    assert page.count("<script") == 1
    assert page.count("&lt;script&gt;alert(&#39;&amp;&#34;&#39;)&lt;/script&gt;") == 5


def test_the_columns_of_the_page_are_explained_and_can_be_sorted(results):
    page = reports.html_report("Title", {}, results, None, [])
    columns = list(reports.compact(results)[0])
    for column in columns:
        assert re.search(rf'<button title="[^"]+">{re.escape(column)}</button>', page), column
        assert f"<dt>{column}</dt>" in page
    assert page.count('<th scope="col"><button') == len(columns) + len(
        reports.table_one(results)[0]
    )


PAGE = """
class Cell { constructor(text) { this.textContent = text } }
class Row {
  constructor(texts, last) {
    this.cells = texts.map((t) => new Cell(t));
    this.classList = { contains: (name) => last && name === "last" };
  }
}
const body = { rows: ROWS.map(([last, ...texts]) => new Row(texts, last)) };
body.append = (...rows) => { body.rows = rows };
const headings = [0, 1].map((cellIndex) => {
  const heading = { cellIndex, sorted: null };
  heading.getAttribute = () => heading.sorted;
  heading.setAttribute = (_, value) => { heading.sorted = value };
  heading.removeAttribute = () => { heading.sorted = null };
  heading.closest = () => table;
  heading.querySelector = () => ({ addEventListener: (_, act) => { heading.click = act } });
  return heading;
});
const table = { tBodies: [body], querySelectorAll: () => headings };
const document = { querySelectorAll: () => headings };
const said = () => body.rows.map((r) => r.cells[0].textContent).join(" ")
  + " " + headings.map((h) => h.sorted);
"""
"""As much of a page as its script needs."""


def test_the_script_of_the_page_sorts(results):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    page = reports.html_report("Title", {}, results, None, [])
    script = page.partition('"use strict";')[2].partition("</script>")[0]
    rows = [["b", "10 ± 2"], ["a", "9 ± 1"], ["empty", ""], ["c", "-0.5"]]
    cells = json.dumps([[False, *row] for row in rows] + [[True, "floor", "1"]])
    clicks = "".join(f"headings[{i}].click(); console.log(said());" for i in (1, 1, 0))
    done = subprocess.run(
        ["node", "-e", f"const ROWS = {cells};{PAGE}{script}{clicks}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "c a b empty floor ,ascending",
        "b a c empty floor ,descending",
        "a b c empty floor ascending,",
    ]


def test_other_clipping_is_another_sweep(model, reference, tmp_path, refuses):
    """It changes every image, and no weight."""
    samplers = plan(model, [3])
    finished(sweep(model, tmp_path / "out", reference, samplers))
    clipped = model.replace(clipping=Clipping("clip", 1.0))
    assert clipped.identity == model.identity
    with refuses("sweep.json was begun with clipping"):
        sweep(clipped, tmp_path / "out", reference, samplers)


def test_a_folder_runs_no_code_that_it_names(model, reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("raise SystemExit('run')")
    finished(sweep(model, tmp_path / "s", reference, plan(model, [2])))
    (cell,) = (tmp_path / "s" / "cells").iterdir()
    cell.rename(cell.with_name("other"))
    (cell.with_name("other") / "cell.json").write_text('{"sampler": "own.py:name:steps=2"}')
    assert len(finished(sweep(model, tmp_path / "s", reference, plan(model, [3])))) == 1
