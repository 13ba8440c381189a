"""Reading and writing model files: this program's, diffusers', and others'."""
