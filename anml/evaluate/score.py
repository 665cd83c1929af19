"""Scores of a learner on the examples it learned and on those held out."""

from dataclasses import dataclass

import torch

from anml.evaluate.learner import Learner
from anml.evaluate.trial import Trial


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


def score(learner: Learner, trial: Trial, epoch: int, step: int, classes_trained: int) -> Score:
    """Test a learner on all examples of a trial, those of classes not learned yet included."""
    train = class_scores(learner.logits(trial.train_inputs), trial.train_labels, trial.shape.classes)
    test = class_scores(learner.logits(trial.test_inputs), trial.test_labels, trial.shape.classes)
    return Score(epoch, step, classes_trained, train, test)


def class_scores(logits: torch.Tensor, labels: torch.Tensor, classes: int) -> ClassScores:
    """Return per-class accuracies for logits [n, outputs] and labels [n] with equally many examples per class."""
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    hits = torch.stack([logits.argmax(dim=1) == labels, top5.any(dim=1)])
    means = hits.double().view(2, classes, -1).mean(dim=2).cpu()
    return ClassScores(means[0], means[1])
