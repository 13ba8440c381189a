"""Denoising diffusion implicit models: train, sample in any number of steps, invert, measure.

Names are imported when first used, so that the command can answer without torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_WHERE = {
    "errors": ["InputError", "RunError"],
    "schedule": ["Level", "Schedule"],
    "nodes": ["NODES", "make_nodes"],
    "tableau": ["Row", "State", "Tableau"],
    "methods": ["METHODS", "make_tableau"],
    "target": ["Target"],
    "denoiser": ["Denoiser", "Guided", "Inpaint", "NetworkDenoiser", "Prediction"],
    "clipping": ["Clip", "Clipping", "Threshold"],
    "latent": ["CODECS", "slerp"],
    "convergence": ["measured_order"],
    "adaptive": ["Adaptive", "solve_adaptively"],
    "integrate": ["Step", "final", "integrate"],
    "noise": ["Noise"],
    "loss": ["diffusion_loss", "draw_nodes", "loss_weights"],
    "discrete": ["DiscreteStep", "discrete_loss", "sample_discrete"],
    "checkpoints": ["Hints"],
    "pipeline": ["Pipeline"],
    "loading": ["load", "shipped"],
    "model": ["Model"],
    "fitting": ["fit_conventions"],
    "sampler": ["make_sampler"],
    "trajectory": ["Trajectory", "follow"],
    "calibrate": ["CalibratedSampler", "calibrate"],
    "generate": ["Drawn", "generate", "sample"],
    "evaluate.predictions": ["PredictionCheck", "check_predictions"],
    "checks": ["Finding", "check_model"],
    "interop": ["diffusers_scheduler"],
    "export": ["Export", "export_scheduler"],
    "codec": ["decode", "encode"],
    "encoded": ["Latents", "interpolate"],
    "images": ["from_pixels", "grid", "save_image", "to_pixels"],
    "train.loop": ["TensorData", "TrainState", "TrainStep", "fit"],
    "train.config": ["TrainConfig"],
}
_EXPORTS = {name: module for module, names in _WHERE.items() for name in names}

__all__ = ["__version__", *_EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from ddim.adaptive import Adaptive as Adaptive
    from ddim.adaptive import solve_adaptively as solve_adaptively
    from ddim.calibrate import CalibratedSampler as CalibratedSampler
    from ddim.calibrate import calibrate as calibrate
    from ddim.checkpoints import Hints as Hints
    from ddim.checks import Finding as Finding
    from ddim.checks import check_model as check_model
    from ddim.clipping import Clip as Clip
    from ddim.clipping import Clipping as Clipping
    from ddim.clipping import Threshold as Threshold
    from ddim.codec import decode as decode
    from ddim.codec import encode as encode
    from ddim.convergence import measured_order as measured_order
    from ddim.denoiser import Denoiser as Denoiser
    from ddim.denoiser import Guided as Guided
    from ddim.denoiser import Inpaint as Inpaint
    from ddim.denoiser import NetworkDenoiser as NetworkDenoiser
    from ddim.denoiser import Prediction as Prediction
    from ddim.discrete import DiscreteStep as DiscreteStep
    from ddim.discrete import discrete_loss as discrete_loss
    from ddim.discrete import sample_discrete as sample_discrete
    from ddim.encoded import Latents as Latents
    from ddim.encoded import interpolate as interpolate
    from ddim.errors import InputError as InputError
    from ddim.errors import RunError as RunError
    from ddim.evaluate.predictions import PredictionCheck as PredictionCheck
    from ddim.evaluate.predictions import check_predictions as check_predictions
    from ddim.export import Export as Export
    from ddim.export import export_scheduler as export_scheduler
    from ddim.fitting import fit_conventions as fit_conventions
    from ddim.generate import Drawn as Drawn
    from ddim.generate import generate as generate
    from ddim.generate import sample as sample
    from ddim.images import from_pixels as from_pixels
    from ddim.images import grid as grid
    from ddim.images import save_image as save_image
    from ddim.images import to_pixels as to_pixels
    from ddim.integrate import Step as Step
    from ddim.integrate import final as final
    from ddim.integrate import integrate as integrate
    from ddim.interop import diffusers_scheduler as diffusers_scheduler
    from ddim.latent import CODECS as CODECS
    from ddim.latent import slerp as slerp
    from ddim.loading import load as load
    from ddim.loading import shipped as shipped
    from ddim.loss import diffusion_loss as diffusion_loss
    from ddim.loss import draw_nodes as draw_nodes
    from ddim.loss import loss_weights as loss_weights
    from ddim.methods import METHODS as METHODS
    from ddim.methods import make_tableau as make_tableau
    from ddim.model import Model as Model
    from ddim.nodes import NODES as NODES
    from ddim.nodes import make_nodes as make_nodes
    from ddim.noise import Noise as Noise
    from ddim.pipeline import Pipeline as Pipeline
    from ddim.sampler import make_sampler as make_sampler
    from ddim.schedule import Level as Level
    from ddim.schedule import Schedule as Schedule
    from ddim.tableau import Row as Row
    from ddim.tableau import State as State
    from ddim.tableau import Tableau as Tableau
    from ddim.target import Target as Target
    from ddim.train.config import TrainConfig as TrainConfig
    from ddim.train.loop import TensorData as TensorData
    from ddim.train.loop import TrainState as TrainState
    from ddim.train.loop import TrainStep as TrainStep
    from ddim.train.loop import fit as fit
    from ddim.trajectory import Trajectory as Trajectory
    from ddim.trajectory import follow as follow


def __getattr__(name: str) -> object:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'ddim' has no attribute {name!r}")
    value = getattr(import_module(f"ddim.{module}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps ``integrate`` and ``generate`` for the functions, not the modules of that name.

    Importing a module binds it here, whoever imports it; the function would be out of reach.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _EXPORTS):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
