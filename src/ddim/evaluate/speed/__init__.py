"""How fast a model draws on this machine, beside other programs with the same weights."""
