"""The small digit classifier that ships with the package, and the features it measures with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddim.base.errors import InputError
from ddim.base.files import read_json
from ddim.checkpoints.tensors import read_safetensors

__all__ = ["FEATURES", "LENET_FOLDER", "LeNet", "extract", "lenet_config", "load_lenet"]

FEATURES = 64
LENET_FOLDER = Path(__file__).resolve().parents[2] / "shipped" / "lenet"


def _block(before: int, after: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        # The normalisation has a bias of its own.
        nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


class LeNet(nn.Module):
    """A convolutional classifier of 28x28 grey digits, with some 110,000 parameters.

    Convolutions and pooling, then two fully connected layers, as in LeNet-5; rectifiers, max
    pooling and batch normalisation are of later date.

    Reference:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document
        recognition, 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf

    Example:
        >>> model = LeNet().eval()
        >>> images = torch.zeros(2, 1, 28, 28)
        >>> model.features(images).shape, model(images).shape
        (torch.Size([2, 64]), torch.Size([2, 10]))
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(1, 16, 5),
            nn.MaxPool2d(2),
            _block(16, 32, 3),
            _block(32, 32, 3),
            nn.MaxPool2d(2),
            _block(32, 64, 3),
            _block(64, 64, 3),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 3 * 3, FEATURES, bias=False),
            nn.BatchNorm1d(FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, 10)

    def features(self, x: Tensor) -> Tensor:
        """The input of the last layer: (N, 64), none negative, of images (N, 1, 28, 28) in [-1, 1].

        Raises:
            InputError: The images have another shape.
        """
        if x.ndim != 4 or x.shape[1:] != (1, 28, 28):
            raise InputError(
                f"the digit classifier reads images of shape (N, 1, 28, 28), not {tuple(x.shape)}"
            )
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """The logits, (N, 10), of images (N, 1, 28, 28) in [-1, 1]."""
        return self.head(self.features(x))


def lenet_config() -> dict[str, Any]:
    """How the shipped classifier was trained and what it makes of the real test images."""
    return read_json(LENET_FOLDER / "config.json")


def load_lenet(folder: Path | str = LENET_FOLDER) -> LeNet:
    """The classifier of a folder, on the CPU, in evaluation mode and without gradients.

    Args:
        folder: what ``scripts/train_classifier.py --output`` wrote; the shipped one if not given.

    Raises:
        InputError: There is no such classifier.
    """
    model, path = LeNet(), Path(folder) / "model.safetensors"
    try:
        model.load_state_dict(read_safetensors(path)[0])
    except (InputError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{path} is no classifier that scripts/train_classifier.py wrote: {reason}"
        ) from None
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def extract(model: LeNet, images: Tensor, *, batch: int = 500) -> tuple[Tensor, Tensor]:
    """What a classifier sees in images: its features and its probabilities.

    Args:
        model: The classifier, in evaluation mode.
        images: (N, 1, 28, 28) in [-1, 1], on the device of the model.
        batch: How many images go through the network at a time.

    Returns:
        Features (N, 64), float32, and probabilities (N, 10), float64, both on the CPU.

    Raises:
        InputError: There are no images, they have another shape, or `batch` is not positive.
    """
    if batch < 1:
        raise InputError(f"batch must be at least 1, not {batch}")
    if len(images) == 0:
        raise InputError("no images to classify: at least one is needed")
    features = torch.cat([model.features(part.float()) for part in images.split(batch)])
    return features.cpu(), model.head(features).cpu().double().softmax(dim=1)
