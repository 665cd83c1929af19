"""Scores of a model on the examples it learned and on those held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from anml.config.evaluation import EvalConfig
from anml.evaluate.learner import BatchLearner, OneTrajectory, Scored, SequenceLearner
from anml.evaluate.prepared_run import PreparedRun
from anml.rng import torch_generator


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
    prepared: PreparedRun
    kept: list[list[Score]] = field(default_factory=list)

    def score(self, epoch: int, step: int, classes_trained: int) -> None:
        """Add a score to every trajectory."""
        prepared = self.prepared
        self.kept.append(
            [
                Score(
                    epoch,
                    step,
                    classes_trained,
                    class_scores(train, prepared.train_labels, prepared.shape.classes),
                    class_scores(test, prepared.test_labels, prepared.shape.classes),
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


# Continual learning: one example at a time, class after class, nothing revisited (ANML, section "Meta-test").


def learn_in_sequence(
    learner: SequenceLearner,
    prepared: PreparedRun,
    config: EvalConfig,
    progress: Callable[[float], None] = lambda done: None,
) -> list[list[Score]]:
    """Learn every class of a trial in order; return the scores of each trajectory at the points of `eval_freq`."""
    board = ScoreBoard(learner, prepared)
    per_class = prepared.shape.train_examples
    points = set(config.score_points(prepared.shape.classes))
    for learned in range(1, prepared.shape.classes + 1):
        learner.learn_each((learned - 1) * per_class, learned * per_class)
        if learned in points:
            board.score(epoch=1, step=learned * per_class, classes_trained=learned)
        progress(learned / prepared.shape.classes)
    return board.scores()


# The oracle of continual learning: the same examples, but shuffled and in batches.


def learn_shuffled(
    learner: BatchLearner,
    prepared_runs: Sequence[PreparedRun],
    config: EvalConfig,
    progress: Callable[[float], None] = lambda done: None,
) -> list[list[Score]]:
    """Learn all examples in shuffled batches, each run in an order of its own; return each trajectory's scores.

    Scored after the first step, every `eval_freq` steps and at the end; without `eval_freq`, after every epoch.
    """
    board = ScoreBoard(learner, prepared_runs[0])
    total = len(prepared_runs[0].train_labels)
    per_epoch = -(-total // config.batch_size)
    last = config.epochs * per_epoch
    points = range(per_epoch, last + 1, per_epoch) if config.eval_freq is None else config.score_points(last)
    step = 0
    for epoch in range(1, config.epochs + 1):
        orders = [_order(config.seed, prepared, epoch).split(config.batch_size) for prepared in prepared_runs]
        for picks in zip(*orders, strict=True):
            learner.learn_batch(picks)
            step += 1
            if step in points:
                board.score(epoch, step, prepared_runs[0].shape.classes)
            progress(step / last)
    return board.scores()


def _order(seed: int, prepared: PreparedRun, epoch: int) -> torch.Tensor:
    order = torch.randperm(len(prepared.train_labels), generator=torch_generator(seed, "order", prepared.run, epoch))
    return order.to(prepared.train_labels.device)


# No learning at all: a least-squares output layer on the features of some support examples (trial.solve_heads).


class _Unlearned(OneTrajectory):
    name = "zero-shot"


def score_without_learning(prepared: PreparedRun) -> list[Score]:
    """Score the model as the trial made it."""
    board = ScoreBoard(_Unlearned(prepared), prepared)
    board.score(epoch=0, step=0, classes_trained=prepared.shape.classes)
    return board.scores()[0]
