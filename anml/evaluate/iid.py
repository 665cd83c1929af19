"""The oracle of continual learning: the same examples, but shuffled and in batches."""

from collections.abc import Callable

import torch

from anml.config.evaluation import EvalConfig
from anml.evaluate.learner import Learner
from anml.evaluate.score import Score, score
from anml.evaluate.trial import Trial
from anml.rng import torch_generator


def learn_shuffled(
    trial: Trial,
    config: EvalConfig,
    learning_rate: float,
    run: int,
    progress: Callable[[float], None] = lambda done: None,
) -> list[Score]:
    """Learn all examples in shuffled batches; score after the first step, every `eval_freq` steps and at the end.

    Without `eval_freq`, after every epoch.
    """
    learner = Learner(trial, learning_rate)
    total = len(trial.train_labels)
    per_epoch = -(-total // config.batch_size)
    last = config.epochs * per_epoch
    points = range(per_epoch, last + 1, per_epoch) if config.eval_freq is None else config.score_points(last)
    scores, step = [], 0
    for epoch in range(1, config.epochs + 1):
        order = torch.randperm(total, generator=torch_generator(config.seed, "order", run, epoch))
        for batch in order.to(trial.train_labels.device).split(config.batch_size):
            learner.learn(trial.train_inputs[batch], trial.train_labels[batch])
            step += 1
            if step in points:
                scores.append(score(learner.model, trial, epoch, step, trial.shape.classes))
            progress(step / last)
    return scores
