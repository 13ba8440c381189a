"""Many samplers of one model, measured side by side, resumable."""
