from __future__ import annotations

import copy
import random
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ddim
from ddim.backends.workers import GATHERED
from ddim.base.errors import RunError
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.model.condition import Condition
from ddim.model.drawing import default_batch_size, generate, sample
from ddim.model.model import Model
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.draws import Noise
from ddim.noise.nodes import uniform
from ddim.noise.schedule import Schedule
from ddim.samplers.lookup import METHODS
from ddim.samplers.sampler import Sampler, make_tableau
from ddim.samplers.tableau import Tableau
from tiny import tiny_unet

T = 20
SHAPE = (1, 8, 8)


def make_model(classes: int | None = None, clipping: Clipping | None = None) -> Model:
    """An untrained model with attention in every place that has it."""
    net = tiny_unet(classes, attention=True).requires_grad_(False)
    return Model(
        net,
        Schedule.linear(T, 0.01, 0.4),
        Target.EPS,
        SHAPE,
        classes=classes,
        null_label=classes,
        clipping=clipping or Clipping(),
        name="tiny",
    )


PLAIN = make_model()
CONDITIONAL = make_model(classes=3)
KINDS = pytest.mark.parametrize(
    ("model", "guidance"),
    [(PLAIN, 1.0), (CONDITIONAL, 1.0), (CONDITIONAL, 2.5)],
    ids=["plain", "conditional", "guided"],
)


def tableau(steps: int = 3, method: str = "ddpm", **options: float) -> Tableau:
    return make_tableau(PLAIN.schedule, uniform(PLAIN.schedule, steps), method, **options)


def draw(
    model: Model,
    indices: Sequence[int],
    *,
    guidance: float = 1.0,
    batch_size: int | None = None,
    rows: Tableau | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[int, Tensor]:
    """Images by index; image i of a conditional model is of class i % classes."""
    labels = None if model.classes is None else [i % model.classes for i in indices]
    events = generate(
        model,
        tableau() if rows is None else rows,
        indices,
        condition=Condition(labels, guidance=guidance),
        batch_size=batch_size,
        dtype=dtype,
    )
    found = {}
    for event in events:
        if event.images is not None:
            found |= dict(zip(event.indices, event.images, strict=True))
    return found


def same_bits(found: dict[int, Tensor], expected: dict[int, Tensor]) -> bool:
    return all(torch.equal(image, expected[i]) for i, image in found.items())


@KINDS
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_trap_image_depends_neither_on_the_batch_nor_on_the_order(model, guidance, batch_size):
    expected = draw(model, range(11), guidance=guidance, batch_size=batch_size)
    assert list(expected) == list(range(11))
    orders = [range(n) for n in (1, 4, 9)]
    orders += [[10], [7, 3], range(10, -1, -1), random.Random(0).sample(range(11), 11)]
    for indices in orders:
        found = draw(model, indices, guidance=guidance, batch_size=batch_size)
        assert list(found) == list(indices)
        assert same_bits(found, expected), list(indices)


@KINDS
@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_position_in_the_tile_and_padding_do_not_change_the_bits(model, guidance, batch_size):
    alone = draw(model, [5], guidance=guidance, batch_size=batch_size)
    for position in range(batch_size):
        others = list(range(100, 100 + batch_size - 1))
        full = [*others[:position], 5, *others[position:]]
        short = full[: position + 1]
        for indices in (full, short):
            found = draw(model, indices, guidance=guidance, batch_size=batch_size)
            assert torch.equal(found[5], alone[5]), (position, len(indices))


@pytest.mark.parametrize("batch_size", [3, 7])
def test_position_does_not_matter_either_where_vectors_end_within_an_image(batch_size):
    config = UNetConfig(
        sample_size=7,
        in_channels=1,
        out_channels=1,
        block_out_channels=(12,),
        layers_per_block=2,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        attention_head_dim=None,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = UNet(config).requires_grad_(False).eval()
    model = PLAIN.replace(net=net, shape=(1, 7, 7))
    expected = draw(model, range(2 * batch_size), batch_size=batch_size)
    assert same_bits(
        draw(model, range(2 * batch_size - 1, -1, -1), batch_size=batch_size), expected
    )


@KINDS
@pytest.mark.parametrize("batch_size", [3, 8])
def test_position_and_batch_do_not_change_the_bits_in_bfloat16(model, guidance, batch_size):
    model = model.replace(net=copy.deepcopy(model.net)).to(dtype=torch.bfloat16)
    expected = draw(model, range(11), guidance=guidance, batch_size=batch_size)
    assert next(iter(expected.values())).dtype is torch.float32
    for indices in (range(10, -1, -1), [7], [9, 2, 5, 0]):
        assert same_bits(draw(model, indices, guidance=guidance, batch_size=batch_size), expected)


@KINDS
def test_other_tiles_agree_in_one_forward_pass(model, guidance):
    rows = tableau(1, "ddim")
    expected = torch.stack(
        [*draw(model, range(8), batch_size=8, guidance=guidance, rows=rows).values()]
    )
    scale = float(expected.abs().max())
    for batch_size in (1, 2, 3, 5):
        found = draw(model, range(8), batch_size=batch_size, guidance=guidance, rows=rows).values()
        assert (torch.stack([*found]) - expected).abs().max() < 1e-5 * max(scale, 1)


def test_the_same_images_in_every_call_and_others_for_another_seed():
    one, two = (sample(PLAIN, 3, steps=4, eta=1.0, seed=7) for _ in range(2))
    other = sample(PLAIN, 3, steps=4, eta=1.0, seed=8)
    assert torch.equal(one, two)
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("n", [1, 7, 8, 9, 13])
def test_trap_exact_count_of_images(n):
    assert sample(PLAIN, n, steps=2).shape == (n, *SHAPE)
    events = list(generate(PLAIN, tableau(2), range(n)))
    assert [i for e in events if e.images is not None for i in e.indices] == list(range(n))
    assert len(events) == -(-n // 8) * 2
    assert all(e.step.x.shape == (8, *SHAPE) for e in events)


@pytest.mark.parametrize("steps", [1, 3, 7, 13, 19, 20])
def test_trap_exact_number_of_steps_and_all_the_noise_removed(steps):
    events = list(generate(PLAIN, tableau(steps, "ddim"), [0], batch_size=1))
    assert len(events) == steps
    last = events[-1].step.row
    assert (last.level.alpha, last.level.sigma) == (1, 0)


def test_trap_noise_is_drawn_only_when_needed(monkeypatch):
    drawn: list[int] = []
    inner = Noise.__call__

    def count(self: Noise, state: int) -> Tensor:
        drawn.append(state)
        return inner(self, state)

    monkeypatch.setattr(Noise, "__call__", count)
    draw(PLAIN, range(3), rows=tableau(4, "ddim"))
    assert drawn == [0]
    drawn.clear()
    draw(PLAIN, range(3), rows=tableau(4, "ddpm"))
    assert drawn == [0, 1, 2, 3]  # the last step, to the data, injects none


def test_ddim_with_eta_one_and_every_step_is_ddpm_with_the_same_noise():
    ddpm = draw(PLAIN, range(2), rows=tableau(T, "ddpm"))
    ddim = draw(PLAIN, range(2), rows=tableau(T, "ddim", eta=1.0))
    assert same_bits(ddpm, ddim)


def test_trap_all_steps_still_heed_the_method_and_eta():
    images = [draw(PLAIN, [0], rows=tableau(T, "ddim", eta=eta))[0] for eta in (0.0, 0.5, 1.0)]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])


def test_rising_nodes_draw_nothing(refuses):
    model = PLAIN
    rising = make_tableau(model.schedule, tuple(range(T + 1)))
    with refuses("nodes that rise encode images, which must be given"):
        generate(model, rising, range(2))
    with refuses("nodes that rise encode images"):
        sample(model, 2, nodes=[0, 3, 5])


def test_options_of_a_method_by_name(refuses):
    model = PLAIN
    drawn = sample(model, 2, steps=5, method="dpmpp:order=3")
    tableau = model.tableau(Sampler("dpmpp", steps=5, order=3))
    parts = [d.images for d in generate(model, tableau, range(2)) if d.images is not None]
    assert torch.equal(drawn, torch.cat(parts))
    with refuses("'ddpm' has no option 'order': it has variance"):
        sample(model, 2, steps=5, method="ddpm:order=3")


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_memory_does_not_grow_with_steps(method):
    made: list[weakref.ref[Tensor]] = []
    alive = []
    for event in generate(PLAIN, tableau(T, method), range(64)):
        prediction = event.step.prediction
        assert prediction is not None
        made += map(weakref.ref, (event.step.x, prediction.x0, prediction.eps))
        alive.append(sum(ref() is not None for ref in made))
    assert len(alive) == 8 * T
    # Three of each step: gathered by a worker, handed over, and being gone through.
    assert max(alive) <= 3 * 3 * GATHERED + 6


@pytest.mark.parametrize("model", [PLAIN, CONDITIONAL], ids=["plain", "guided"])
def test_trap_nothing_leaves_the_device_inside_the_loop(model, monkeypatch):
    # A spy sees its own thread alone, where batches run on an accelerator.
    monkeypatch.setattr("ddim.model.model.worker_count", lambda *_: 0)

    class Spy(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    labels = None if model.classes is None else [1, 2]
    guidance = 1.0 if labels is None else 2.0
    events = generate(
        model, tableau(4), [0, 1], condition=Condition(labels, guidance=guidance), batch_size=2
    )
    with Spy() as spy:
        list(events)
    assert "convolution" in spy.seen
    # How `.item()`, `bool(tensor)` and the like wait for the device.
    assert not spy.seen & {"_local_scalar_dense", "is_nonzero", "equal"}


def test_float64_states_and_network():
    model = make_model().to(dtype=torch.float64)
    rows = tableau(T)
    exact = draw(model, range(3), rows=rows, dtype=torch.float64)
    assert all(image.dtype == torch.float64 for image in exact.values())
    batches = draw(model, range(3), rows=rows, dtype=torch.float64, batch_size=1)
    single = draw(PLAIN, range(3), rows=rows)
    for i, image in exact.items():
        scale = float(image.abs().max())
        assert (batches[i] - image).abs().max() < 1e-12 * scale
        assert (single[i] - image).abs().max() < 1e-4 * scale
    assert sample(model, 1, steps=2).dtype == torch.float32


def test_single_precision_network_under_double_precision_states():
    found = draw(PLAIN, [0], dtype=torch.float64)[0]
    assert found.dtype == torch.float64
    assert (found - draw(PLAIN, [0])[0]).abs().max() < 1e-4


def test_classes_change_the_image_and_are_taken_in_turn():
    turns = sample(CONDITIONAL, 4, steps=3)
    listed = sample(CONDITIONAL, 4, steps=3, labels=[0, 1, 2, 0])
    one = sample(CONDITIONAL, 4, steps=3, labels=1)
    assert torch.equal(turns, listed)
    assert torch.equal(one[1], turns[1])
    assert not torch.equal(one[0], turns[0])


def test_guidance_of_zero_is_the_model_without_classes():
    free = sample(CONDITIONAL, 2, steps=3, labels=[3, 3])
    assert torch.allclose(sample(CONDITIONAL, 2, steps=3, guidance=0.0), free, atol=1e-5)
    assert not torch.allclose(sample(CONDITIONAL, 2, steps=3), free, atol=1e-3)


def test_clipping_is_the_models_habit_unless_said_otherwise():
    habit = make_model(clipping=Clipping("clip", 0.5))
    assert float(sample(habit, 2, steps=3).abs().max()) == 0.5
    assert float(sample(habit, 2, steps=3, clip=True).abs().max()) <= 1
    assert torch.equal(sample(habit, 2, steps=3, clip=False), sample(PLAIN, 2, steps=3))
    assert torch.equal(sample(habit, 2, steps=3, clip=True), sample(PLAIN, 2, steps=3, clip=True))
    assert float(sample(PLAIN, 2, steps=3).abs().max()) > 1


def test_steps_and_nodes():
    listed = sample(PLAIN, 2, nodes=[20, 10, 0])
    assert torch.equal(listed, sample(PLAIN, 2, steps=2))
    assert torch.equal(sample(PLAIN, 1, steps=None), sample(PLAIN, 1, steps=T))


def test_progress_is_on_stderr(capsys):
    sample(PLAIN, 9, steps=3, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "6/6" in captured.err


def test_refusals_come_before_the_first_step(refuses):
    rows = tableau()
    for match, model, options in [
        ("number of images must be at least 1, not 0", PLAIN, {"indices": []}),
        ("the batch size must be at least 1, not 0", PLAIN, {"batch_size": 0}),
        ("seed must be from 0", PLAIN, {"seed": -1}),
        ("image index must be from 0", PLAIN, {"indices": [0, -1]}),
        ("tiny has no classes, so labels mean nothing", PLAIN, {"labels": [0, 1]}),
        ("guidance compares with a condition left out", PLAIN, {"guidance": 2.0}),
        ("class-conditional: give labels", CONDITIONAL, {}),
        ("3 labels were given for 2 images", CONDITIONAL, {"labels": [0, 1, 2]}),
        ("labels are from 0 to 2, or 3 for 'none', not 4", CONDITIONAL, {"labels": [0, 4]}),
        ("labels are from 0 to 2, or 3 for 'none', not -1", CONDITIONAL, {"labels": [-1, 0]}),
        ("finite number, not nan", CONDITIONAL, {"labels": [0, 1], "guidance": float("nan")}),
    ]:
        given = dict(options)
        with refuses(match):
            condition = Condition(given.pop("labels", None), guidance=given.pop("guidance", 1.0))
            generate(model, rows, given.pop("indices", [0, 1]), condition=condition, **given)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("number of steps must be at least 1, not 0", {"steps": 0}),
        ("steps must be from 1 to T = 20, not 21", {"steps": 21}),
        ("unknown method 'ddmi': did you mean", {"method": "ddmi"}),
        ("unknown nodes 'unifrom': did you mean 'uniform'", {"nodes": "unifrom"}),
        ("eta must be at least 0", {"eta": -0.1}),
        ("eta = 3 is too large", {"eta": 3.0}),
        ("'ddpm' has no option 'eta'", {"method": "ddpm", "eta": 1.0}),
    ],
)
def test_sample_refuses(refuses, match, options):
    with refuses(match):
        sample(PLAIN, 2, **{"steps": 4, **options})


def test_a_mask_keeps_what_it_does_not_cover_for_every_method():
    given = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    for method in (name for name, m in METHODS.items() if not (m.program or m.needs)):
        drawn = sample(
            make_model(), 3, steps=4, method=method, images=given, mask=mask, batch_size=2
        )
        assert torch.equal(drawn[..., :4], given[..., :4]), method
        assert not torch.equal(drawn[..., 4:], given[..., 4:])


def test_strength_starts_from_the_noised_image():
    """At the last node above the data the image is one prediction from its noised self."""
    given = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = make_model()
    drawn = sample(model, 2, steps=T, images=given, strength=1 / T, seed=5)
    level = model.schedule.level(1)
    noisy = level.alpha * given + level.sigma * Noise(5, range(2), SHAPE)(0)
    assert torch.allclose(drawn, model.denoiser()(noisy, level).x0, atol=1e-5)
    whole = sample(model, 2, steps=4, images=given, strength=1.0, seed=5)
    assert whole.shape == drawn.shape and not torch.allclose(whole, drawn, atol=1e-2)


IMAGES = torch.zeros(2, *SHAPE)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("need images", {"strength": 0.5}),
        ("need images", {"mask": torch.ones(8, 8, dtype=torch.bool)}),
        ("give one", {"images": IMAGES}),
        ("have shape", {"images": IMAGES[:1], "strength": 0.5}),
        ("have shape", {"images": IMAGES[..., :4], "strength": 0.5}),
        (r"\(0, 1\]", {"images": IMAGES, "strength": 0.0}),
        (r"\(0, 1\]", {"images": IMAGES, "strength": 1.01}),
        ("truth values", {"images": IMAGES, "mask": torch.ones(8, 8)}),
        ("does not fit", {"images": IMAGES, "mask": torch.ones(5, 8, dtype=torch.bool)}),
    ],
)
def test_editing_refuses(refuses, match, options):
    with refuses(match):
        sample(make_model(), 2, steps=4, **options)


def test_default_tile():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert default_batch_size((1, 28, 28), cpu) == default_batch_size((3, 64, 64), cpu) == 8
    assert default_batch_size((3, 128, 128), cpu) == 1
    assert default_batch_size((3, 32, 32), cuda) == 512
    assert default_batch_size((3, 1024, 1024), cuda) == 1


def test_what_is_not_finite_is_a_failure():
    broken = make_model()
    broken.net.conv_out.bias.fill_(float("nan"))
    with pytest.raises(RunError, match="what tiny makes by dpmpp is not finite, image 0 from"):
        sample(broken, 2, steps=3, method="dpmpp")
    with pytest.raises(RunError, match="what tiny makes by obelm encoder is not finite"):
        ddim.encode(broken, torch.zeros(1, *SHAPE), steps=3)


class Fails(torch.nn.Module):
    """A network that does something to image ``which`` of a batch, below a time."""

    def __init__(self, below: int, which: int = 0, error: Exception | None = None) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.below, self.which, self.error = below, which, error

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        eps = 0.1 * x * self.scale
        if int(t[0]) >= self.below:
            return eps
        if self.error is not None:
            raise self.error
        bad = torch.arange(len(x)) == self.which
        return torch.where(bad.view(-1, 1, 1, 1), torch.inf, eps)


def failing(*how: Any) -> ddim.Model:
    return ddim.Model(Fails(*how), ddim.Schedule.linear(10), "eps", SHAPE, name="mine")


def test_the_first_image_that_is_not_finite_is_named_with_its_step():
    """Nodes 10, 8, 6, 4, 2: the network fails from the fourth step on, where t = 3."""
    model = failing(5, 1)
    with pytest.raises(RunError, match="ddim is not finite, image 1 from step 4 of 5 on: `ddim ch"):
        sample(model, 3, steps=5, batch_size=3)
    drawn = [e for e in generate(model, model.tableau("ddim:steps=5"), [7, 9, 4]) if e.outputs]
    assert drawn[0].sound is not None
    assert drawn[0].sound.tolist() == [5, 3, 5]
    with pytest.raises(RunError, match=r"^these is not finite, image 9 from step 4 of 5 on: "):
        drawn[0].check_finite("these")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_names_the_batch_size(error):
    model = failing(5, 0, error)
    for size, advice in ((2, "a smaller one takes less, and gives the im"), (1, "none smaller")):
        with pytest.raises(RunError, match=f"memory with a batch size of {size}: .*{advice}"):
            sample(model, 3, steps=5, batch_size=size)
    obelm, images = failing(100, 0, error), torch.zeros(2, *SHAPE)
    for codec in ("obelm", "implicit"):
        with pytest.raises(RunError, match="out of memory with a batch size of 2: "):
            ddim.encode(obelm, images, steps=3, codec=codec, batch_size=2)


def test_labels_and_nodes_may_be_written_in_any_way():
    for label in (1, np.int64(1), torch.tensor(1), [1, 1], torch.tensor([1, 1])):
        drawn = sample(CONDITIONAL, 2, steps=3, labels=label)
        assert torch.equal(drawn, sample(CONDITIONAL, 2, steps=3, labels=(1, 1)))
    assert torch.equal(sample(PLAIN, 1, nodes="20,5,0"), sample(PLAIN, 1, nodes=[20, 5, 0]))
