"""The plain learner, the oracle that faster ones are tested against: autograd and torch.optim.Adam, step by step."""

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from anml.evaluate.learner import OneTrajectory
from anml.evaluate.stages import classify
from anml.evaluate.trial import Trial


class ReferenceLearner(OneTrajectory):
    """Learns by any protocol, on any device."""

    name = "reference"

    def __init__(self, trial: Trial, learning_rate: float) -> None:
        super().__init__(trial)
        trained = [self.model.get_parameter(name).requires_grad_(True) for name in trial.trained_names]
        self.optimizer = torch.optim.Adam(trained, lr=learning_rate, betas=trial.betas, fused=True)

    def learn_each(self, first: int, last: int) -> None:
        """Take a step on each example."""
        for step in range(first, last):
            self._learn(slice(step, step + 1))

    def learn_batch(self, picks: Sequence[torch.Tensor]) -> None:
        """Take a step on one batch of the only run."""
        self._learn(picks[0])

    def _learn(self, examples: slice | torch.Tensor) -> None:
        trial = self.trial
        logits = classify(self.model, trial.train_inputs[examples], trial.stage)
        self.optimizer.zero_grad()
        cross_entropy(logits, trial.train_labels[examples]).backward()
        self.optimizer.step()
