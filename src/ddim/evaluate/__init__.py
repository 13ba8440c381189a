"""Measurements of quality: distances between sets of images, solver error, likelihood.

Features come from an extractor (:mod:`~ddim.evaluate.features`), go into statistics that stream
and merge (:mod:`~ddim.evaluate.statistics`), and are compared (:mod:`~ddim.evaluate.comparison`).
"""

from ddim.evaluate.bits import BitsPerDimension
from ddim.evaluate.bound import Elbo, elbo
from ddim.evaluate.comparison import Comparison, Spread, Summary, compare, summarise
from ddim.evaluate.digits import DigitReport, report_digits
from ddim.evaluate.features import Extractor, Identity, inception_extractor, lenet_extractor
from ddim.evaluate.frechet import FeatureStatistics, frechet_distance
from ddim.evaluate.lenet import LeNet, load_lenet
from ddim.evaluate.likelihood import dequantise, log_density, ode_bits
from ddim.evaluate.measure import collect, collect_data, shipped_statistics
from ddim.evaluate.metrics import (
    ClassChi2,
    PrecisionRecall,
    class_chi2,
    kid,
    precision_recall,
)
from ddim.evaluate.predictions import PredictionCheck, check_predictions
from ddim.evaluate.statistics import Statistics
from ddim.evaluate.teacher import (
    ErrorSummary,
    SolverErrors,
    image_errors,
    psnr,
    teacher_errors,
    teacher_tableau,
)
from ddim.evaluate.variance import analytic_tableau, eps_moments, optimal_variance

__all__ = [
    "BitsPerDimension",
    "ClassChi2",
    "Comparison",
    "DigitReport",
    "Elbo",
    "ErrorSummary",
    "Extractor",
    "FeatureStatistics",
    "Identity",
    "LeNet",
    "PrecisionRecall",
    "PredictionCheck",
    "SolverErrors",
    "Spread",
    "Statistics",
    "Summary",
    "analytic_tableau",
    "check_predictions",
    "class_chi2",
    "collect",
    "collect_data",
    "compare",
    "dequantise",
    "elbo",
    "eps_moments",
    "frechet_distance",
    "image_errors",
    "inception_extractor",
    "kid",
    "lenet_extractor",
    "load_lenet",
    "log_density",
    "ode_bits",
    "optimal_variance",
    "precision_recall",
    "psnr",
    "report_digits",
    "shipped_statistics",
    "summarise",
    "teacher_errors",
    "teacher_tableau",
]
