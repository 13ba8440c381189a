"""Noise: the schedule, the nodes that samplers stop at, and the random draws."""
