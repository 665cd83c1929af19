"""Baselines: heads that learn without a gradient, from what the output layer of a model receives.

Each takes one example after the other, in any order, and keeps only what `kept` lists. Most keep sums over the
examples, so that nothing is forgotten and no order matters; `sums` says how many powers of the inputs are summed.
Everything is float64. What is not a sum (knn, logistic) keeps all examples: i.i.d. probes of a representation.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import normalize, one_hot

from anml.config.evaluation import EvalConfig
from anml.evaluate.learner import Logits
from anml.evaluate.prepared_run import PreparedRun


class Baseline(ABC):
    """A head for inputs float64 [n, d] of so many classes."""

    def __init__(self, classes: int, features: int, config: EvalConfig, device: torch.device) -> None:
        self.config = config
        self.counts: torch.Tensor = torch.zeros(classes, dtype=torch.float64, device=device)

    @abstractmethod
    def learn(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Learn examples [n, d] with labels int64 [n]: as if they came one after the other."""

    @abstractmethod
    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits [n, classes]; those of classes that are not learned yet may be anything."""

    @property
    @abstractmethod
    def kept(self) -> Sequence[torch.Tensor]:
        """What is kept from one example to the next."""


class Sums(Baseline):
    """Keeps the number of examples of each class, and the sum of their inputs [classes, d]."""

    def __init__(self, classes: int, features: int, config: EvalConfig, device: torch.device) -> None:
        super().__init__(classes, features, config, device)
        self.sums = self.counts.new_zeros(classes, features)

    def learn(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.counts += one_hot(labels, len(self.counts)).sum(dim=0)
        self.sums.index_add_(0, labels, inputs)

    @property
    def means(self) -> torch.Tensor:
        return self.sums / self.counts.clamp_min(1)[:, None]

    @property
    def kept(self) -> Sequence[torch.Tensor]:
        return self.counts, self.sums


class NearestMean(Sums):
    """`ncm`: the class with the nearest mean, Euclidean, or by the angle (`metric: cosine`)."""

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.config.metric == "cosine":
            return normalize(inputs) @ normalize(self.means).T
        return -torch.cdist(inputs, self.means)


class BaselineLearner:
    """The baseline heads of prepared runs, each learning the examples of its run."""

    def __init__(self, prepared_runs: Sequence[PreparedRun], config: EvalConfig, kind: type[Baseline]) -> None:
        self.prepared_runs = prepared_runs
        first = prepared_runs[0].train_inputs
        classes, features = prepared_runs[0].shape.classes, first.shape[1]
        self.heads = [kind(classes, features, config, first.device) for _ in prepared_runs]

    def learn_each(self, first: int, last: int) -> None:
        for head, prepared in zip(self.heads, self.prepared_runs, strict=True):
            head.learn(prepared.train_inputs[first:last].double(), prepared.train_labels[first:last])

    def logits(self) -> Iterator[Logits]:
        for head, prepared in zip(self.heads, self.prepared_runs, strict=True):
            train, test = (_logits(head, inputs) for inputs in (prepared.train_inputs, prepared.test_inputs))
            yield train, test


def _logits(head: Baseline, inputs: torch.Tensor) -> torch.Tensor:
    """Return logits [n, classes]; a class that is not learned yet is never chosen."""
    return head.logits(inputs.double()).masked_fill(head.counts == 0, -torch.inf)


class Cost(NamedTuple):
    """What a trajectory costs until a scoring: memory, and seconds of learning and scoring."""

    kept_bytes: int | None
    seconds: float


def kept_bytes(learner: object, prepared_runs: Sequence[PreparedRun], config: EvalConfig) -> int | None:
    """Return the memory of what a trajectory keeps to learn from the next example, and to predict; None: not known.

    That is a baseline's head, or the weights that learn and Adam's two moments, or those that are solved; and the
    examples that are revisited, or solved at once. Layers that never change are left out: all protocols share them.
    """
    if isinstance(learner, BaselineLearner):
        return sum(tensor.nbytes for tensor in learner.heads[0].kept)
    protocol, prepared = config.protocol, prepared_runs[0]
    count = len(prepared.train_inputs)
    if protocol.learns:
        names, copies, examples = prepared.trained_names, 3, count if protocol.is_shuffled else 0
    elif protocol.solves_head:
        names, copies, examples = prepared.redrawn_names, 1, min(count, config.init_size or prepared.shape.classes)
    else:
        return None
    weights = sum(prepared.model.get_parameter(name).nbytes for name in names)
    return copies * weights + examples * (prepared.train_inputs.nbytes // count)
