"""Back ends on CUDA. Without a GPU: what a graph captures, by a stand-in that records it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import ddim
from ddim.backends import choice, graphs
from ddim.backends.compiled import Compiled
from ddim.backends.exactness import distance, tolerance
from ddim.backends.graphs import CudaGraphs
from ddim.base.errors import RunError
from ddim.denoisers.guidance import Guided
from ddim.denoisers.network import NetworkDenoiser
from ddim.model import drawing
from ddim.model.condition import Condition
from ddim.model.model import Model
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.draws import DeviceNoise
from ddim.noise.schedule import Level, Schedule

SHAPE = (1, 8, 8)
SCHEDULE = Schedule.linear(20, 0.01, 0.4)
METHODS = ("ddim", "ddpm", "ddim:eta=0.5", "dpmpp:order=3", "unipc", "heun")


def unet(classes: int | None = None) -> UNet:
    config = UNetConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=None if classes is None else classes + 1,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return UNet(config).requires_grad_(False).eval()


def unet_model(classes: int | None = None, **changes) -> Model:
    own = {"classes": classes, "null_label": classes, **changes}
    return Model(unet(classes), SCHEDULE, "eps", SHAPE, name="tiny", **own)


class Mixed(nn.Module):
    """A network of somebody else's, told a time and a tensor by name."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.factor = 1.0

    def forward(self, x: Tensor, t: Tensor, text: Tensor | None = None) -> Tensor:
        seen = self.factor * self.conv(x) + 0.01 * t.view(-1, 1, 1, 1)
        return seen if text is None else seen + text.mean(1).view(-1, 1, 1, 1)


def mixed_model(net: nn.Module | None = None) -> Model:
    net = (net or Mixed()).requires_grad_(False)
    return Model(net, SCHEDULE, "eps", SHAPE, null={"text": torch.zeros(1, 5)})


class Recorder:
    """A stand-in for CUDA: operations are recorded, and repeated on the same tensors.

    As on CUDA no Python of the function runs again, whatever was a number is what it was, and
    weights are those tensors that they were.
    """

    def __init__(self) -> None:
        self.made = 0

    def warm(self, run: graphs.Run) -> tuple[Tensor, ...]:
        return run()

    def record(self, run: graphs.Run) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        self.made += 1
        recorded = make_fx(run)()
        outputs = tuple(torch.empty_like(output) for output in recorded())

        def repeat() -> None:
            for output, new in zip(outputs, recorded(), strict=True):
                output.copy_(new)

        return repeat, outputs

    def turn(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def renew(self) -> None:
        pass


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    """Models are drawn from by graphs of a stand-in, by torch with the noise of a device."""
    made = Recorder()

    def chosen(name: str, net: nn.Module, *_: object) -> CudaGraphs:
        assert name == "cuda-graph"
        return CudaGraphs(net, made)

    def noise(seed, images, shape, device="cpu", dtype=torch.float32) -> DeviceNoise:
        return DeviceNoise(DeviceNoise.words(seed, list(images)), shape, dtype)

    monkeypatch.setattr("ddim.model.model.choose", chosen)
    monkeypatch.setattr("ddim.model.model.checksum", lambda net: 0)  # which on CUDA nobody asks for
    monkeypatch.setattr(drawing, "Noise", noise)
    return made


def assert_same(graphed: Model, draw: Callable[[Model], Tensor]) -> None:
    assert torch.equal(draw(graphed), draw(graphed.replace(backend="torch")))


# -- what is captured -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_graph_draws_what_torch_draws(recorder, method):
    """Several batches by one graph, the last of them padded, and another seed."""
    graphed = (unet_model() if method == "ddpm" else mixed_model()).replace(backend="cuda-graph")
    for seed in (0, 2**40 + 1):
        draw = functools.partial(ddim.sample, n=5, method=method, steps=3, batch_size=2, seed=seed)
        assert_same(graphed, draw)
    assert recorder.made == 1


@pytest.mark.parametrize("clip", [None, True])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_graph_is_told_labels_and_guidance(recorder, guidance, clip):
    graphed = unet_model(classes=3).replace(backend="cuda-graph")
    for labels in ([0, 1, 2, 0], [2, 2, 1, 3]):
        assert_same(
            graphed,
            lambda model, labels=labels: ddim.sample(
                model, 4, steps=3, labels=labels, guidance=guidance, clip=clip, batch_size=2
            ),
        )
    assert recorder.made == 1


def test_a_graph_is_told_tensors_and_takes_any_network(recorder):
    graphed = mixed_model().replace(backend="cuda-graph")
    for seed in (0, 1):
        text = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
        given = Condition(tensors={"text": text}, guidance=3.0, rescale=0.7)
        assert_same(
            graphed, lambda model, given=given: ddim.sample(model, 4, steps=3, condition=given)
        )
    assert recorder.made == 1


def test_a_graph_is_given_states_and_images_to_keep(recorder):
    graphed = mixed_model().replace(backend="cuda-graph")
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 2:6] = True
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand(3, *SHAPE, generator=generator)
        draw = functools.partial(ddim.sample, n=3, steps=4, seed=seed)
        assert_same(graphed, functools.partial(draw, noise=images))
        assert_same(graphed, functools.partial(draw, images=images, mask=mask))
        assert_same(graphed, functools.partial(draw, images=images, strength=0.5))
    assert recorder.made == 3


def test_a_codec_runs_by_graphs_there_and_back(recorder):
    graphed = mixed_model().replace(backend="cuda-graph")
    images = torch.rand(2, *SHAPE)
    for codec in ("ddim", "obelm"):
        latents = ddim.encode(graphed, images, steps=4, codec=codec)
        expected = ddim.encode(graphed.replace(backend="torch"), images, steps=4, codec=codec)
        assert all(map(torch.equal, latents.tensors, expected.tensors))


def test_one_graph_for_each_of_what_it_depends_on(recorder):
    graphed = mixed_model().replace(backend="cuda-graph")
    text = torch.randn(2, 5)
    changes = (
        {},
        {"steps": 3},
        {"batch_size": 1},
        {"method": "ddpm"},
        {"condition": {"text": text}},
        {"condition": {"text": text[:, :3]}},
        {"condition": {"text": text}, "guidance": 2.0},
        {"condition": {"text": text}, "guidance": 3.0},
        {"condition": Condition(tensors={"text": text}, guidance=3.0, rescale=0.5)},
        {"clip": True},
        {"noise": torch.randn(2, *SHAPE)},
    )
    assert len(changes) > graphs.KEPT
    for made, change in enumerate(changes, 1):
        for seed in range(2):
            ddim.sample(graphed, 2, **{"steps": 2, "batch_size": 2, **change}, seed=seed)
        assert recorder.made == made


def test_no_more_graphs_are_kept_than_it_says(recorder, monkeypatch):
    monkeypatch.setattr(graphs, "KEPT", 2)
    graphed = mixed_model().replace(backend="cuda-graph")
    for steps, made in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        ddim.sample(graphed, 1, steps=steps)
        assert recorder.made == made, steps


def test_only_the_last_step_is_yielded(recorder):
    graphed = mixed_model().replace(backend="cuda-graph")
    tableau = graphed.tableau("ddim:steps=3")
    drawn = list(drawing.generate(graphed, tableau, range(3), batch_size=2))
    assert [event.indices for event in drawn] == [(0, 1), (2,)]
    assert drawing.step_count(graphed, tableau, 3, 2) == 2
    for event in drawn:
        assert (event.step.index, event.step.total, event.step.prediction) == (2, 3, None)
        assert torch.equal(event.images, event.step.x[: len(event.indices)])
    assert drawing.step_count(graphed.replace(backend="torch"), tableau, 3, 2) == 6


def test_outputs_are_the_callers_own(recorder):
    graphed = mixed_model().replace(backend="cuda-graph")
    tableau = graphed.tableau("ddim:steps=2")
    first, second = drawing.generate(graphed, tableau, range(2), batch_size=1)
    assert not torch.equal(first.images, second.images)


def test_what_failed_is_not_a_number(recorder):
    class Fails(Mixed):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            failed = (x.amax((1, 2, 3)) > 2.5) & (t == 19)
            return torch.where(failed.view(-1, 1, 1, 1), torch.inf, super().forward(x, t))

    graphed = mixed_model(Fails()).replace(backend="cuda-graph")
    tableau = graphed.tableau("ddim:steps=3")

    def images(model: Model) -> Tensor:
        events = drawing.generate(model, tableau, range(8), batch_size=4)
        return torch.cat([event.images for event in events if event.images is not None])

    found, expected = images(graphed), images(graphed.replace(backend="torch"))
    assert 0 < found.isnan().flatten(1).any(1).sum() < 8
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_inference_mode_leaves_nothing_behind(recorder):
    graphed = mixed_model().replace(backend="cuda-graph")
    draw = functools.partial(ddim.sample, n=2, steps=2)
    with torch.inference_mode():
        first = draw(graphed)
    assert torch.equal(draw(graphed), first)
    assert recorder.made == 1


# -- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 3])
def test_weights_changed_in_place_are_seen_by_the_graph(recorder, classes):
    """Those of the times too, which torch computes once for all batches."""
    graphed = unet_model(classes).replace(backend="cuda-graph")
    draw = functools.partial(ddim.sample, n=2, steps=1)
    before = draw(graphed)
    for change in (lambda p: p.mul_(1.1), lambda p: p.data.add_(0.01)):
        for parameter in graphed.net.parameters():
            change(parameter)
        assert_same(graphed, draw)
    assert not torch.equal(draw(graphed), before)
    assert recorder.made == 1


def test_other_weights_are_other_graphs(recorder):
    graphed = unet_model().replace(backend="cuda-graph")
    draw = functools.partial(ddim.sample, n=2, steps=2)
    before = draw(graphed)
    graphed.net.conv_out.bias = nn.Parameter(torch.ones(1), requires_grad=False)
    assert_same(graphed, draw)
    assert not torch.equal(draw(graphed), before)
    assert recorder.made == 2
    graphed.net.to(memory_format=torch.channels_last)
    assert_same(graphed, draw)
    assert recorder.made == 3


def test_a_graph_in_use_goes_on_with_the_weights_that_it_has(recorder):
    graphed = mixed_model().replace(backend="cuda-graph")
    tableau = graphed.tableau("ddim:steps=2")
    expected = [e.images for e in drawing.generate(graphed, tableau, range(2), batch_size=1)]
    drawn = drawing.generate(graphed, tableau, range(2), batch_size=1)
    assert torch.equal(next(drawn).images, expected[0])
    graphed.net.conv.weight = nn.Parameter(torch.ones(1, 1, 3, 3), requires_grad=False)
    assert torch.equal(next(drawn).images, expected[1])
    again = drawing.generate(graphed, tableau, range(2), batch_size=1)
    assert not torch.equal(next(again).images, expected[0])


def test_an_attribute_that_became_another_is_seen(recorder):
    graphed = mixed_model().replace(backend="cuda-graph")
    draw = functools.partial(ddim.sample, n=2, steps=2)
    before = draw(graphed)
    graphed.net.factor = 0.5
    assert_same(graphed, draw)
    assert not torch.equal(draw(graphed), before)
    assert recorder.made == 2


# -- networks that cannot be captured --------------------------------------------------------------


class Reads(Mixed):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t) / max(1.0, x.abs().max().item())


class Branches(Mixed):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if (x > 1).any():
            x = x.clamp(-1, 1)
        return super().forward(x, t)


class Picks(Mixed):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t) + x[x > 0].mean()


class Counts(Mixed):
    calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x, t)


class Fills(Mixed):
    """A mask that is filled with a number is no host's business."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x[x > 1] = 1.0
        return super().forward(x, t)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Reads, r"no CUDA graph can be made of this Reads: it reads a number from a tensor"),
        (Branches, r"no CUDA graph can be made of this Branches: it reads a number"),
        (Picks, r"no CUDA graph can be made of this Picks: it picks what a mask covers"),
        (
            Counts,
            r"may remember its calls \(Counts.forward writes calls\), which a CUDA graph would",
        ),
    ],
)
def test_networks_that_need_the_host_are_refused(recorder, refuses, net, message):
    graphed = mixed_model(net()).replace(backend="cuda-graph")
    for _ in range(2):
        with refuses(f"{message}.*use the back end torch"):
            ddim.sample(graphed, 2, steps=2)
    assert recorder.made == 0
    assert ddim.sample(graphed.replace(backend="torch"), 2, steps=2).isfinite().all()


def test_a_mask_that_is_filled_is_captured(recorder):
    assert_same(
        mixed_model(Fills()).replace(backend="cuda-graph"),
        functools.partial(ddim.sample, n=2, steps=2),
    )


def test_what_fails_while_it_is_captured_is_one_line(recorder, refuses, monkeypatch):
    def fails(run: graphs.Run) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(recorder, "record", fails)
    with refuses("no CUDA graph can be made of this Mixed: 'operation not permitted"):
        ddim.sample(mixed_model().replace(backend="cuda-graph"), 2, steps=2)


def test_a_graph_whose_answer_is_not_torchs_is_refused(recorder, monkeypatch):
    record = recorder.record

    def wrong(run: graphs.Run) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        repeat, outputs = record(run)
        return lambda: (repeat(), [output.add_(1e-3) for output in outputs])[0], outputs

    monkeypatch.setattr(recorder, "record", wrong)
    with pytest.raises(RunError, match=r"CUDA graph's answer is .* away from torch's"):
        ddim.sample(mixed_model().replace(backend="cuda-graph"), 2, steps=2)


def test_what_the_network_itself_refuses_is_said_as_ever(recorder, refuses):
    class Narrow(Mixed):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.conv(x.flatten(1))

    with refuses("the network fails on a state"):
        ddim.sample(mixed_model(Narrow()).replace(backend="cuda-graph"), 2, steps=2)


# -- guidance in one call --------------------------------------------------------------------------


def test_guidance_in_one_call_is_guidance():
    """Labels and tensors, with and without rescaling: two calls and one agree to rounding."""
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    level = Level(0.6, 0.8, 7.0)
    text = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    cases = (
        (unet_model(3), Condition([0, 2, 1], guidance=4.0)),
        (unet_model(3), Condition([0, 2, 1], guidance=4.0, rescale=0.7)),
        (mixed_model(), Condition(tensors={"text": text}, guidance=4.0)),
    )
    for model, condition in cases:
        calls = []
        first = next(m for m in model.network.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_hook(lambda *_, seen=calls: seen.append(1))
        asked, free = (model.predictor().given(*part) for part in model.inputs(condition))
        rest = (condition.guidance, condition.rescale, model.target)
        two = Guided(asked, free, *rest)(x, level)
        in_two = len(calls)
        one = Guided(asked, free, *rest, together=True)(x, level)
        assert (in_two, len(calls)) == (2, 3)
        assert distance([one.x0, one.eps], [two.x0, two.eps]) < 1e-5
        assert one.x0.shape == x.shape
        assert one.var is None


def test_guidance_in_one_call_takes_the_variance_of_what_was_asked_for():
    def net(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([x, labels.view(-1, 1, 1, 1).expand_as(x).to(x)], dim=1)

    network = NetworkDenoiser(net)
    asked, free = (network.given(torch.full((2,), label)) for label in (0, 1))
    x = torch.ones(2, *SHAPE)
    for together in (False, True):
        found = Guided(asked, free, 3.0, together=together)(x, Level(0.6, 0.8, 7.0))
        assert found.var is not None
        assert torch.equal(found.var, torch.full_like(x, 0.5))


def test_a_cpu_calls_twice():
    model = unet_model(3)
    denoiser = model.denoiser(Condition([0], guidance=2.0))
    assert isinstance(denoiser, Guided)
    assert denoiser._both is None


# -- compile ---------------------------------------------------------------------------------------


@pytest.fixture
def eager_compile(monkeypatch) -> list[int]:
    """Dynamo without inductor, which takes a minute; how often it compiled."""
    made: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., object]:
        made.append(1)
        return graph.forward

    real = torch.compile

    def compile_(function, *, mode, **options):
        return real(function, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", compile_)
    return made


def test_compiled_networks_answer_for_every_shape(eager_compile):
    """More shapes and networks than dynamo keeps for one piece of code."""
    nets = [Mixed().requires_grad_(False) for _ in range(2)]
    for net in nets:
        engine = Compiled(net)
        for _ in range(2):
            for n in range(1, 7):
                x, t, text = torch.randn(n, *SHAPE), torch.arange(n), torch.randn(n, 5)
                with torch.no_grad():
                    assert torch.equal(engine(x, t), net(x, t))
                    assert torch.equal(engine(x, t, text=text), net(x, t, text=text))
    assert len(eager_compile) == 24


def test_compiled_networks_follow_their_weights(eager_compile):
    net = Mixed().requires_grad_(False)
    engine, x, t = Compiled(net), torch.randn(2, *SHAPE), torch.arange(2)
    with torch.no_grad():
        engine(x, t)
        net.conv.weight.mul_(2)
        assert torch.equal(engine(x, t), net(x, t))
        net.conv.weight = nn.Parameter(torch.ones(1, 1, 3, 3), requires_grad=False)
        assert torch.equal(engine(x, t), net(x, t))


def test_compiled_networks_draw(eager_compile, monkeypatch):
    """A UNet by its ``conditioned``, any other by itself, with labels, tensors and guidance."""
    # On a CPU ours asks for the number of threads, which cannot be compiled.
    monkeypatch.setattr("ddim.nets.unet.silu", nn.functional.silu)
    monkeypatch.setattr("ddim.model.model.choose", lambda name, net, *_: Compiled(net))
    text = Condition(tensors={"text": torch.randn(2, 5)}, guidance=2.0)
    for model, options in (
        (unet_model(3), {"labels": [1, 2], "guidance": 2.0}),
        (mixed_model(), {"condition": text}),
    ):
        draw = functools.partial(ddim.sample, n=2, steps=2, **options)
        torch.testing.assert_close(
            draw(model.replace(backend="compile")), draw(model.replace(backend="torch"))
        )


def test_networks_that_cannot_be_compiled_are_refused(refuses, eager_compile, monkeypatch):
    monkeypatch.setattr("ddim.model.model.choose", lambda name, net, *_: Compiled(net))

    class Breaks(Mixed):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return super().forward(x, t)

    model = mixed_model(Breaks()).replace(backend="compile")
    with refuses("torch cannot compile this Breaks: .*use the back end torch"):
        ddim.sample(model, 1, steps=1)


def test_a_compiled_network_whose_answer_is_not_torchs_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *x: function(*x) + 1e-3)
    with pytest.raises(RunError, match=r"compiled network's answer is .* away from torch's"):
        Compiled(Mixed())(torch.randn(2, *SHAPE), torch.arange(2))


@pytest.mark.slow
def test_inductor_compiles_the_network(monkeypatch):
    """On a CPU, where nobody asks for it; but its graph is the one that CUDA compiles."""
    net = Mixed().requires_grad_(False)
    x, t = torch.randn(2, *SHAPE), torch.arange(2)
    with torch.no_grad():
        torch.testing.assert_close(Compiled(net)(x, t), net(x, t))


# -- which back end, and how close -----------------------------------------------------------------


def test_they_are_for_cuda(refuses):
    for name in ("cuda-graph", "compile"):
        with refuses(f"the back end {name} is for CUDA, not for cpu"):
            unet_model().with_backend(name)


def test_on_cuda_auto_is_torch_and_the_others_are_refused(refuses):
    cuda, net = torch.device("cuda"), unet()
    assert choice.choose("auto", net, SHAPE, cuda) is None
    assert isinstance(choice.choose("compile", net, SHAPE, cuda), Compiled)
    for name in ("ncnn", "openvino"):
        with refuses(f"the back end {name} is for the CPU, not for cuda"):
            choice.choose(name, net, SHAPE, cuda)


def test_distance():
    nan, x = torch.tensor([torch.nan, 1.0]), torch.tensor([2.0, 1.0])
    assert distance([nan], [nan]) == 0
    assert distance([x + 0.5], [x]) == 0.25
    assert distance([x, x + 0.5], [x, x]) == 0.25
    assert not distance([nan], [x]) <= 1
    assert not distance([x], [nan]) <= 1
    assert not distance([nan, x], [x, x]) <= 1


def test_closeness_is_that_of_the_network():
    assert tolerance(Mixed()) == 1e-5
    assert tolerance(Mixed().bfloat16()) == 5e-2
    assert tolerance(Mixed().double()) < 1e-10


def test_images_in_motion_need_their_steps(monkeypatch, tmp_path, refuses):
    from ddim.cli.groups import ModelOptions
    from ddim.cli.sample import main

    model = unet_model()
    graphed = dataclasses.replace(model, backend="torch")
    monkeypatch.setattr(type(graphed), "runs_on", "cuda-graph")
    monkeypatch.setattr(ModelOptions, "open", lambda *_: graphed)
    with refuses("x.webp shows the steps, of which a CUDA graph gives none but the last"):
        main(["--output", str(tmp_path / "x.webp")])


# -- on a GPU --------------------------------------------------------------------------------------

gpu = pytest.mark.gpu


@pytest.fixture
def exact() -> Iterator[None]:
    """Convolutions in float32, by the same algorithm at every call."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32, cudnn.deterministic = False, True
    yield
    cudnn.allow_tf32, cudnn.deterministic = before


def on_cuda(model: Model, backend: str) -> Model:
    return model.to("cuda").with_backend(backend)


@gpu
@pytest.mark.parametrize("method", METHODS)
def test_gpu_a_graph_draws_what_torch_draws(exact, method):
    graphed = on_cuda(unet_model(), "cuda-graph")
    for seed in (0, 1):
        draw = functools.partial(ddim.sample, n=5, method=method, steps=5, batch_size=2, seed=seed)
        assert_same(graphed, draw)


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_a_graph_draws_the_shipped_digits(exact, dtype):
    graphed = ddim.load("mnist", device="cuda").to(dtype=dtype).with_backend("cuda-graph")
    assert_same(graphed, functools.partial(ddim.sample, n=20, steps=10, batch_size=16))


@gpu
@pytest.mark.parametrize("backend", ["cuda-graph", "compile"])
def test_gpu_classes_with_guidance(exact, backend):
    model = on_cuda(unet_model(3), backend)
    draw = functools.partial(ddim.sample, n=4, steps=4, labels=[0, 1, 2, 1], guidance=2.5)
    expected = draw(model.replace(backend="torch"))
    torch.testing.assert_close(draw(model), expected, rtol=0, atol=1e-4)
    if backend == "cuda-graph":
        assert_same(model, draw)


@gpu
def test_gpu_guidance_is_one_call_and_agrees_with_two(exact):
    model = unet_model(3).to("cuda")
    denoiser = model.denoiser(Condition([0, 1], guidance=3.0))
    assert isinstance(denoiser, Guided)
    x, level = torch.randn(2, *SHAPE, device="cuda"), Level(0.6, 0.8, 7.0)
    two = Guided(denoiser.conditional, denoiser.unconditional, 3.0, 0.0, model.target)
    assert distance(denoiser(x, level)[:2], two(x, level)[:2]) < 1e-5


@gpu
def test_gpu_other_networks_conditions_and_given_states(exact):
    graphed = on_cuda(mixed_model(), "cuda-graph")
    text = torch.randn(3, 5)
    given = Condition(tensors={"text": text}, guidance=2.0)
    draw = functools.partial(ddim.sample, n=3, steps=4, condition=given)
    images, mask = torch.rand(3, *SHAPE), torch.zeros(*SHAPE, dtype=torch.bool)
    mask[:, 2:6] = True
    assert_same(graphed, draw)
    assert_same(graphed, functools.partial(draw, noise=images))
    assert_same(graphed, functools.partial(draw, images=images, mask=mask))


@gpu
def test_gpu_thresholding_is_captured(exact):
    graphed = on_cuda(unet_model(clipping=ddim.Clipping("threshold")), "cuda-graph")
    assert_same(graphed, functools.partial(ddim.sample, n=3, steps=4))


@gpu
def test_gpu_weights_changed_in_place_and_replaced(exact):
    graphed = on_cuda(unet_model(), "cuda-graph")
    draw = functools.partial(ddim.sample, n=2, steps=3)
    drawn = [draw(graphed)]
    with torch.no_grad():
        for parameter in graphed.net.parameters():
            parameter.mul_(1.1)
    assert_same(graphed, draw)
    drawn.append(draw(graphed))
    bias = graphed.net.conv_out.bias
    graphed.net.conv_out.bias = nn.Parameter(torch.ones_like(bias), requires_grad=False)
    assert_same(graphed, draw)
    drawn.append(draw(graphed))
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


@gpu
@pytest.mark.parametrize("backend", ["torch", "cuda-graph", "compile"])
def test_gpu_an_image_is_the_same_in_every_batch(exact, backend):
    model = on_cuda(unet_model(), backend)
    draw = functools.partial(ddim.sample, model, steps=3, method="ddpm", batch_size=16)
    many = draw(64)
    assert torch.equal(draw(1), many[:1])
    assert torch.equal(draw(17), many[:17])


@gpu
@pytest.mark.parametrize("net", [Reads, Branches, Picks, Counts])
def test_gpu_networks_that_need_the_host(refuses, net):
    """And CUDA goes on as before."""
    graphed = on_cuda(mixed_model(net()), "cuda-graph")
    with refuses("use the back end torch"):
        ddim.sample(graphed, 2, steps=2)
    assert_same(on_cuda(unet_model(), "cuda-graph"), functools.partial(ddim.sample, n=2, steps=2))


@gpu
def test_gpu_what_only_cuda_refuses(refuses):
    """A tensor made of a number of the host's is copied to the device."""

    class Makes(Mixed):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x, t) * torch.tensor([0.5], device=x.device)

    with refuses("no CUDA graph can be made of this Makes"):
        ddim.sample(on_cuda(mixed_model(Makes()), "cuda-graph"), 2, steps=2)
    assert ddim.sample(mixed_model(Makes()).to("cuda"), 2, steps=2).isfinite().all()


@gpu
def test_gpu_graphs_share_their_memory_and_come_in_any_order(exact):
    graphed = on_cuda(unet_model(), "cuda-graph")
    draws = [functools.partial(ddim.sample, n=2, steps=steps) for steps in (2, 3, 5)]
    expected = [draw(graphed.replace(backend="torch")) for draw in draws]
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        for i in order:
            assert torch.equal(draws[i](graphed), expected[i])


@gpu
def test_gpu_the_memory_of_graphs_comes_back(exact):
    """However often the weights are others."""
    graphed = on_cuda(unet_model(), "cuda-graph")
    taken = []
    for _ in range(4):
        graphed.net.conv_out.bias = nn.Parameter(torch.ones(1, device="cuda"), requires_grad=False)
        for steps in (2, 3):
            assert_same(graphed, functools.partial(ddim.sample, n=2, steps=steps))
        torch.cuda.synchronize()
        taken.append(torch.cuda.memory_allocated())
    assert taken[-1] <= taken[1]


@gpu
def test_gpu_a_stream_of_the_callers_own(exact):
    graphed = on_cuda(unet_model(), "cuda-graph")
    draw = functools.partial(ddim.sample, n=2, steps=3)
    expected = draw(graphed)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert torch.equal(draw(graphed), expected)
    assert torch.equal(draw(graphed), expected)


@gpu
def test_gpu_compiled_networks_are_torchs_to_rounding(exact):
    model = ddim.load("mnist", device="cuda")
    draw = functools.partial(ddim.sample, n=8, steps=10)
    torch.testing.assert_close(draw(model.with_backend("compile")), draw(model), rtol=0, atol=1e-3)


@gpu
def test_gpu_opened_models_have_their_weights_in_channels_last():
    weight = ddim.load("mnist", device="cuda").net.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@gpu
def test_gpu_auto_is_torch():
    assert ddim.load("mnist", device="cuda").runs_on == "torch"
