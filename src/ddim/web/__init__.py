"""The local page: what serves it, and what it is made of."""
