"""The oracle of continual learning: the same examples, but shuffled and in batches."""

from collections.abc import Callable, Sequence

import torch

from anml.config.evaluation import EvalConfig
from anml.evaluate.learner import BatchLearner
from anml.evaluate.score import Score, ScoreBoard
from anml.evaluate.trial import Trial
from anml.rng import torch_generator


def learn_shuffled(
    learner: BatchLearner,
    trials: Sequence[Trial],
    config: EvalConfig,
    progress: Callable[[float], None] = lambda done: None,
) -> list[list[Score]]:
    """Learn all examples in shuffled batches, each run in an order of its own; return each trajectory's scores.

    Scored after the first step, every `eval_freq` steps and at the end; without `eval_freq`, after every epoch.
    """
    board = ScoreBoard(learner, trials[0])
    total = len(trials[0].train_labels)
    per_epoch = -(-total // config.batch_size)
    last = config.epochs * per_epoch
    points = range(per_epoch, last + 1, per_epoch) if config.eval_freq is None else config.score_points(last)
    step = 0
    for epoch in range(1, config.epochs + 1):
        orders = [_order(config.seed, trial, epoch).split(config.batch_size) for trial in trials]
        for picks in zip(*orders, strict=True):
            learner.learn_batch(picks)
            step += 1
            if step in points:
                board.score(epoch, step, trials[0].shape.classes)
            progress(step / last)
    return board.scores()


def _order(seed: int, trial: Trial, epoch: int) -> torch.Tensor:
    order = torch.randperm(len(trial.train_labels), generator=torch_generator(seed, "order", trial.run, epoch))
    return order.to(trial.train_labels.device)
