# The public names of `ddim`, and where each is. `__init__.py` reads this table.

import ddim.shards as shards  # noqa: F401
from ddim.base.errors import InputError as InputError
from ddim.base.errors import RunError as RunError
from ddim.calibration.calibration import calibrate as calibrate
from ddim.checkpoints.record import Hints as Hints
from ddim.data.pixels import from_pixels as from_pixels
from ddim.data.pixels import grid as grid
from ddim.data.pixels import save_image as save_image
from ddim.data.pixels import to_pixels as to_pixels
from ddim.data.sheet import show as show
from ddim.denoisers.clipping import Clipping as Clipping
from ddim.denoisers.prediction import Denoiser as Denoiser
from ddim.denoisers.prediction import Prediction as Prediction
from ddim.denoisers.target import Target as Target
from ddim.interop.diffusers import diffusers_scheduler as diffusers_scheduler
from ddim.interop.export import export_scheduler as export_scheduler
from ddim.interop.onnx import export_onnx as export_onnx
from ddim.latents.coding import decode as decode
from ddim.latents.coding import encode as encode
from ddim.latents.record import Latents as Latents
from ddim.latents.slerp import interpolate as interpolate
from ddim.latents.slerp import slerp as slerp
from ddim.model.condition import Condition as Condition
from ddim.model.doctor import check_model as check_model
from ddim.model.drawing import generate as generate
from ddim.model.drawing import sample as sample
from ddim.model.fitting import fit_conventions as fit_conventions
from ddim.model.model import Model as Model
from ddim.model.names import shipped as shipped
from ddim.model.opening import load as load
from ddim.model.predictions import check_predictions as check_predictions
from ddim.noise.draws import Noise as Noise
from ddim.noise.nodes import make_nodes as make_nodes
from ddim.noise.schedule import Level as Level
from ddim.noise.schedule import Schedule as Schedule
from ddim.samplers.lookup import METHODS as METHODS
from ddim.samplers.loop import final as final
from ddim.samplers.loop import integrate as integrate
from ddim.samplers.methods.grid import Grid as Grid
from ddim.samplers.order import measured_order as measured_order
from ddim.samplers.registry import method as method
from ddim.samplers.sampler import Sampler as Sampler
from ddim.samplers.sampler import make_tableau as make_tableau
from ddim.samplers.tableau import Row as Row
from ddim.samplers.tableau import Tableau as Tableau
from ddim.train.batches import TensorData as TensorData
from ddim.train.config import TrainConfig as TrainConfig
from ddim.train.loop import TrainState as TrainState
from ddim.train.loop import fit as fit

__version__: str

def __dir__() -> list[str]: ...
