"""Samplers: tables of numbers, the loop that runs them, and their registry."""
