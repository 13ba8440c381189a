"""Batches of a fixed size through the loop, from noise or from given states, either way.

The network always sees the same number of images at once, so image i is always image i.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Generator, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ddim.backends.graphs import CudaGraphs
from ddim.base.display import shown
from ddim.base.errors import InputError, RunError
from ddim.base.progress import bar
from ddim.base.ranks import here
from ddim.model.agreement import agree_on
from ddim.model.condition import Condition
from ddim.model.inputs import LOOK, take_images, take_mask, take_states, whole
from ddim.model.memory import enough_memory
from ddim.model.model import Model
from ddim.model.rollout import Rollout
from ddim.noise.draws import DeviceNoise, Noise
from ddim.samplers.loop import Step
from ddim.samplers.sampler import Sampler
from ddim.samplers.tableau import Tableau

__all__ = [
    "Drawn",
    "batches",
    "collect",
    "default_batch_size",
    "generate",
    "noised",
    "pick_batch_size",
    "sample",
    "step_count",
]


@shown
@dataclasses.dataclass(frozen=True)
class Drawn:
    """One step of one batch.

    Attributes:
        indices: the images of the batch that were asked for; the rest of it is padding.
        step: the step; its states have as many images as the batch.
        outputs: after the batch's last step all that the tableau returns, else nothing; each of
            shape (len(indices), C, H, W).
        sound: of each image the number of steps before anything predicted for it was not finite,
            shape (len(indices),); None where a graph took the steps.
    """

    indices: tuple[int, ...]
    step: Step
    outputs: tuple[Tensor, ...]
    sound: Tensor | None = None

    @property
    def images(self) -> Tensor | None:
        """The batch's images in [-1, 1] after its last step: the first of the outputs."""
        return self.outputs[0] if self.outputs else None

    def bare(self) -> Drawn:
        """The same without predictions, for whoever keeps it or sends it away."""
        return dataclasses.replace(self, step=dataclasses.replace(self.step, prediction=None))

    def check_finite(self, what: str) -> None:
        """Refuse outputs that are not numbers.

        Raises:
            RunError: beginning with ``what``, and naming the first image that is not finite.
        """
        finite = [output.isfinite().flatten(1).all(1) for output in self.outputs]
        if all(bool(each.all()) for each in finite):
            return
        first = int(torch.stack(finite).all(0).int().argmin())
        total, since = self.step.total, None if self.sound is None else int(self.sound[first])
        from_ = "" if since is None or since >= total else f" from step {since + 1} of {total} on"
        raise RunError(f"{what} is not finite, image {self.indices[first]}{from_}: {LOOK}")


def default_batch_size(shape: Sequence[int], device: torch.device, backend: str = "torch") -> int:
    """How many images pass through the network together.

    By ncnn 1, since it takes images one by one; else on a CPU 8 up to 64 × 64 pixels, and 1 above;
    on a GPU what fills it; of vectors up to 512 wherever they are, a call with 8 being hardly
    cheaper. Recorded with every output, because it decides the last bits of a convolution.
    """
    if backend == "ncnn":
        return 1
    if len(shape) == 1:
        return max(8, min(512, 2**18 // shape[0]))
    pixels = math.prod(shape[1:])
    if device.type == "cpu":
        return 8 if pixels <= 64 * 64 else 1
    return max(1, min(512, 512 * 32 * 32 // pixels))


def pick_batch_size(model: Model, batch_size: int | None) -> int:
    """How many images in one network call: as given, or :func:`default_batch_size` for None.

    Raises:
        InputError: below 1.
    """
    if batch_size is None:
        return default_batch_size(model.shape, model.device, model.runs_on)
    return whole("the batch size", batch_size, 1)


def batches(n: int, size: int) -> Iterator[tuple[list[int], int]]:
    """Positions 0..n-1 in groups of ``size``, and how many of each are real.

    The last group is filled up with its last position.

    Example:
        >>> list(batches(5, 3))
        [([0, 1, 2], 3), ([3, 4, 4], 2)]
    """
    for offset in range(0, n, size):
        wanted = list(range(offset, min(offset + size, n)))
        yield wanted + wanted[-1:] * (size - len(wanted)), len(wanted)


def generate(
    model: Model,
    tableau: Tableau,
    indices: Sequence[int],
    *,
    seed: int = 0,
    condition: Condition | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    start: Sequence[Tensor] | None = None,
    known: tuple[Tensor, Tensor] | None = None,
) -> Generator[Drawn, None, None]:
    """Run a tableau on images, yielding after every step of every batch.

    Image i depends on the seed, i, its condition and its start alone, given equal ``batch_size``,
    device and back end: the network always sees so many images, the last time filled up with
    padding. On a CPU batches run side by side. Their last steps come in order, all others as they
    happen; of several processes (:mod:`ddim.base.ranks`), which divide the batches among them, all
    are given the last steps, without predictions, and each the others of its own batches.

    By the back end ``cuda-graph`` a batch is one piece of work, and its last step, without a
    prediction, the only one that is yielded: to watch the others take ``torch``. Given states and
    images to keep are copied into the graph like conditions are, so that it runs them too.

    Args:
        model: the model.
        tableau: the sampler, or the encoder or decoder of a codec.
        indices: which images of the seed, such as ``range(64)``.
        seed: of the noise.
        condition: of these images, one row for each.
        batch_size: images in one network call; None for :func:`default_batch_size`.
        dtype: of the states.
        start: the tableau's initial states, each of shape (N, C, H, W); noise if None.
        known: images, shape (N, C, H, W), and a mask that broadcasts against them, true where
            they are to be kept: the rest is painted
            (:class:`~ddim.denoisers.inpainting.Inpaint`).

    Raises:
        InputError: numbers out of range, a condition or images that do not fit, or processes that
            are about to draw different images; at once, before the first step.
        RunError: out of memory, while it runs.
    """
    n = len(indices)
    if n < 1:
        raise InputError(f"the number of images must be at least 1, not {n}")
    size, seed = pick_batch_size(model, batch_size), whole("the seed", seed)
    given, network = Condition.of(condition).check(model, n), model.predictor()
    model.denoiser(given[[0]], network=network)
    Noise(seed, indices, model.shape)
    if start is None and len(tableau.initial) != 1:
        raise InputError(
            f"{tableau.method} starts from {len(tableau.initial)} states, which must be given"
        )
    first, last = tableau.initial[0].level, tableau.rows[-1].level
    if start is None and last.sigma * first.alpha > first.sigma * last.alpha:
        raise InputError(
            "nodes that rise encode images, which must be given; draw by some that fall"
        )
    states = None if start is None else [take_states(model, x, n) for x in start]
    kept = None
    if known is not None:
        clean = take_images(model, known[0], n)
        kept = clean, take_mask(known[1], clean)

    rollout = Rollout(model, tableau, given[[0]], dtype)
    graphs = network.engine if isinstance(network.engine, CudaGraphs) else None
    if graphs is not None:
        graphs.refresh()
    parts, several = list(batches(n, size)), here().count > 1

    def batch(number: int) -> Iterator[Drawn]:
        positions, count = parts[number]
        images = [int(indices[i]) for i in positions]
        begun = rollout.begin(positions, states, kept)
        if graphs is not None:
            tensors = DeviceNoise.words(seed, images), model.inputs(given[positions]), begun
            outputs = graphs.run(rollout.key, rollout.ends, tensors)
            steps = iter([(rollout.end(outputs), outputs, None)])
        else:
            denoiser = model.denoiser(given[positions], network=network)
            noise = Noise(seed, images, model.shape, model.device, dtype)
            steps = rollout.steps(denoiser, begun, noise)
        wanted = tuple(indices[i] for i in positions[:count])
        with enough_memory(size):
            for step, outputs, sound in steps:
                ends = tuple(output[:count] for output in outputs)
                drawn = Drawn(wanted, step, ends, sound if sound is None else sound[:count])
                yield drawn.bare() if ends and several else drawn

    agree_on(
        model,
        sampler=tableau.digest,
        seed=seed,
        images=[int(i) for i in indices],
        batch_size=size,
        dtype_of_the_states=str(dtype),
        condition=given,
        starting_states=states,
        images_to_keep=kept,
    )
    return model.side_by_side(batch, len(parts), ends=lambda drawn: bool(drawn.outputs))


def step_count(model: Model, tableau: Tableau, n: int, batch_size: int) -> int:
    """How many steps :func:`generate` yields for n images, in this process."""
    one = model.backend == CudaGraphs.name and model.runs_on == CudaGraphs.name
    shown = 1 if one else len(tableau.rows)
    parts = -(-n // batch_size)
    return parts + len(here().own(parts)) * (shown - 1)


def collect(
    model: Model,
    tableau: Tableau,
    drawn: Generator[Drawn, None, None],
    n: int,
    batch_size: int,
    label: str = "",
) -> tuple[Tensor, ...]:
    """All outputs of :func:`generate` on the CPU, each of shape (N, C, H, W).

    Args:
        model: the model, for messages.
        tableau: what runs.
        drawn: the steps.
        n: how many images there will be.
        batch_size: images in one network call.
        label: of a progress bar on stderr; none if empty.

    Raises:
        RunError: images that are not finite.
    """
    total = step_count(model, tableau, n, batch_size)
    with contextlib.closing(drawn):  # its threads end with an error here
        ends = [e.bare() for e in bar(drawn, total, label, quiet=not label) if e.outputs]
    for end in ends:
        end.check_finite(f"what {model.name} makes by {tableau.method}")
    every = zip(*(end.outputs for end in ends), strict=True)
    return tuple(torch.cat([part.cpu() for part in parts]) for parts in every)


def noised(
    model: Model, tableau: Tableau, images: Tensor, indices: Sequence[int], seed: int = 0
) -> Tensor:
    """Images at the level that a tableau starts from, α·x0 + σ·(the seed's noise of each).

    Args:
        model: the model.
        tableau: with one initial state.
        images: shape (N, C, H, W) in [-1, 1].
        indices: which images of the seed they are.
        seed: of the noise.

    Returns:
        on the images' device, shape (N, C, H, W).

    Raises:
        InputError: images of another shape, or not finite.
    """
    images = take_images(model, images)
    level = tableau.initial[0].level
    noise = Noise(seed, indices, model.shape, model.device, images.dtype)(0)
    return level.alpha * images + level.sigma * noise.to(images.device)


def sample(
    model: Model,
    n: int = 64,
    method: str | Sampler = "ddim",
    *,
    steps: int | None = None,
    nodes: str | Sequence[int] | None = None,
    eta: float | None = None,
    seed: int = 0,
    condition: Condition | Mapping[str, Tensor] | None = None,
    labels: int | Sequence[int] | Tensor | None = None,
    guidance: float | None = None,
    clip: bool | None = None,
    batch_size: int | None = None,
    noise: Tensor | None = None,
    images: Tensor | None = None,
    strength: float | None = None,
    mask: Tensor | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw images, or edit given ones.

    With ``images`` and ``strength`` they are noised to the level of the node nearest to
    strength · T among the sampler's, and brought back from there (SDEdit, Meng et al. 2021,
    https://arxiv.org/abs/2108.01073). With ``images`` and ``mask`` what the mask covers is painted
    and the rest kept. The two can be combined.

    Args:
        model: as :func:`ddim.load` returns it.
        n: how many.
        method: a :class:`~ddim.Sampler`, or one as text: ``dpmpp:order=3:steps=10``.
        steps: S, from 1 to T; None for 50, or T where it is smaller.
        nodes: a family's name, such as ``quadratic``, or the nodes themselves.
        eta: DDIM's η.
        seed: image i of a seed is always the same image.
        condition: what the images are drawn of, or its tensors by name, one row an image.
        labels: its labels: one class for all, or several that are repeated in turn; None lets a
            class-conditional model take all classes in turn.
        guidance: its classifier-free guidance scale; 1 is none.
        clip: clip the predicted x0 to [-1, 1]; None for the model's default.
        batch_size: images in one network call.
        noise: what to start from instead of the seed's noise, standard normal, shape (n, C, H, W).
        images: what to edit, shape (n, C, H, W) in [-1, 1].
        strength: in (0, 1]; how much of the way to noise the images go. 1 forgets them.
        mask: of truth values, broadcasting against ``images``; true where they are to be painted.
        progress: show a bar on stderr.

    Returns:
        float32 on the CPU, shape (n, C, H, W), nominally in [-1, 1].

    Raises:
        InputError: anything out of range or unknown; the message says what would be right.
        RunError: images that are not finite.

    Example:
        >>> import ddim
        >>> ddim.sample(ddim.load("mnist"), n=2, steps=2).shape
        torch.Size([2, 1, 28, 28])
    """
    sampler, n, seed = (
        Sampler.parse(method, steps, nodes, eta=eta),
        whole("n", n),
        whole("the seed", seed),
    )
    given = Condition.of(condition, labels, guidance, clip).check(model, n, every_class=True)
    if images is None and not (strength is None and mask is None):
        raise InputError("strength and mask need images to work on")
    if images is not None and strength is None and mask is None:
        raise InputError("images are edited by a strength, a mask, or both: give one")
    if noise is not None and strength is not None:
        raise InputError("with a strength images are noised by the seed: give no noise")
    if images is not None:
        images = take_images(model, images, n)
    known = None
    if mask is not None and images is not None:
        mask = take_mask(mask, images)
        if not bool(mask.any()) or bool(mask.all()):
            raise InputError(
                "the mask covers everything: leave the images out to draw anew"
                if bool(mask.any())
                else "the mask covers nothing: it is true where the images are to be painted"
            )
        known = images, ~mask
    tableau = model.tableau(sampler, strength)
    start = None
    if noise is not None:
        start = [tableau.start(take_states(model, noise, n))]
    elif images is not None and strength is not None:
        start = [noised(model, tableau, images, range(n), seed)]
    size = pick_batch_size(model, batch_size)
    drawn = generate(
        model,
        tableau,
        range(n),
        seed=seed,
        condition=given,
        batch_size=size,
        start=start,
        known=known,
    )
    label = tableau.method if progress else ""
    return collect(model, tableau, drawn, n, size, label)[0].to(torch.float32)
