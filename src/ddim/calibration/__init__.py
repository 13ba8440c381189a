"""The best few steps for one network."""
