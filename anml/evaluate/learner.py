"""A copy of a trial's model that learns with Adam: the plain way, one update at a time.

This is the oracle that faster evaluation engines are tested against.
"""

import copy

import torch
from torch.nn.functional import cross_entropy

from anml.evaluate.trial import Trial


class Learner:
    """Learns the trial's `trained_names` from its inputs; everything else stays as it is."""

    def __init__(self, trial: Trial, learning_rate: float) -> None:
        self.model, self.part = copy.deepcopy(trial.model), trial.part
        trained = [self.model.get_parameter(name).requires_grad_(True) for name in trial.trained_names]
        self.optimizer = torch.optim.Adam(trained, lr=learning_rate, fused=True)

    def learn(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Take one Adam step on inputs [n, ...] and labels [n]; unused output rows take part in the softmax."""
        loss = cross_entropy(self.model(inputs, part=self.part), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
