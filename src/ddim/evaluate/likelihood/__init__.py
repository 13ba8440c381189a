"""Likelihood: bounds and densities, in bits per dimension."""
