"""What the protocols ask of whatever learns: one trajectory or many side by side, by any engine.

Each trajectory has an Adam of its own; unused output rows take part in the softmax.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from anml.evaluate.stages import predict
from anml.evaluate.trial import Trial

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

    def __init__(self, trial: Trial) -> None:
        self.trial, self.model = trial, copy.deepcopy(trial.model)

    def logits(self) -> Iterator[Logits]:
        """Yield the logits of the only trajectory."""
        trial = self.trial
        train, test = (predict(self.model, inputs, trial.stage) for inputs in (trial.train_inputs, trial.test_inputs))
        yield train, test
