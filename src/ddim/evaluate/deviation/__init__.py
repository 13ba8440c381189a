"""Deviation of a sampler from the model's own solution."""
