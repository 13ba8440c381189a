"""Training: a configuration, a loop that yields its steps, and runs that survive being killed."""
