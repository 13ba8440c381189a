"""Models: what they are, opening them, drawing from them, and looking for faults."""
