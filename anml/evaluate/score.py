"""Scores of a model on the examples it learned and on those held out."""

from dataclasses import dataclass

import torch

from anml.evaluate.trial import Trial, forward
from anml.models.meta_model import MetaModel


@dataclass(frozen=True)
class ClassScores:
    """Accuracy of each class of the trajectory, float64 [classes], in [0, 1]."""

    top1: torch.Tensor
    top5: torch.Tensor


@dataclass(frozen=True)
class Score:
    """One scoring: when it was made, and how well each class did."""

    epoch: int
    step: int
    classes_trained: int
    train: ClassScores
    test: ClassScores


def score(model: MetaModel, trial: Trial, epoch: int, step: int, classes_trained: int) -> Score:
    """Test a trial's model, as learned so far, on all its examples, those of classes not learned yet included."""
    train, test = (forward(model, inputs, trial.part) for inputs in (trial.train_inputs, trial.test_inputs))
    return Score(
        epoch, step, classes_trained,
        class_scores(train, trial.train_labels, trial.shape.classes),
        class_scores(test, trial.test_labels, trial.shape.classes),
    )  # fmt: skip


def class_scores(logits: torch.Tensor, labels: torch.Tensor, classes: int) -> ClassScores:
    """Return per-class accuracies for logits [n, outputs] and labels [n] with equally many examples per class."""
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    hits = torch.stack([logits.argmax(dim=1) == labels, top5.any(dim=1)])
    means = hits.double().view(2, classes, -1).mean(dim=2).cpu()
    return ClassScores(means[0], means[1])
