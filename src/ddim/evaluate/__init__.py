"""Measurements of quality: distances between sets of images, solver error, likelihood."""
