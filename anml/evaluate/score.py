"""Scores of a model on the examples it learned and on those held out."""

from dataclasses import dataclass, field

import torch

from anml.evaluate.learner import Scored
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


@dataclass
class ScoreBoard:
    """Tests the trajectories of a learner, as learned so far, on all examples, classes not learned yet included."""

    learner: Scored
    trial: Trial
    kept: list[list[Score]] = field(default_factory=list)

    def score(self, epoch: int, step: int, classes_trained: int) -> None:
        """Add a score to every trajectory."""
        trial = self.trial
        self.kept.append(
            [
                Score(
                    epoch,
                    step,
                    classes_trained,
                    class_scores(train, trial.train_labels, trial.shape.classes),
                    class_scores(test, trial.test_labels, trial.shape.classes),
                )
                for train, test in self.learner.logits()
            ]
        )

    def scores(self) -> list[list[Score]]:
        """Return the scores of each trajectory, in order of time."""
        return [list(scores) for scores in zip(*self.kept, strict=True)]


def class_scores(logits: torch.Tensor, labels: torch.Tensor, classes: int) -> ClassScores:
    """Return per-class accuracies for logits [n, outputs] and labels [n] with equally many examples per class.

    Logits with a NaN predict nothing. torch ranks NaN first, so that a model that diverged would always say class 0:
    right every time, as long as that is the only class learned.
    """
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    hits = torch.stack([logits.argmax(dim=1) == labels, top5.any(dim=1)]) & ~logits.isnan().any(dim=1)
    means = hits.double().view(2, classes, -1).mean(dim=2).cpu()
    return ClassScores(means[0], means[1])
