"""Reading and writing trained models."""

from ddim.checkpoints.diffusers import ModelParts, read_folder, write_folder
from ddim.checkpoints.foreign import read_foreign
from ddim.checkpoints.record import Hints, Loaded

__all__ = ["Hints", "Loaded", "ModelParts", "read_folder", "read_foreign", "write_folder"]
