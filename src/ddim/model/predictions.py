"""Whether a network predicts the noise that it should, on images that it should know."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from ddim.base.display import Listing, shown
from ddim.base.errors import InputError
from ddim.denoisers.target import Target
from ddim.model.alternatives import better_conventions
from ddim.model.condition import Condition
from ddim.model.drawing import batches, pick_batch_size
from ddim.model.inputs import take_images
from ddim.model.model import Model
from ddim.noise.draws import Noise

__all__ = ["PredictionCheck", "check_predictions"]


SUM_TOLERANCE = 0.1
BETTER_THAN_NOTHING = 0.95


@shown
@dataclasses.dataclass(frozen=True)
class PredictionCheck:
    """How a network's ε compares with the true one at a node.

    The best prediction, E[ε | x], is orthogonal to what it misses, so that for a perfect network
    ``predicted + missed`` is 1 at every node, whatever the data.

    Attributes:
        k: the node.
        predicted: E‖ε_θ‖²/E‖ε‖².
        missed: E‖ε - ε_θ‖²/E‖ε‖²; 1 for a network that knows nothing.
        overshoot: RMS of what the predicted x0, unclipped, is more than the images:
            √(E‖x0_θ‖² - E‖x0‖²) of a pixel, 0 where it is less.
        better: the conventions under which the network denoises these images clearly better, the
            same at every node; empty where the sum is 1 everywhere, or nothing better was found.
    """

    k: int
    predicted: float
    missed: float
    overshoot: float = 0.0
    better: str = ""

    @property
    def total(self) -> float:
        """``predicted + missed``: 1 for a perfect network."""
        return self.predicted + self.missed

    @property
    def sound(self) -> bool:
        """Whether the sum is near 1, and the network better than one that knows nothing."""
        return abs(self.total - 1) <= SUM_TOLERANCE and self.missed < BETTER_THAN_NOTHING


def check_predictions(
    model: Model,
    images: Tensor,
    *,
    condition: Condition | None = None,
    nodes: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[PredictionCheck]:
    """Compare the network's ε with the true one on noised images.

    Where they do not fit, other conventions are tried
    (:func:`~ddim.model.alternatives.better_conventions`).

    Args:
        model: the model; its clipping is left out.
        images: clean ones, shape (N, C, H, W) in [-1, 1]; 64 tell much already.
        condition: of the images, one row for each.
        nodes: where to look; if None five between 0.1·T and T, and T, unless ε says nothing there.
        seed: of the noise.
        batch_size: images in one network call.

    Raises:
        InputError: images or a condition that do not fit, nodes outside 1..T.
    """
    images = take_images(model, images)
    given = Condition.of(condition).replace(clip=False).check(model, len(images))
    schedule, T = model.schedule, model.schedule.T
    if nodes is None:
        nodes = sorted({max(1, round(share * T)) for share in (0.1, 0.3, 0.5, 0.7, 0.95, 1)})
        nodes = [k for k in nodes if schedule.alpha[k] > 0 or model.target is not Target.EPS]
    for k in nodes:
        if not 1 <= k <= T:
            raise InputError(f"a node to look at is in 1..{T}, not {k}")
    size = pick_batch_size(model, batch_size)
    network, parts = model.predictor(), list(batches(len(images), size))

    def squares(number: int) -> tuple[float, ...]:
        """Of the predicted ε, of what it misses, of ε, and of x0 beyond the images'."""
        k, (positions, count) = nodes[number // len(parts)], parts[number % len(parts)]
        level = schedule.level(k)
        eps = Noise(seed, positions, model.shape, model.device)(k)
        clean = images[positions].to(model.device)
        x = level.alpha * clean + level.sigma * eps
        prediction = model.denoiser(given[positions], network=network)(x, level)
        seen, eps = prediction.eps[:count].double(), eps[:count].double()
        x0, clean = prediction.x0[:count].double(), clean[:count].double()
        excess = x0.square().sum() - clean.square().sum()
        sums = seen.square().sum(), (eps - seen).square().sum(), eps.square().sum(), excess
        return tuple(value.item() for value in sums)

    done = list(model.each(squares, len(nodes) * len(parts)))
    found = []
    for i, k in enumerate(nodes):
        every = zip(*done[i * len(parts) : (i + 1) * len(parts)], strict=True)
        predicted, missed, true, excess = (sum(values) for values in every)
        overshoot = max(0.0, excess / images.numel()) ** 0.5
        found.append(PredictionCheck(k, predicted / true, missed / true, overshoot))
    if all(check.sound for check in found):
        return Listing(found)
    better = better_conventions(model, images, given, seed)
    return Listing(dataclasses.replace(check, better=better) for check in found)
