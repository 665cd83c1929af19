"""Training: from a config and images to checkpoints."""
