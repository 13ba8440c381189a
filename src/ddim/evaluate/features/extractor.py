"""What images are measured by: a fixed network that turns each into a row of numbers."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.base.checksum import digest
from ddim.base.errors import InputError
from ddim.data.pixels import from_pixels, to_pixels
from ddim.evaluate.features.lenet import FEATURES, LENET_FOLDER, extract, load_lenet

__all__ = ["Extractor", "Identity", "Seen", "inception_extractor", "lenet_extractor"]

Seen = tuple[NDArray[np.float32], NDArray[np.float64] | None]
"""Features (N, D) of images, and the probabilities of their classes (N, K), if there are any."""

INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Of the TorchScript file that NVIDIA published with StyleGAN2-ADA."""

INCEPTION_WIDTH = 2048
INCEPTION_PREPROCESSING = (
    "8-bit pixels, grey repeated to 3 channels; resized to 299 x 299 and scaled by the network file"
)
LENET_PREPROCESSING = "8-bit pixels, x = pixels/127.5-1"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What decides the features of an image; statistics are compared only where this is equal.

    Attributes:
        name: What the extractor is called.
        preprocessing: What is done to an image before the network sees it.
        width: The number of features of an image, D.
        classes: The number of classes it tells apart, K; 0 if it is no classifier.
        sha256: Of the weights, in hexadecimal; empty where there is no file of them.

    Raises:
        InputError: Without a name, without features, or with a negative number of classes.
    """

    name: str
    preprocessing: str
    width: int
    classes: int = 0
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("an extractor needs a name, which stands before -FD in reports")
        if self.width < 1 or self.classes < 0:
            raise InputError(
                f"an extractor has at least 1 feature and 0 or more classes, "
                f"not {self.width} and {self.classes}"
            )

    @property
    def distance(self) -> str:
        """What the Fréchet distance is called: FID for the published Inception alone."""
        if self.sha256 == INCEPTION_SHA256 and self.preprocessing == INCEPTION_PREPROCESSING:
            return "FID"
        return f"{self.name}-FD"

    def difference(self, other: Identity) -> str | None:
        """In what way another is unlike this one, as the end of a sentence; None if it is not."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs:
                label = "weights" if field.name == "sha256" else field.name
                short = (str(v)[:12] if label == "weights" else v for v in (mine, theirs))
                return "{} {!r} on one side and {!r} on the other".format(label, *short)
        return None


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A feature function, with what must be known of it to compare its figures.

    Attributes:
        identity: What decides the features.
        function: From images (N, C, H, W), float, in [-1, 1], to features (N, D) and the
            probabilities of the classes (N, K), or None where there are no classes.

    Example:
        >>> means = Identity("means", "as they are", width=3)
        >>> extractor = Extractor(means, lambda x: (x.mean(dim=(2, 3)), None))
        >>> extractor(torch.zeros(5, 3, 8, 8))[0].shape
        (5, 3)
    """

    identity: Identity
    function: Callable[[Tensor], tuple[Tensor, Tensor | None]]

    def __call__(self, images: Tensor) -> Seen:
        """The features and the class probabilities of images.

        Args:
            images: (N, C, H, W), N at least 1, floating point, nominally in [-1, 1]. What lies
                outside is for the preprocessing to clamp.

        Returns:
            Features (N, D), float32, and probabilities (N, K), float64, or None.

        Raises:
            InputError: The images are none, or have another type or range; or the function
                returned something else than the identity says.
        """
        _check_images(images)
        with torch.no_grad():
            features, probabilities = self.function(images)
        count, identity = len(images), self.identity
        if features.shape != (count, identity.width):
            raise InputError(
                f"{identity.name} must return features of shape ({count}, {identity.width}), "
                f"not {tuple(features.shape)}"
            )
        given = None if probabilities is None else tuple(probabilities.shape)
        expected = (count, identity.classes) if identity.classes else None
        if given != expected:
            raise InputError(
                f"{identity.name} must return class probabilities {expected}, not {given}"
            )
        if not bool(features.isfinite().all()):
            raise InputError(f"{identity.name} returned features that are not finite")
        seen = None if probabilities is None else probabilities.cpu().double().numpy()
        return features.cpu().float().numpy(), seen


def lenet_extractor(
    device: torch.device | str = "cpu", folder: Path | str = LENET_FOLDER
) -> Extractor:
    """The shipped digit classifier, or another: 64 features, 10 classes, images (N, 1, 28, 28).

    Images are rounded to 8 bits first, so that a set measures the same before and after it is
    saved. The Fréchet distance on these features is LeNet-FD. It is never called FID: the two
    differ in scale and in what they see.

    Args:
        device: where it runs.
        folder: what ``scripts/train_classifier.py --output`` wrote, for other data than digits.

    Raises:
        InputError: There is no such classifier.
    """
    model = load_lenet(folder).to(device)
    identity = Identity(
        "LeNet", LENET_PREPROCESSING, FEATURES, 10, digest(Path(folder) / "model.safetensors")
    )

    def function(images: Tensor) -> tuple[Tensor, Tensor]:
        return extract(model, from_pixels(to_pixels(images.to(device))))

    return Extractor(identity, function)


def inception_extractor(path: Path | str, device: torch.device | str = "cpu") -> Extractor:
    """The Inception-v3 network that FID is defined by, from its published TorchScript file.

    The file is ``inception-2015-12-05.pt`` of NVIDIA's StyleGAN2-ADA, a translation of the
    TensorFlow graph that Heusel et al. used. It takes pixels from 0 to 255 in 3 channels, and does
    the resizing and the scaling of that graph itself. Nothing of the file is run unless its
    SHA-256 is the published one.

    References:
        M. Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash
        equilibrium, 2017, https://arxiv.org/abs/1706.08500
        T. Karras et al., Training generative adversarial networks with limited data, 2020,
        https://arxiv.org/abs/2006.06676

    Args:
        path: The file.
        device: Where to run it.

    Raises:
        InputError: There is no such file, or it is another.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(
            f"there is no file {path}: FID needs inception-2015-12-05.pt as published with "
            "NVIDIA's stylegan2-ada-pytorch"
        )
    found = digest(path)
    if found != INCEPTION_SHA256:
        raise InputError(
            f"{path} is not the published Inception file: its SHA-256 is {found[:12]}.., "
            f"not {INCEPTION_SHA256[:12]}.."
        )
    with warnings.catch_warnings():
        # torch deprecates TorchScript in favour of torch.export; the published file is in it.
        warnings.simplefilter("ignore")
        model = torch.jit.load(str(path), map_location=device).eval()

    def function(images: Tensor) -> tuple[Tensor, None]:
        pixels = to_pixels(images.to(device))
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        if pixels.shape[1] != 3:
            raise InputError(f"Inception reads images of 1 or 3 channels, not {pixels.shape[1]}")
        return model(pixels.contiguous(), return_features=True), None

    identity = Identity(
        "Inception", INCEPTION_PREPROCESSING, INCEPTION_WIDTH, sha256=INCEPTION_SHA256
    )
    return Extractor(identity, function)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or len(images) == 0:
        raise InputError(
            f"images must have shape (N, C, H, W) with N at least 1, not {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise InputError(f"images must be floating point in [-1, 1], not {images.dtype}")
    low, high = (float(v) for v in images.aminmax())
    if not abs(low) + abs(high) < float("inf"):
        raise InputError("images must be finite: there is a NaN or an infinity among them")
    # A sampler that does not clip goes a little beyond the range, on both sides.
    if low >= 0 and high > 2:
        raise InputError(
            f"images must lie in [-1, 1], not in [{low:.4g}, {high:.4g}]: scale pixels by "
            "x = pixels/127.5-1"
        )
