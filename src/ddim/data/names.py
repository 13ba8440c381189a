"""What sets of images are called. No torch here."""

__all__ = ["ALIASES", "DATASETS", "SPLITS"]

DATASETS = ("mnist", "fashion-mnist", "cifar10", "celeba", "digits")
"""Sets that are opened by name."""
ALIASES = {"fashion": "fashion-mnist"}
SPLITS = ("train", "test")
"""The parts of a set."""
