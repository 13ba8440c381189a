"""Encoding and decoding with a model: round trips, files, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import ddim
from ddim.base.errors import InputError
from ddim.data.load import load_data
from ddim.data.pixels import from_pixels
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.exact import Gaussian
from ddim.denoisers.target import Target
from ddim.latents.coding import codec_nodes, decode, encode
from ddim.latents.record import Latents
from ddim.latents.slerp import interpolate, slerp
from ddim.noise.schedule import Schedule
from tiny import tiny_unet


def make_model(seed=0, classes=None):
    net = tiny_unet(classes, seed=seed)
    schedule = Schedule.linear(50, 0.002, 0.16)
    return ddim.Model(
        net,
        schedule,
        Target.EPS,
        (1, 8, 8),
        classes=classes,
        null_label=classes,
        name=f"m{seed}",
    )


@pytest.fixture
def images():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    ("codec", "steps", "said"),
    [
        ("ddim", 3, "ddim is approximate: its images come back changed, in 3 steps more than"),
        ("implicit", 50, None),
        ("obelm", 3, None),
        ("edict", 3, None),
    ],
)
def test_latents_say_whether_their_images_come_back(images, codec, steps, said):
    latents = encode(make_model(), images, codec=codec, steps=steps)
    assert latents.unsolved == []
    assert latents.caveat is None if said is None else said in latents.caveat


def test_latents_say_how_many_images_do_not_come_back(images, tmp_path):
    model = make_model()
    latents = encode(model, images, codec="implicit", steps=10, iterations=1)
    latents.save(tmp_path / "l.safetensors")
    for one in (latents, Latents.load(tmp_path / "l.safetensors")):
        assert "did not converge on 5 of 5 images" in one.caveat
    drawn = dataclasses.replace(encode(model, images, codec="ddim", steps=3), calls=0)
    assert drawn.caveat is None


@pytest.mark.parametrize("codec", ["obelm", "edict", "bdia"])
@pytest.mark.parametrize(("dtype", "worst"), [(torch.float32, 1e-3), (torch.float64, 1e-11)])
def test_exact_codecs(images, codec, dtype, worst):
    model = make_model().to(dtype=dtype)
    latents = encode(model, images, steps=10, codec=codec, dtype=dtype, batch_size=2)
    assert latents.dtype == dtype and len(latents.tensors) == 2
    assert (decode(model, latents) - images).abs().max() < worst


def test_a_network_in_bfloat16_is_refused(images):
    latents = encode(make_model(), images, steps=10)
    rounded = make_model().to(dtype=torch.bfloat16)
    for call in (lambda: encode(rounded, images, steps=10), lambda: decode(rounded, latents)):
        with pytest.raises(InputError, match="m0 is in bfloat16, where images do not come back"):
            call()


def test_dropping_the_second_tensor_breaks_it(images):
    """Half of a pair is refused; another in its place does not lead back."""
    model = make_model().to(dtype=torch.float64)
    latents = encode(model, images, steps=10, dtype=torch.float64)
    with pytest.raises(InputError, match="one alone"):
        dataclasses.replace(latents, tensors=latents.tensors[:1])
    wrong = dataclasses.replace(latents, tensors=(latents.tensors[0],) * 2)
    assert (decode(model, wrong) - images).abs().max() > 1e-3


def test_the_papers_codec_is_sampling_backwards(images):
    """Its decoder is `sample` from the latent; the round trip is near, and nearer with steps."""
    model = make_model().to(dtype=torch.float64)
    errors = []
    for steps in (5, 50):
        latents = encode(model, images, steps=steps, codec="ddim", dtype=torch.float64)
        errors.append((decode(model, latents) - images).abs().max().item())
    assert errors[1] < errors[0] / 2


def test_implicit_is_solved_or_says_so(images):
    model = make_model().to(dtype=torch.float64)
    latents = encode(model, images, steps=25, codec="implicit", dtype=torch.float64)
    assert latents.nodes[-1] == 1 and len(latents.tensors) == 1
    assert latents.residual.shape == (5,)
    error = (decode(model, latents) - images).flatten(1).square().mean(1).sqrt()
    solved = [i for i in range(5) if i not in latents.unsolved]
    assert solved
    assert (error[solved] <= 100 * latents.residual[solved].clamp(min=1e-15)).all()
    few = encode(
        model, images, steps=5, codec="implicit", dtype=torch.float64, iterations=2, batch_size=5
    )
    assert few.unsolved == [0, 1, 2, 3, 4] and few.calls == 10


def test_an_image_is_encoded_whatever_is_beside_it(images):
    model = make_model()
    for codec in ("obelm", "implicit"):
        whole = encode(model, images, steps=5, codec=codec, batch_size=2)
        other = encode(model, images[[3, 0]], steps=5, codec=codec, batch_size=2)
        for a, b in zip(whole.tensors, other.tensors, strict=True):
            assert torch.equal(a[3], b[0]) and torch.equal(a[0], b[1])


def test_files_keep_everything(images, tmp_path):
    model = make_model(classes=3)
    latents = encode(model, images, steps=4, codec="implicit", labels=[0, 1, 2, 0, 1])
    latents.save(tmp_path / "l.safetensors")
    again = Latents.load(tmp_path / "l.safetensors")
    for field in dataclasses.fields(Latents):
        value, loaded = getattr(latents, field.name), getattr(again, field.name)
        if field.name == "tensors":
            assert all(map(torch.equal, value, loaded))
        elif field.name == "residual":
            assert torch.equal(value, loaded)
        elif field.name == "condition":
            assert (value.labels, value.guidance) == (loaded.labels, loaded.guidance)
        else:
            assert value == loaded
    assert torch.equal(decode(model, latents), decode(model, again))


def test_other_models_are_refused(images):
    latents = encode(make_model(), images, steps=4)
    with pytest.raises(InputError, match="of the model m0"):
        decode(make_model(1), latents)
    later = make_model().replace(schedule=Schedule.linear(50, 0.002, 0.17))
    with pytest.raises(InputError, match="of the model m0"):
        decode(later, latents)
    with pytest.raises(InputError, match="of the model m0"):
        decode(make_model().replace(target=Target.V), latents)
    with pytest.raises(InputError, match="shape"):
        decode(make_model().replace(shape=(1, 16, 16)), latents)


def test_identity_is_of_the_weights_and_not_of_where_they_are():
    model = make_model()
    assert model.identity == make_model().identity == model.to(dtype=torch.float64).identity
    assert model.identity != make_model(1).identity


def test_clipping_is_refused(images):
    with pytest.raises(InputError, match="cannot be undone"):
        encode(make_model(), images, steps=4, clip=True)
    clipping = make_model().replace(clipping=Clipping("clip"))
    with pytest.raises(InputError, match="by default"):
        encode(clipping, images, steps=4)
    assert len(encode(clipping, images, steps=4, clip=False)) == 5


def test_guidance_and_labels_edit_while_decoding(images):
    model = make_model(classes=3)
    latents = encode(model, images, steps=5, labels=[0] * 5)
    same = decode(model, latents)
    assert (same - images).abs().max() < 1e-3
    assert not torch.allclose(decode(model, latents, labels=[1] * 5), same, atol=1e-3)
    assert not torch.allclose(decode(model, latents, guidance=3.0), same, atol=1e-3)
    assert torch.equal(decode(model, latents, labels=[1]), decode(model, latents, labels=[1] * 5))
    with pytest.raises(InputError, match="6 labels were given for 5 images"):
        decode(model, latents, labels=[1] * 6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"codec": "obelmm"}, "did you mean 'obelm'"),
        ({"steps": 51}, "from 1 to T"),
        ({"steps": 1}, "at least 2 steps"),
        ({"steps": 1, "codec": "bdia"}, "at least 2 steps"),
        ({"nodes": (0, 25, 50), "steps": None}, "fall"),
        ({"nodes": (50, 25, 0), "steps": None, "codec": "implicit"}, "node 1"),
        ({"nodes": (50, 25, 0), "steps": 3}, "3 nodes are 2 steps, not 3"),
        ({"dtype": torch.float16}, "float32 or float64"),
        ({"labels": [0]}, "no classes"),
    ],
)
def test_bad_options(images, options, match):
    with pytest.raises(InputError, match=match):
        encode(make_model(), images, **{"steps": 5, **options})


def test_labels_may_be_a_tensor_and_an_image_be_taken_out(images, tmp_path):
    latents = encode(make_model(classes=3), images, steps=4, labels=torch.tensor([0, 1, 2, 0, 1]))
    latents.save(tmp_path / "l.safetensors")
    assert Latents.load(tmp_path / "l.safetensors")[2].condition.labels == (2,)
    assert len(latents[2]) == 1 and len(latents[1:4]) == 3


def test_bad_images(images):
    with pytest.raises(InputError, match=r"in \[-1, 1\]; these are from .* to 25"):
        encode(make_model(), (images + 1) * 127.5, steps=5)
    with pytest.raises(InputError, match="have shape"):
        encode(make_model(), images[:, :, :4], steps=5)
    with pytest.raises(InputError, match="finite"):
        encode(make_model(), images / 0, steps=5)


@pytest.mark.parametrize("family", ["uniform", "quadratic", "trailing", "log-snr"])
@pytest.mark.parametrize("steps", range(1, 51))
def test_implicit_ends_at_node_one_for_every_number_of_steps(steps, family):
    """Of T steps the last has no inverse, and there is no node to put in its place."""
    nodes = codec_nodes(make_model(), "implicit", steps, family)
    assert nodes[0] == 50 and nodes[-1] == 1
    assert list(nodes) == sorted(set(nodes), reverse=True)
    assert len(nodes) - 1 == min(steps, 49)


def test_what_cannot_be_encoded(images, refuses):
    with refuses("there are no images"):
        encode(make_model(), images[:0], steps=3)
    for codec in ("obelm", "implicit"):
        with refuses("the batch size must be at least 1, not 0"):
            encode(make_model(), images, steps=3, codec=codec, batch_size=0)
    with refuses("iterations must be at least 1, not 0"):
        encode(make_model(), images, steps=3, codec="implicit", iterations=0)


def test_not_latents(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="no file"):
        Latents.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="truncated"):
        Latents.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a file of latents"):
        Latents.load(path)


def _rewritten(path, change, *, seal):
    """The file with its facts changed; ``seal`` writes the checksum anew."""
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    from ddim.latents.record import _checksum

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    facts = json.loads(metadata["ddim"])
    change(facts)
    metadata["ddim"] = json.dumps(facts)
    if seal:
        metadata["sha256"] = _checksum(metadata["ddim"])
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.update(nodes=[20, 12, 9, 4, 0]),
        lambda facts: facts.update(codec="bdia"),
        lambda facts: facts.update(identity="0" * 64),
        lambda facts: facts.pop("nodes"),
        lambda facts: facts.update(nodes=None),
        lambda facts: facts.update(more=1),
    ],
)
def test_latents_that_say_something_else_than_was_written_are_refused(images, tmp_path, change):
    path = tmp_path / "l.safetensors"
    encode(make_model(), images, steps=4).save(path)
    _rewritten(path, change, seal=False)
    with pytest.raises(InputError, match="other nodes, codec or model than it was written with"):
        Latents.load(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda facts: facts.pop("codec"), "codec is missing"),
        (lambda facts: facts.update(nodes=None), "nodes must be a list whose parts are"),
        (lambda facts: facts.update(nodes=[20, "0"]), r"nodes\[1\] must be a whole number"),
        (lambda facts: facts.update(more=1), "unknown key 'more'"),
        (lambda facts: facts.update(dtype="bfloat16"), "dtype must be one of 'float32', 'float64'"),
        (lambda facts: facts.update(labels="all"), "labels must be a list whose parts are"),
        (lambda facts: facts.update(labels=[1] * 99), "99 labels were given for"),
        (lambda facts: facts.update(guidance=float("inf")), "guidance must be a finite number"),
        (lambda facts: facts.update(codec="jpeg"), "unknown codec 'jpeg'"),
        (lambda facts: facts.update(codec="ddim"), "a latent of the codec ddim has 1 tensors"),
        (lambda facts: facts.update(dtype="float64"), "holds tensors that are no latents"),
    ],
)
def test_latents_whose_record_is_no_record_are_refused(images, tmp_path, change, match):
    path = tmp_path / "l.safetensors"
    encode(make_model(), images, steps=4).save(path)
    _rewritten(path, change, seal=True)
    with pytest.raises(InputError, match=rf"l\.safetensors: .*{match}"):
        Latents.load(path)


def test_equal_latents_are_equal_bytes(images, tmp_path):
    made, files = encode(make_model(), images, steps=4), set()
    for _ in range(6):
        made.save(tmp_path / "l.safetensors")
        files.add((tmp_path / "l.safetensors").read_bytes())
        made = Latents.load(tmp_path / "l.safetensors")
    assert len(files) == 1


def test_latents_carry_schedule_and_dtype(images, tmp_path):
    import json

    from safetensors import safe_open

    path = tmp_path / "l.safetensors"
    latents = encode(make_model(), images, steps=4)
    latents.save(path)
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["ddim"])
    assert facts["dtype"] == "float32"
    assert facts["schedule"] == dict(make_model().schedule.spec)
    assert facts["nodes"] == list(latents.nodes)
    _rewritten(path, lambda facts: facts.update(dtype="float64"), seal=True)
    with pytest.raises(InputError, match="no latents"):
        Latents.load(path)


def test_interpolation_between_two_and_four(images):
    model = make_model()
    latents = encode(model, images, steps=5)
    line = interpolate(latents, [3, 1], [0.0, 0.5, 1.0])
    assert len(line) == 3
    ends = decode(model, line)
    assert (ends[0] - images[3]).abs().max() < 1e-3 and (ends[2] - images[1]).abs().max() < 1e-3
    square = interpolate(latents, [0, 1, 2, 3], [0.0, 0.5, 1.0])
    corners = decode(model, square)[[0, 2, 6, 8]]
    assert (corners - images[:4]).abs().max() < 1e-3
    left = interpolate(latents, [0, 2], [0.5])
    assert torch.allclose(square.tensors[1][3], left.tensors[1][0], atol=1e-6)
    with pytest.raises(InputError, match="2 images or 4"):
        interpolate(latents, [0, 1, 2], [0.5])
    for shares in ([], [float("nan")]):
        with pytest.raises(InputError, match="finite numbers"):
            interpolate(latents, [0, 1], shares)
    with pytest.raises(InputError, match="no image 5"):
        interpolate(latents, [0, 5], [0.5])


def test_interpolated_labels_are_of_the_nearest_corner(images):
    latents = encode(make_model(classes=3), images[:4], steps=5, labels=[0, 1, 2, 1])
    assert interpolate(latents, [0, 1], [0.0, 0.5, 1.0]).condition.labels == (0, 0, 1)
    assert interpolate(latents, [0, 1, 2, 3], [0.0, 1.0]).condition.labels == (0, 1, 2, 1)


MNIST = Path(__file__).resolve().parents[3] / "shared/data/mnist"


@pytest.mark.parametrize(
    ("steps", "count"),
    [(10, 8), *(pytest.param(s, 64, marks=pytest.mark.slow) for s in (10, 20, 50, 100))],
)
def test_real_digits_come_back_from_the_shipped_model(steps, count):
    if not MNIST.is_dir():
        pytest.skip(f"the MNIST files are not in {MNIST}")
    data = load_data(str(MNIST), split="test")
    digits = from_pixels(data.batch(torch.arange(count)))
    model = ddim.load("mnist")
    error = decode(model, encode(model, digits, steps=steps)) - digits
    assert error.square().mean().sqrt() <= 5e-5 and error.abs().max() <= 1e-3
    if steps > 20:
        return
    double = model.to(dtype=torch.float64)
    latents = encode(double, digits.double(), steps=steps, dtype=torch.float64)
    assert (decode(double, latents) - digits).abs().max() <= 1e-11


def test_latents_of_another_autoencoder_are_not_taken_for_bytes(images):
    """What is coded need not be within [-1, 1], as long as it is not bytes."""
    wide = 4 * images
    latents = encode(make_model(), wide, steps=10, dtype=torch.float64)
    assert (decode(make_model(), latents) - wide).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_trap_any_half_precision_is_refused(images, dtype):
    whole, part = make_model().to(dtype=dtype), make_model()
    part.net.conv_out.to(dtype)  # the last of its layers
    name = str(dtype).removeprefix("torch.")
    for model in (whole, part):
        with pytest.raises(InputError, match=f"m0 is in {name}, where images do not come back"):
            encode(model, images, steps=4)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(InputError, match="autocast"):
        encode(make_model(), images, steps=4)


SCHEDULES = {
    "linear": Schedule.linear(100, scaled=True),
    "cosine": Schedule.cosine(100),
    "flow": Schedule.flow(400),
    "zero-snr": Schedule.scaled_linear(1000).rescaled_to_zero_snr(),
}


class Exactly(torch.nn.Module):
    """ε of normal data."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x, t):
        return Gaussian(0.1, 0.5)(x, self.schedule.level(int(t[0]) + 1)).eps


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("kind", list(SCHEDULES))
@pytest.mark.parametrize("codec", ["obelm", "edict", "bdia", "implicit"])
def test_trap_codecs_begin_where_something_is_left_of_the_image(codec, kind, steps):
    """Undoing a step from σ/α of thousands, or without end, amplifies rounding as much."""
    schedule = SCHEDULES[kind]
    model = ddim.Model(Exactly(schedule), schedule, "eps", (2, 32))
    nodes = codec_nodes(model, codec, steps=steps)
    assert len(nodes) == steps + 1 or (codec == "implicit" and nodes[0] == steps)
    assert schedule.rho[nodes[0]] <= 200 < (schedule.rho[nodes[0] + 1 :][:1] or [201])[0]
    x = 0.1 + 0.5 * torch.randn(4, 2, 32, generator=torch.Generator().manual_seed(0))
    latents = encode(model, x, steps=steps, codec=codec)
    assert (decode(model, latents) - x).abs().max() < (0.02 if codec == "edict" else 2e-4)
    spread = schedule.level(nodes[0]).spread
    for tensor in latents.tensors:
        # O-BELM's first is an extrapolation, of coarse steps a coarse one.
        assert 0.5 < float(tensor.std()) / spread < (10 if codec == "obelm" and steps == 10 else 3)


def test_codecs_of_as_many_steps_as_there_are_nodes():
    schedule = SCHEDULES["cosine"]
    model = ddim.Model(Exactly(schedule), schedule, "eps", (2, 32))
    most = int((schedule.rho <= 200).sum()) - 1
    assert codec_nodes(model, "obelm", steps=most) == tuple(range(most, -1, -1))
    with pytest.raises(InputError, match=f"takes at most {most} steps here"):
        codec_nodes(model, "obelm", steps=100)
    assert codec_nodes(model, "ddim", steps=100)[0] == 100


@pytest.mark.parametrize(
    ("index", "chosen"),
    [
        (torch.tensor([2, 0]), [2, 0]),
        ([True, False, True, False, False], [0, 2]),
        (torch.tensor([True, False, False, True, False]), [0, 3]),
        (np.int64(1), [1]),
        (np.array([4, 1]), [4, 1]),
        (torch.tensor(3), [3]),
        (-1, [4]),
        ([], []),
        ((1, 2), [1, 2]),
        (slice(None, None, 2), [0, 2, 4]),
    ],
)
def test_latents_are_indexed_by_anything(images, index, chosen):
    latents = encode(make_model(classes=3), images, steps=4, labels=[0, 1, 2, 0, 1])
    part = latents[index]
    assert part.condition.labels == tuple([0, 1, 2, 0, 1][i] for i in chosen)
    assert all(
        torch.equal(a, b[chosen]) for a, b in zip(part.tensors, latents.tensors, strict=True)
    )


def test_one_label_serves_all(images):
    model = make_model(classes=3)
    for one in (2, np.int64(2), torch.tensor(2)):
        latents = encode(model, images, steps=4, labels=one)
        assert latents.condition.labels == (2,) * 5
    assert torch.equal(decode(model, latents, labels=1), decode(model, latents, labels=[1] * 5))
    with pytest.raises(InputError, match="labels are whole numbers"):
        encode(model, images, labels=1.5)


def test_trap_a_pair_is_turned_by_the_tensor_that_is_a_latent():
    """O-BELM's first tensor is far from a state where the first step is unlike the second."""

    class Exact(torch.nn.Module):
        def forward(self, x, t):
            level = schedule.level(int(t[0]) + 1)
            return Gaussian(0.0, 0.5)(x, level).eps

    schedule = Schedule.flow(1000)
    model = ddim.Model(Exact(), schedule, "eps", (64,))
    x = 0.5 * torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).double()
    nodes = (999, *range(980, -1, -20))
    latents = encode(model, x, nodes=nodes, dtype=torch.float64)
    assert latents.tensors[0].std() > 1.1 * latents.tensors[1].std()
    middle = decode(model, interpolate(latents, [0, 1], [0.5]))
    # What leads through a linear flow is what spherical interpolation of its ends is.
    (expected,) = slerp(x[:1], x[1:], 0.5)
    assert (middle - expected).square().mean().sqrt() < 0.02


def test_latents_that_were_made_one_by_one_are_joined(images):
    model = make_model(classes=3)
    labels = [2, 0, 1][: len(images)]
    how = {"steps": 4, "batch_size": 1}
    whole = encode(model, images[:3], labels=labels, **how)
    parts = [encode(model, images[i : i + 1], labels=labels[i], **how) for i in range(len(labels))]
    joined = Latents.join(parts)
    assert joined.condition.labels == whole.condition.labels and joined.calls == whole.calls
    for one, two in zip(joined.tensors, whole.tensors, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(decode(model, joined), decode(model, whole))


def test_unlike_latents_are_not_joined(images, refuses):
    model = make_model()
    one = encode(model, images[:1], steps=4)
    with refuses("no latents to join"):
        Latents.join([])
    with refuses("of one codec can be joined, not of obelm and ddim"):
        Latents.join([one, encode(model, images[:1], steps=4, codec="ddim")])
    with refuses("of one set of nodes can be joined"):
        Latents.join([one, encode(model, images[:1], steps=3)])
    with refuses("of one identity can be joined"):
        Latents.join([one, encode(make_model(seed=1), images[:1], steps=4)])
