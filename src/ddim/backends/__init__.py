"""Who runs the network, where it is not torch."""
