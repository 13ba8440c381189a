"""Working inside other programs, and files for them."""
