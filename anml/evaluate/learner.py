"""What learns in an evaluation: the interface of all learners, and the plain one that the fast ones are tested against.

Each trajectory has its own Adam; unused output rows take part in the softmax.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch.nn.functional import cross_entropy

from anml.evaluate.prepared_run import PreparedRun
from anml.evaluate.stages import Weights, classify, predict
from anml.models.meta_model import MetaModel

# Of all training and of all test examples of a run, each [n, outputs].
Logits = tuple[torch.Tensor, torch.Tensor]


class Predictor(Protocol):
    """Trajectories of one shape, in this order: run after run, learning rates innermost."""

    def logits(self) -> Iterator[Logits]:
        """Yield the logits of each trajectory."""
        ...


class SequenceLearner(Predictor, Protocol):
    """Learns one example at a time."""

    def learn_each(self, first: int, last: int) -> None:
        """Take one step on each of the training examples [first, last), in order."""
        ...


class BatchLearner(Predictor, Protocol):
    """Learns in batches."""

    def learn_batch(self, picks: Sequence[torch.Tensor]) -> None:
        """Take one step on a batch of training examples, given their indexes int64 [B] for every run."""
        ...


def predict_run(prepared: PreparedRun, model: MetaModel, weights: Weights | None = None) -> Logits:
    """Return a model's logits of all examples of a run; `weights` replace parameters of these names."""
    train = predict(model, prepared.train_inputs, prepared.stage, weights)
    return train, predict(model, prepared.test_inputs, prepared.stage, weights)


class Unlearned:
    """The models as they were prepared, for protocols that learn nothing."""

    def __init__(self, prepared_runs: Sequence[PreparedRun]) -> None:
        self.prepared_runs = prepared_runs

    def logits(self) -> Iterator[Logits]:
        return (predict_run(prepared, prepared.model) for prepared in self.prepared_runs)


class OneTrajectory:
    """A copy of one prepared model that learns; everything but its `trained_names` stays as it is."""

    def __init__(self, prepared: PreparedRun) -> None:
        self.prepared, self.model = prepared, copy.deepcopy(prepared.model)

    def logits(self) -> Iterator[Logits]:
        yield predict_run(self.prepared, self.model)


class ReferenceLearner(OneTrajectory):
    """Learns by autograd and torch.optim.Adam, step by step: by any protocol, on any device."""

    def __init__(self, prepared: PreparedRun, lr: float) -> None:
        super().__init__(prepared)
        trained = [self.model.get_parameter(name).requires_grad_(True) for name in prepared.trained_names]
        self.optimizer = torch.optim.Adam(trained, lr=lr, betas=prepared.betas, fused=True)

    def learn_each(self, first: int, last: int) -> None:
        for step in range(first, last):
            self._step(slice(step, step + 1))

    def learn_batch(self, picks: Sequence[torch.Tensor]) -> None:
        self._step(picks[0])

    def _step(self, examples: slice | torch.Tensor) -> None:
        prepared = self.prepared
        logits = classify(self.model, prepared.train_inputs[examples], prepared.stage)
        self.optimizer.zero_grad()
        cross_entropy(logits, prepared.train_labels[examples]).backward()
        self.optimizer.step()
