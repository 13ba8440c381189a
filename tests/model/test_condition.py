"""What differs between images beside their noise."""

import pytest
import torch
from torch import nn

import ddim
from ddim.denoisers.exact import Gaussian
from ddim.model.condition import Condition

SCHEDULE = ddim.Schedule.linear(50, scaled=True)
SHAPE = (1, 4, 4)


class ShardEvent(nn.Module):
    """Takes for x0 what it is told of each image, halved where a second tensor says so."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[int] = []

    def forward(self, x, t, labels=None, *, shade, half=None):
        self.seen.append(len(shade))
        x0 = shade.view(-1, 1, 1, 1) * self.weight
        if half is not None:
            x0 = torch.where(half.view(-1, 1, 1, 1), x0 / 2, x0)
        if labels is not None:
            x0 = x0 + labels.view(-1, 1, 1, 1)
        return x0.expand_as(x).to(x.dtype)


def model(**options) -> ddim.Model:
    return ddim.Model(ShardEvent(), SCHEDULE, "x0", SHAPE, **options)


def shades(n):
    return torch.linspace(-1, 1, n)


@pytest.mark.parametrize("n", [1, 7, 16, 17])
def test_every_image_has_its_own_row(n):
    told = model()
    images = ddim.sample(told, n, steps=3, condition={"shade": shades(n)}, batch_size=8)
    assert torch.allclose(images[:, 0, 0, 0], shades(n), atol=1e-6)
    assert set(told.net.seen) == {8}  # the last batch is filled up, its condition too


def test_an_image_is_the_same_image_whatever_is_drawn_with_it():
    told = model()
    rows = {"shade": shades(10), "half": torch.arange(10) % 2 == 0}
    whole = ddim.sample(told, 10, steps=4, eta=1.0, condition=rows, batch_size=4)
    tableau = told.tableau("ddim:eta=1:steps=4")
    chosen = [7, 2, 9]
    events = ddim.generate(
        told, tableau, chosen, condition=Condition(tensors=rows)[chosen], batch_size=4
    )
    (part,) = [event.images for event in events if event.images is not None]
    assert torch.equal(part, whole[chosen])


def test_rows_that_are_not_one_an_image_are_refused(refuses):
    for wrong, what in (
        (shades(3), "3 rows"),
        (shades(8), "8 rows"),
        (torch.tensor(1.0), "0 rows"),
    ):
        with refuses(f"the condition shade has {what}, not one for each of 4 images"):
            ddim.sample(model(), 4, steps=2, condition={"shade": wrong})
    with refuses("the network of model takes no argument 'shadow'"):
        ddim.sample(model(), 4, steps=2, condition={"shadow": shades(4)})
    with refuses("the condition shade is a tensor with a row for each image, not a list"):
        ddim.sample(model(), 4, steps=2, condition={"shade": [1.0] * 4})
    with refuses("a condition is a ddim.Condition, or tensors by name, not a Tensor"):
        ddim.sample(model(), 4, steps=2, condition=shades(4))
    fixed = model(arguments={"shade": torch.zeros(1)})
    with refuses("model gives its network shade itself: take another name"):
        ddim.sample(fixed, 4, steps=2, condition={"shade": shades(4)})
    with refuses("the argument shade has 4 rows: what differs between images"):
        model(arguments={"shade": shades(4)})


def test_guidance_compares_with_null_values(refuses):
    rows = {"shade": shades(4) / 4}
    with refuses("guidance compares with a condition left out, and model was given none"):
        ddim.sample(model(), 4, steps=2, condition=rows, guidance=3.0)
    expected = 3 * rows["shade"] - 2 * 0.1  # null + 3·(given - null)
    for told, condition in (
        (model(null={"shade": torch.tensor([0.1])}), Condition(tensors=rows)),
        (model(), Condition(tensors=rows, null={"shade": torch.tensor([0.1])})),
        (
            model(null={"shade": torch.tensor([9.0])}),
            Condition(tensors=rows, null={"shade": torch.tensor([0.1])}),
        ),
    ):
        images = ddim.sample(told, 4, steps=3, condition=condition, guidance=3.0)
        assert torch.allclose(images[:, 0, 0, 0], expected, atol=1e-5)
    with refuses(r"the null value of shade has shape \(1, 2\), not \(\) as its rows"):
        ddim.sample(
            model(null={"shade": torch.ones(1, 2)}), 4, steps=2, condition=rows, guidance=2.0
        )


def test_what_has_no_null_value_stays():
    rows = {"shade": shades(4) / 4, "half": torch.tensor([True, False, True, False])}
    told = model(null={"shade": torch.tensor([0.0])})
    images = ddim.sample(told, 4, steps=2, condition=rows, guidance=2.0)
    expected = 2 * rows["shade"] * torch.tensor([0.5, 1, 0.5, 1])
    assert torch.allclose(images[:, 0, 0, 0], expected, atol=1e-6)


def test_labels_and_tensors_together():
    told = model(classes=3, null_label=0, null={"shade": torch.tensor([0.0])})
    images = ddim.sample(told, 4, steps=2, condition={"shade": shades(4)}, labels=[2, 1])
    assert torch.allclose(images[:, 0, 0, 0], shades(4) + torch.tensor([2, 1, 2, 1]), atol=1e-5)
    in_turn = ddim.sample(told, 4, steps=2, condition={"shade": torch.zeros(4)})
    assert torch.allclose(in_turn[:, 0, 0, 0], torch.tensor([0.0, 1, 2, 0]), atol=1e-5)


def test_encoding_and_decoding_take_it(tmp_path):
    told = model(null={"shade": torch.tensor([0.0])})
    images = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0)) - 0.5
    condition = Condition(tensors={"shade": shades(5)}, guidance=1.5)
    latents = ddim.encode(told, images, steps=6, condition=condition, batch_size=2)
    latents.save(tmp_path / "latents.safetensors")
    again = ddim.Latents.load(tmp_path / "latents.safetensors")
    assert torch.equal(again.condition.tensors["shade"], shades(5))
    assert again.condition.guidance == 1.5
    back = ddim.decode(told, again)
    assert (back - images).abs().max() < 1e-4
    other = ddim.decode(told, again, condition=Condition(tensors={"shade": -shades(5)}))
    assert (other - images).abs().max() > 0.1
    assert torch.equal(ddim.decode(told, again[[3, 1]]), back[[3, 1]])


def test_calibration_and_checks_take_it():
    class Exact(nn.Module):
        """The exact x0 of N(shade, 0.3²), by the lab's formula."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x, t, *, shade):
            level = SCHEDULE.level(int(t[0]) + 1)
            mean = shade.view(-1, 1, 1, 1).to(x)
            return Gaussian(0.0, 0.3)(x - level.alpha * mean, level).x0 + mean

    told = ddim.Model(Exact(), SCHEDULE, "x0", SHAPE)
    found = ddim.calibrate(told, 3, latents=4, moves=4, condition={"shade": shades(16)})
    assert found.errors["calibrated"][0] <= found.errors["ddim"][0]
    images = ddim.sample(told, 4, found.sampler, condition={"shade": shades(4)})
    assert images.flatten(1).mean(1).sub(shades(4)).abs().max() < 0.4
    data = shades(64)[:, None, None, None] + 0.3 * torch.randn(
        64, *SHAPE, generator=torch.Generator().manual_seed(1)
    )
    checks = ddim.check_predictions(told, data, condition=Condition(tensors={"shade": shades(64)}))
    assert all(abs(check.total - 1) < 0.15 for check in checks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": 1.5}, "labels are whole numbers, not 1.5"),
        ({"labels": "seven"}, "labels are whole numbers, not 'seven'"),
        ({"guidance": float("inf")}, "guidance must be a finite number"),
        ({"guidance": "2"}, "guidance is a number, not '2'"),
    ],
)
def test_what_is_no_condition(options, message, refuses):
    with refuses(message):
        Condition(**options)


def test_labels_are_repeated_in_turn(refuses):
    assert Condition(labels=3).rows(3).labels == (3, 3, 3)
    assert Condition(labels=torch.tensor([1, 2])).rows(5).labels == (1, 2, 1, 2, 1)
    assert Condition().rows(5).labels is None
    with refuses("3 labels were given for 2 images"):
        Condition(labels=[1, 2, 3]).rows(2)
    with refuses("0 labels were given for 2 images"):
        Condition(labels=[]).rows(2)


def test_it_slices_itself():
    given = Condition([3, 4, 5], {"a": torch.arange(3)}, guidance=2.0, clip=True)
    for part in (given[[2, 0]], given[torch.tensor([2, 0]).tolist()]):
        assert part.labels == (5, 3)
        assert part.tensors["a"].tolist() == [2, 0]
        assert (part.guidance, part.clip) == (2.0, True)
    assert given[1:].labels == (4, 5)


def test_what_has_no_effect_is_refused(refuses):
    rows = {"shade": shades(2)}
    with refuses("there is a null value for shadow, but no condition of that name"):
        ddim.sample(
            model(), 2, steps=2, condition=Condition(None, rows, null={"shadow": rows["shade"]})
        )
    with refuses("clip is true, false or None, not 'no'"):
        Condition(clip="no")
    shipped = ddim.load("mnist")
    for name in ("t", "labels", "sample"):
        with refuses(f"takes no argument '{name}'"):
            ddim.sample(shipped, 2, steps=2, condition={name: torch.zeros(2)})
    for name in ("x", "t"):
        with refuses(f"takes no argument '{name}'"):
            ddim.sample(model(), 2, steps=2, condition={"shade": shades(2), name: shades(2)})


def test_tensors_come_in_the_networks_precision():
    told = model().to(dtype=torch.float64)
    images = ddim.sample(told, 3, steps=2, condition={"shade": shades(3)})
    assert torch.allclose(images[:, 0, 0, 0], shades(3), atol=1e-6)
    seen = []

    class Dtypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x, t, *, shade, index):
            seen.append((shade.dtype, index.dtype))
            return x * self.weight

    rounded = ddim.Model(Dtypes(), SCHEDULE, "eps", SHAPE).to(dtype=torch.bfloat16)
    ddim.sample(rounded, 2, steps=1, condition={"shade": shades(2), "index": torch.arange(2)})
    assert set(seen) == {(torch.bfloat16, torch.int64)}


def test_a_dict_is_taken_for_tensors_at_every_door():
    told, rows = model(), {"shade": shades(2)}
    told.denoiser(rows)(torch.zeros(2, *SHAPE), SCHEDULE.level(5))
    list(ddim.generate(told, told.tableau("ddim:steps=1"), range(2), condition=rows))
    assert ddim.check_predictions(told, torch.zeros(2, *SHAPE), condition=rows, nodes=[5])


def test_rescale_needs_guidance_and_reaches_the_images(refuses):
    with refuses("rescale takes back what guidance adds"):
        Condition(rescale=0.7)
    with refuses("rescale is from 0 to 1, not 1.2"):
        Condition(guidance=3.0, rescale=1.2)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x, t, c):
            return x * (0.5 + 0.3 * c.view(-1, 1, 1, 1))

    made = ddim.Model(Two(), SCHEDULE, "eps", SHAPE, null={"c": torch.zeros(1)})
    tensors = {"c": torch.ones(2)}
    drawn = [
        ddim.sample(made, 2, steps=2, condition=Condition(None, tensors, 2.0, rescale=share))
        for share in (0.0, 1.0)
    ]
    plain = ddim.sample(made, 2, steps=2, condition=tensors)
    # The outputs are multiples of the state: all that guidance changes is their spread.
    assert torch.allclose(drawn[1], plain, atol=1e-5)
    assert not torch.allclose(drawn[0], plain, atol=1e-2)


def test_conditions_are_joined_row_by_row(refuses):
    one = Condition([1, 2], {"text": torch.ones(2, 3)}, guidance=2.0)
    two = Condition([0], {"text": torch.zeros(1, 3)}, guidance=2.0)
    joined = Condition.join([one, two])
    assert joined.labels == (1, 2, 0) and joined.guidance == 2.0
    assert torch.equal(joined.tensors["text"], torch.tensor([[1.0] * 3, [1.0] * 3, [0.0] * 3]))
    for other in (two.replace(guidance=3.0), two.replace(labels=None), two.replace(tensors={})):
        with refuses("differ in nothing but their rows"):
            Condition.join([one, other])
