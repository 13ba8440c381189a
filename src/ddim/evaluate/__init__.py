"""Measurements of quality: Fréchet distances, and what a classifier makes of digits."""

from ddim.evaluate.digits import DigitReport, report_digits
from ddim.evaluate.frechet import FeatureStatistics, frechet_distance
from ddim.evaluate.lenet import LeNet, load_lenet

__all__ = [
    "DigitReport",
    "FeatureStatistics",
    "LeNet",
    "frechet_distance",
    "load_lenet",
    "report_digits",
]
