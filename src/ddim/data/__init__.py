"""Sets of images, the files they come in, and pixels."""
