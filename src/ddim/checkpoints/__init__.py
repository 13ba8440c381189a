"""Reading and writing trained models."""

from ddim.checkpoints.calibration import (
    CALIBRATED,
    CalibrationFile,
    read_calibration,
    write_calibration,
)
from ddim.checkpoints.diffusers import ModelParts, read_folder, write_folder
from ddim.checkpoints.foreign import read_foreign
from ddim.checkpoints.record import Hints, Loaded

__all__ = [
    "CALIBRATED",
    "CalibrationFile",
    "Hints",
    "Loaded",
    "ModelParts",
    "read_calibration",
    "read_folder",
    "read_foreign",
    "write_calibration",
    "write_folder",
]
