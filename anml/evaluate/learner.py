"""What the protocols ask of whatever learns: one trajectory or many side by side, by any engine.

Each trajectory has an Adam of its own; unused output rows take part in the softmax.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch.nn.functional import cross_entropy

from anml.evaluate.prepared_run import PreparedRun
from anml.evaluate.stages import classify, predict

Logits = tuple[torch.Tensor, torch.Tensor]


class Scored(Protocol):
    """Trajectories of one shape; the order is run after run, learning rates innermost."""

    @property
    def name(self) -> str:
        """Which engine this is."""
        ...

    def logits(self) -> Iterator[Logits]:
        """Yield, trajectory by trajectory, the logits [n, outputs] of all training and of all test examples."""
        ...


class SequenceLearner(Scored, Protocol):
    """Learns one example at a time."""

    def learn_each(self, first: int, last: int) -> None:
        """Take one step on each of the training examples [first, last), in order."""
        ...


class BatchLearner(Scored, Protocol):
    """Learns in batches."""

    def learn_batch(self, picks: Sequence[torch.Tensor]) -> None:
        """Take one step on a batch of training examples, given their indexes int64 [B] for every run."""
        ...


class OneTrajectory:
    """A copy of one trial's model that learns; everything but its `trained_names` stays as it is."""

    def __init__(self, prepared: PreparedRun) -> None:
        self.prepared, self.model = prepared, copy.deepcopy(prepared.model)

    def logits(self) -> Iterator[Logits]:
        """Yield the logits of the only trajectory."""
        prepared = self.prepared
        train, test = (
            predict(self.model, inputs, prepared.stage) for inputs in (prepared.train_inputs, prepared.test_inputs)
        )
        yield train, test


# The plain learner, the oracle that faster ones are tested against: autograd and torch.optim.Adam, step by step.


class ReferenceLearner(OneTrajectory):
    """Learns by any protocol, on any device."""

    name = "reference"

    def __init__(self, prepared: PreparedRun, learning_rate: float) -> None:
        super().__init__(prepared)
        trained = [self.model.get_parameter(name).requires_grad_(True) for name in prepared.trained_names]
        self.optimizer = torch.optim.Adam(trained, lr=learning_rate, betas=prepared.betas, fused=True)

    def learn_each(self, first: int, last: int) -> None:
        """Take a step on each example."""
        for step in range(first, last):
            self._learn(slice(step, step + 1))

    def learn_batch(self, picks: Sequence[torch.Tensor]) -> None:
        """Take a step on one batch of the only run."""
        self._learn(picks[0])

    def _learn(self, examples: slice | torch.Tensor) -> None:
        prepared = self.prepared
        logits = classify(self.model, prepared.train_inputs[examples], prepared.stage)
        self.optimizer.zero_grad()
        cross_entropy(logits, prepared.train_labels[examples]).backward()
        self.optimizer.step()
