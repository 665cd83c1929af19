"""Continual learning: one example at a time, class after class, nothing revisited (ANML, section "Meta-test")."""

from collections.abc import Callable

from anml.config.evaluation import EvalConfig
from anml.evaluate.learner import Learner
from anml.evaluate.score import Score, score
from anml.evaluate.trial import Trial


def learn_in_sequence(
    trial: Trial, config: EvalConfig, learning_rate: float, progress: Callable[[float], None] = lambda done: None
) -> list[Score]:
    """Learn every class of a trial in order and score at the points that `eval_freq` asks for."""
    learner = Learner(trial, learning_rate)
    per_class = trial.shape.train_examples
    points = set(config.score_points(trial.shape.classes))
    scores = []
    for learned in range(1, trial.shape.classes + 1):
        for step in range((learned - 1) * per_class, learned * per_class):
            example = slice(step, step + 1)
            learner.learn(trial.train_inputs[example], trial.train_labels[example])
        if learned in points:
            scores.append(score(learner.model, trial, epoch=1, step=learned * per_class, classes_trained=learned))
        progress(learned / trial.shape.classes)
    return scores
