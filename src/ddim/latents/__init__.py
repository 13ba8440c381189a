"""Images to latents and back, and between latents."""
