"""Continual learning: one example at a time, class after class, nothing revisited (ANML, section "Meta-test")."""

from collections.abc import Callable

from anml.config.evaluation import EvalConfig
from anml.evaluate.learner import SequenceLearner
from anml.evaluate.score import Score, ScoreBoard
from anml.evaluate.trial import Trial


def learn_in_sequence(
    learner: SequenceLearner, trial: Trial, config: EvalConfig, progress: Callable[[float], None] = lambda done: None
) -> list[list[Score]]:
    """Learn every class of a trial in order; return the scores of each trajectory at the points of `eval_freq`."""
    board = ScoreBoard(learner, trial)
    per_class = trial.shape.train_examples
    points = set(config.score_points(trial.shape.classes))
    for learned in range(1, trial.shape.classes + 1):
        learner.learn_each((learned - 1) * per_class, learned * per_class)
        if learned in points:
            board.score(epoch=1, step=learned * per_class, classes_trained=learned)
        progress(learned / trial.shape.classes)
    return board.scores()
