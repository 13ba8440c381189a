"""The command. Thin: nothing imports it."""
