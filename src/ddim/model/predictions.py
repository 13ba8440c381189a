"""Whether a network predicts the noise that it should, on images that it should know."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from ddim.base.errors import InputError
from ddim.model.condition import Condition
from ddim.model.drawing import batches, pick_batch_size
from ddim.model.inputs import take_images
from ddim.model.model import Model
from ddim.noise.draws import Noise

__all__ = ["PredictionCheck", "check_predictions"]


@dataclasses.dataclass(frozen=True)
class PredictionCheck:
    """How a network's ε compares with the true one at a node.

    The best prediction, E[ε | x], is orthogonal to what it misses, so that for a perfect network
    ``predicted + missed`` is 1 at every node, whatever the data.

    Attributes:
        k: the node.
        predicted: E‖ε_θ‖²/E‖ε‖².
        missed: E‖ε - ε_θ‖²/E‖ε‖²; 1 for a network that knows nothing.
    """

    k: int
    predicted: float
    missed: float

    @property
    def total(self) -> float:
        """``predicted + missed``: 1 for a perfect network."""
        return self.predicted + self.missed


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

    Args:
        model: the model; its clipping is left out.
        images: clean ones, shape (N, C, H, W) in [-1, 1]; 64 tell much already.
        condition: of the images, one row for each.
        nodes: where to look; five between 0.1·T and T if None.
        seed: of the noise.
        batch_size: images in one network call.

    Raises:
        InputError: images or a condition that do not fit, nodes outside 1..T.
    """
    images = take_images(model, images)
    given = Condition.of(condition).replace(clip=False).check(model, len(images))
    schedule, T = model.schedule, model.schedule.T
    if nodes is None:
        nodes = sorted({max(1, round(share * T)) for share in (0.1, 0.3, 0.5, 0.7, 0.95)})
    for k in nodes:
        if not 1 <= k <= T:
            raise InputError(f"a node to look at is in 1..{T}, not {k}")
    size = pick_batch_size(model, batch_size)
    found = []
    for k in nodes:
        level = schedule.level(k)
        predicted = missed = true = 0.0
        for positions, count in batches(len(images), size):
            eps = Noise(seed, positions, model.shape, model.device)(k)
            x = level.alpha * images[positions].to(model.device) + level.sigma * eps
            seen = model.denoiser(given[positions])(x, level).eps[:count].double()
            eps = eps[:count].double()
            predicted += seen.square().sum().item()
            missed += (eps - seen).square().sum().item()
            true += eps.square().sum().item()
        found.append(PredictionCheck(k, predicted / true, missed / true))
    return found
