"""From a network's output to a prediction of the clean image and the noise."""
