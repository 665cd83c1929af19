"""No learning at all: a least-squares output layer on the features of some support examples (trial.solve_heads)."""

from anml.evaluate.learner import OneTrajectory
from anml.evaluate.score import Score, ScoreBoard
from anml.evaluate.trial import Trial


class _Unlearned(OneTrajectory):
    name = "zero-shot"


def score_without_learning(trial: Trial) -> list[Score]:
    """Score the model as the trial made it."""
    board = ScoreBoard(_Unlearned(trial), trial)
    board.score(epoch=0, step=0, classes_trained=trial.shape.classes)
    return board.scores()[0]
