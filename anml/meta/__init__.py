"""Meta-learning: the gradient of an episode's outcome with respect to the weights it started from."""
