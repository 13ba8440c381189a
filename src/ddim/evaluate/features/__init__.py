"""Features of images, and statistics of them that stream and merge."""
