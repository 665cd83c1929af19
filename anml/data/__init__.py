"""Images by class, and the episodes and trajectories drawn from them."""
