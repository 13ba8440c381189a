"""Reading and writing trained models."""

from ddim.checkpoints.diffusers import ModelParts, read_folder, write_folder

__all__ = ["ModelParts", "read_folder", "write_folder"]
