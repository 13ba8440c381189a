import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ddim.checkpoints.tensors import read_safetensors, write_safetensors
from ddim.data.base import ArrayData
from ddim.evaluate.distances.comparison import Spread, compare, summarise
from ddim.evaluate.distances.frechet import frechet_distance
from ddim.evaluate.distances.metrics import kid, precision_recall
from ddim.evaluate.features.collection import collect, collect_data, shipped_statistics
from ddim.evaluate.features.extractor import (
    INCEPTION_PREPROCESSING,
    INCEPTION_SHA256,
    Extractor,
    Identity,
    lenet_extractor,
)
from ddim.evaluate.features.statistics import Statistics

WIDTH = 3
OWN = Identity("own", "none", WIDTH, 4, "ab" * 32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def fill(x, indices=None, *, data="samples", keep=50, batch=7, identity=OWN, shape=(1, 2, 2)):
    """Statistics of given features, whose classes follow from their signs."""
    made = Statistics(identity, data, keep=keep)
    indices = range(len(x)) if indices is None else indices
    probabilities = np.zeros((len(x), identity.classes))
    if identity.classes:
        probabilities[np.arange(len(x)), (x[:, 0] > 0) + 2 * (x[:, 1] > 0)] = 1
    for i in range(0, len(x), batch):
        part = slice(i, i + batch)
        given = probabilities[part] if identity.classes else None
        made.add(x[part].astype(np.float32), given, [*indices][part], shape)
    return made


def same(one, other):
    assert one.count == other.count
    np.testing.assert_allclose(one.moments.mean, other.moments.mean, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(one.moments.cov, other.moments.cov, rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(one.class_counts, other.class_counts)
    np.testing.assert_array_equal(one.features(), other.features())


class TestStreaming:
    def test_order_batches_and_parts_do_not_matter(self, rng):
        x = rng.standard_normal((200, WIDTH))
        whole = fill(x, batch=200)
        assert whole.kept == 50
        same(whole, fill(x, batch=1))
        order = rng.permutation(200)
        same(whole, fill(x[order], order))
        first, second = fill(x[:80]), fill(x[80:], range(80, 200))
        second.merge(first)
        same(whole, second)

    def test_what_is_kept_is_a_random_choice(self, rng):
        kept = fill(np.arange(3000.0)[:, None] * np.ones(WIDTH), keep=500).features()[:, 0]
        assert len(set(kept)) == 500
        assert kept.mean() == pytest.approx(1500, abs=4 * 866 / 500**0.5)
        # A part of the choice is one too: its order is by hash.
        assert kept[:50].mean() == pytest.approx(1500, abs=4 * 866 / 50**0.5)

    def test_all_is_kept_where_there_is_room(self, rng):
        x = rng.standard_normal((20, WIDTH)).astype(np.float32)
        assert sorted(fill(x).features().tolist()) == sorted(x.tolist())

    def test_memory_is_flat(self, rng):
        def size(n):
            made = fill(rng.standard_normal((n, WIDTH)), batch=100)
            return made._features.nbytes + made._indices.nbytes + made.moments.scatter.nbytes

        assert size(200) == size(2000)

    def test_large_indices_are_told_apart(self, rng):
        made = fill(rng.standard_normal((2, WIDTH)), [2**64 - 1, 2**64 - 2])
        assert made.count == 2

    def test_refuses_an_image_that_came_before(self, rng, refuses):
        x = rng.standard_normal((20, WIDTH))
        with refuses("image 3 was added twice"):
            fill(x, [*range(19), 3])
        with refuses("added twice"):
            fill(x).merge(fill(x))

    def test_refuses_mixed_sizes(self, rng, refuses):
        made = fill(rng.standard_normal((20, WIDTH)))
        with refuses(r"\(1, 2, 2\) and of \(3, 4, 4\) in one set"):
            made.add(np.zeros((1, WIDTH), np.float32), np.ones((1, 4)), [99], (3, 4, 4))

    def test_refuses_what_does_not_belong_together(self, rng, refuses):
        x = rng.standard_normal((20, WIDTH))
        with refuses("not parts of one set"):
            fill(x).merge(fill(x, range(20, 40), data="others"))
        with refuses("weights"):
            fill(x).merge(fill(x, identity=Identity("own", "none", WIDTH, 4, "cd" * 32)))
        with refuses("20 rows of features but 3"):
            Statistics(OWN, "samples").add(x.astype(np.float32), None, [1, 2, 3], (1, 2, 2))
        with refuses("not of 21"):
            fill(x).features(21)
        with refuses("keep"):
            Statistics(OWN, "samples", keep=-1)


class TestFiles:
    def test_come_back_as_they_were(self, rng, tmp_path):
        x = rng.standard_normal((200, WIDTH))
        one = fill(x)
        one.save(tmp_path / "real.safetensors")
        other = Statistics.load(tmp_path / "real.safetensors")
        same(one, other)
        assert (other.identity, other.data, other.keep, other.shape) == (
            OWN, "samples", 50, (1, 2, 2)
        )  # fmt: skip
        # Going on from the file gives the same bytes as not stopping.
        more = rng.standard_normal((30, WIDTH)).astype(np.float32)
        for made in (one, other):
            made.add(more, np.ones((30, 4)), range(200, 230), (1, 2, 2))
        np.testing.assert_array_equal(one.moments.scatter, other.moments.scatter)
        np.testing.assert_array_equal(one.features(), other.features())

    def test_of_nothing_yet(self, tmp_path):
        Statistics(OWN, "samples").save(tmp_path / "none.safetensors")
        assert Statistics.load(tmp_path / "none.safetensors").count == 0

    def test_stale_ones_are_refused(self, rng, tmp_path, refuses):
        path = tmp_path / "real.safetensors"
        fill(rng.standard_normal((20, WIDTH))).save(path)
        for other, message in (
            (Identity("own", "none", WIDTH, 4, "cd" * 32), "is stale, weights 'abab"),
            (Identity("own", "8-bit", WIDTH, 4, "ab" * 32), "is stale, preprocessing 'none'"),
        ):
            with refuses(message):
                Statistics.load(path, like=Extractor(other, lambda x: (x, None)))

    def test_others_are_refused(self, tmp_path, refuses):
        with refuses("there is no file"):
            Statistics.load(tmp_path / "gone.safetensors")
        (tmp_path / "text.safetensors").write_text("nothing of the kind")
        with refuses("is not a safetensors file"):
            Statistics.load(tmp_path / "text.safetensors")
        save_file({"mean": np.zeros(3)}, tmp_path / "weights.safetensors")
        with refuses("holds no statistics"):
            Statistics.load(tmp_path / "weights.safetensors")
        facts = '{"count": 1, "data": "x", "keep": 3, "shape": null, "name": "own"}'
        metadata = {"format": "ddim statistics 1", "statistics": facts}
        save_file({"mean": np.zeros(3)}, tmp_path / "part.safetensors", metadata)
        with refuses("cannot be read as statistics"):
            Statistics.load(tmp_path / "part.safetensors")


class TestComparing:
    def test_gives_the_figures_of_the_features(self, rng):
        x, y = rng.standard_normal((40, WIDTH)), rng.standard_normal((50, WIDTH)) + 0.3
        found = compare(fill(x), fill(y, data="real"))
        x, y = x.astype(np.float32), y.astype(np.float32)
        gaussians = [v for z in (x, y) for v in (z.mean(axis=0), np.cov(z.T))]
        assert found.fd == pytest.approx(frechet_distance(*gaussians), rel=1e-5)
        assert (found.distance, found.count, found.reference_count) == ("own-FD", 40, 50)
        assert found.kept == 40
        chosen = fill(y).features(40)
        assert found.kid == pytest.approx(kid(x, chosen), rel=1e-6)
        assert (found.precision, found.recall) == tuple(precision_recall(chosen, x))
        assert found.chi2_dof == 3
        assert found.notes == ()

    def test_says_what_is_singular(self, rng):
        found = compare(
            fill(rng.standard_normal((3, WIDTH))), fill(rng.standard_normal((9, WIDTH)))
        )
        assert "3 images in 3 dimensions is singular (rank 2 at most)" in found.notes[0]
        assert "nothing was added" in found.notes[0]
        assert "features of 4 images: 3 kept" in found.notes[1]
        assert (found.kid, found.precision) == (None, None)

    def test_says_what_is_constant(self, rng):
        x, y = rng.standard_normal((2, 40, WIDTH))
        x[:, 1] = 0.5
        assert "1 of 3 features are the same" in compare(fill(x), fill(y)).notes[0]
        collapsed = compare(fill(np.ones((40, WIDTH))), fill(y))
        assert collapsed.fd == pytest.approx(
            ((1 - fill(y).moments.mean) ** 2).sum() + fill(y).moments.cov.trace()
        )

    def test_refuses_what_cannot_be_compared(self, rng, refuses):
        x = rng.standard_normal((40, WIDTH))
        with refuses("not measured alike, weights"):
            compare(fill(x), fill(x, identity=Identity("own", "none", WIDTH, 4, "cd" * 32)))
        with refuses("not measured alike, image shape"):
            compare(fill(x), fill(x, shape=(1, 4, 4)))
        with refuses("the same features for every one"):
            compare(fill(x), fill(np.ones((40, WIDTH))))
        with refuses("at least 2 images, not 1"):
            compare(fill(x[:1]), fill(x))

    def test_seeds_are_put_together_beside_the_floor(self, rng):
        real = fill(rng.standard_normal((300, WIDTH)), data="train")
        seeds = [compare(fill(rng.standard_normal((40, WIDTH))), real) for _ in range(3)]
        floor = compare(fill(rng.standard_normal((40, WIDTH)), data="test"), real)
        summary = summarise(seeds, floor)
        values = [one.fd for one in seeds]
        assert summary.figures["fd"].mean == pytest.approx(np.mean(values))
        assert summary.figures["fd"].sd == pytest.approx(np.std(values, ddof=1))
        assert (summary.seeds, summary.count, summary.floor) == (3, 40, floor)
        assert " ± " in str(summary.figures["kid"])
        assert summarise(seeds[:1]).figures["fd"].sd is None
        assert str(summarise(seeds[:1]).figures["fd"]) == f"{values[0]:.4g}"

    def test_unequal_numbers_are_refused(self, rng, refuses):
        real = fill(rng.standard_normal((300, WIDTH)), data="train")
        one, other = (compare(fill(rng.standard_normal((n, WIDTH))), real) for n in (30, 40))
        with refuses("count of images 30, 40 were given; measure equally many"):
            summarise([one, other])
        with refuses("count of images 30, 40"):
            summarise([one], floor=other)
        with refuses("at least one"):
            summarise([])


class TestCollecting:
    def test_digits_are_near_the_shipped_statistics(self, digits):
        images = digits[0][::10]
        batches = ((range(i, i + 500), images[i : i + 500]) for i in range(0, 1000, 500))
        found = collect(lenet_extractor(), batches, "mnist test", keep=400)
        assert (found.count, found.kept) == (1000, 400)
        train, test = shipped_statistics("train"), shipped_statistics("test")
        assert (train.count, train.class_counts.sum()) == (60_000, 60_000)
        floor = compare(found, train)
        assert 0.06 < floor.fd < 0.6
        assert floor.distance == "LeNet-FD"
        assert floor.kid is None  # no features ship
        assert compare(test, train).fd == pytest.approx(0.06, abs=0.01)
        assert floor.chi2 < 30

    def test_a_data_set_is_read_in_parts(self):
        pixels = torch.arange(9 * 4, dtype=torch.uint8).view(9, 1, 2, 2)
        data = ArrayData("grey", pixels, None, None)
        means = Extractor(Identity("means", "none", 1), lambda x: (x.mean(dim=(2, 3)), None))
        seen = []
        whole = collect_data(means, data, batch=4, watch=seen.append)
        assert (whole.count, whole.shape, whole.data, seen) == (9, (1, 2, 2), "grey", [4, 4, 1])
        part = collect_data(means, data, [0, 8], data="two")
        assert part.moments.mean * 127.5 + 127.5 == pytest.approx(17.5, abs=1e-4)
        assert part.data == "two"

    def test_refuses(self, refuses):
        with refuses("'train' and 'test', not of 'val'"):
            shipped_statistics("val")
        data = ArrayData("grey", torch.zeros(1, 1, 2, 2, dtype=torch.uint8), None, None)
        with refuses("batch"):
            collect_data(lenet_extractor(), data, batch=0)


@pytest.mark.parametrize(
    ("spread", "text"),
    [
        (Spread(3847.2, 162.4), "3847 ± 160"),
        (Spread(0.704249, 0.0231), "0.7042 ± 0.023"),
        (Spread(0.5, None), "0.5"),
        (Spread(123456.0, None), "123500"),
    ],
)
def test_spreads_are_written_without_exponents(spread, text):
    assert str(spread) == text


INCEPTION = Extractor(
    Identity("Inception", INCEPTION_PREPROCESSING, 5, sha256=INCEPTION_SHA256), lambda x: (x, None)
)


class TestPublished:
    """The mean and covariance that FID programs publish."""

    def test_they_are_a_reference_for_the_published_inception(self, tmp_path, rng):
        x = rng.standard_normal((40, 5)) + 1
        np.savez(
            tmp_path / "fid.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False), extra=np.ones(3)
        )
        reference = Statistics.load(tmp_path / "fid.npz", INCEPTION)
        y = rng.standard_normal((30, 5))
        samples = fill(y, identity=INCEPTION.identity, shape=(3, 8, 8))
        found = compare(samples, reference)
        assert (found.distance, found.kid, found.precision, found.chi2) == ("FID", None, None, None)
        np.testing.assert_allclose(
            found.fd,
            frechet_distance(
                y.mean(0), np.cov(y, rowvar=False), x.mean(0), np.cov(x, rowvar=False)
            ),
            rtol=1e-4,
        )
        assert reference.about == "fid.npz, as published, a number of images that is not said"

    def test_others_are_refused_with_the_reason(self, tmp_path, refuses):
        path = tmp_path / "fid.npz"
        np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
        with refuses(
            "fid.npz holds mu and sigma of 2048 features, .*cannot be compared with LeNet of 64"
        ):
            Statistics.load(path, lenet_extractor())
        with refuses("fid.npz has 2048 features, where Inception has 5"):
            Statistics.load(path, INCEPTION)
        for arrays, match in (
            ({"arr_0": np.zeros(3)}, "has no arrays mu and sigma.*: it has arr_0"),
            ({"mu": np.zeros(5), "sigma": np.eye(4)}, r"mu \(5,\) and sigma \(4, 4\) are no"),
            ({"mu": np.zeros(5), "sigma": np.full((5, 5), np.nan)}, "are no finite"),
            ({"mu": np.zeros((5, 5)), "sigma": np.eye(5)}, r"mu is float64 of shape \(5, 5\)"),
            ({"mu": np.array([None] * 5), "sigma": np.eye(5)}, "mu is object"),
        ):
            np.savez(path, **arrays)
            with refuses(f"fid.npz.*{match}"):
                Statistics.load(path, INCEPTION)
        path.write_bytes(path.read_bytes()[:300])
        with refuses("fid.npz cannot be read as an .npz archive"):
            Statistics.load(path, INCEPTION)

    def test_a_size_that_is_said_and_not_there_takes_no_memory(self, tmp_path, refuses):
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (5, 99999999999), }"
        header += b" " * (117 - len(header)) + b"\n"
        member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        np.savez(tmp_path / "fid.npz", mu=np.zeros(5))
        with zipfile.ZipFile(tmp_path / "fid.npz", "a") as file:
            file.writestr("sigma.npy", member)
        with refuses("fid.npz: sigma is float64 of shape"):
            Statistics.load(tmp_path / "fid.npz", INCEPTION)


def test_equal_statistics_are_equal_bytes(tmp_path, rng):
    made, files = fill(rng.standard_normal((20, WIDTH))), set()
    for _ in range(6):
        made.save(tmp_path / "s.safetensors")
        files.add((tmp_path / "s.safetensors").read_bytes())
        made = Statistics.load(tmp_path / "s.safetensors")
    assert len(files) == 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"count": -1}, "count -1 is negative"),
        ({"count": "20"}, "count must be a whole number"),
        ({"shape": [1, "2", 2]}, "shape must be a list whose parts are a whole number"),
        ({"width": 10**9}, "the arrays do not fit the record"),
        ({"keep": None}, "keep must be a whole number"),
        ({"kept": 3}, "unknown key 'kept': did you mean 'keep'"),
    ],
)
def test_a_record_of_another_type_is_named(tmp_path, refuses, rng, changes, match):
    path = tmp_path / "s.safetensors"
    fill(rng.standard_normal((20, WIDTH))).save(path)
    tensors, metadata = read_safetensors(path)
    facts = json.loads(metadata["statistics"]) | changes
    write_safetensors(path, tensors, {**metadata, "statistics": json.dumps(facts)})
    with refuses(f"s.safetensors cannot be read as statistics of images: {match}"):
        Statistics.load(path)
