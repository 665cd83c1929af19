"""The functions of the evaluation protocols (anml/config/protocols.py has their properties), and scoring.

A protocol's function receives
    learner: learns and predicts the trajectories of `prepared_runs`, all their learning rates included;
    prepared_runs: runs of one shape: their examples, as the layers that learn receive them, and the model of each;
    config: the evaluation's settings;
    progress: to be called with the fraction that is done;
and yields, each time that it scores, a Score of every trajectory (`score_all`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from anml.config.evaluation import EvalConfig
from anml.evaluate.learner import BatchLearner, Logits, Predictor, SequenceLearner
from anml.evaluate.prepared_run import PreparedRun
from anml.rng import torch_generator

Progress = Callable[[float], None]


@dataclass(frozen=True)
class ClassScores:
    """Accuracy of each class of a trajectory, float64 [classes], in [0, 1]."""

    top1: torch.Tensor
    top5: torch.Tensor


@dataclass(frozen=True)
class Score:
    """One scoring of one trajectory: when it was made, and how well the model knew each class.

    predicted: the answer to each test example, int64 [n]; -1 where that is no class of the run.
    """

    epoch: int
    step: int
    classes_trained: int
    train: ClassScores
    test: ClassScores
    predicted: torch.Tensor | None = None


def score_all(
    logits: Iterable[Logits], prepared: PreparedRun, epoch: int, step: int, classes_trained: int
) -> list[Score]:
    """Score every trajectory, given its logits, on all classes of its run, those not learned yet included.

    prepared: any of the runs, which have the same labels.
    """
    labels, classes = (prepared.train_labels, prepared.test_labels), prepared.shape.classes
    scores = list[Score]()
    for both in logits:
        train, test = (class_scores(*pair, classes) for pair in zip(both, labels, strict=True))
        scores.append(Score(epoch, step, classes_trained, train, test, answers(both[1], classes)))
    return scores


def answers(logits: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the class that each row of logits names, int64 [n]; -1 for a NaN, and for an output without a class."""
    named = logits.argmax(dim=1)
    return torch.where((named < classes) & ~logits.isnan().any(dim=1), named, -1)


def class_scores(logits: torch.Tensor, labels: torch.Tensor, classes: int) -> ClassScores:
    """Return per-class accuracies for logits [n, outputs] and labels [n] with equally many examples per class.

    Logits with a NaN predict nothing. torch ranks NaN first, so that a model that diverged would always say class 0:
    right every time, as long as that is the only class learned.
    """
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    hits = torch.stack([logits.argmax(dim=1) == labels, top5.any(dim=1)]) & ~logits.isnan().any(dim=1)
    means = hits.double().view(2, classes, -1).mean(dim=2).cpu()
    return ClassScores(means[0], means[1])


def learn_in_sequence(
    learner: SequenceLearner, prepared_runs: Sequence[PreparedRun], config: EvalConfig, progress: Progress
) -> Iterator[list[Score]]:
    """Learn class after class, one example at a time, and revisit nothing (ANML, section "Meta-test").

    Scores after the numbers of classes that `eval_freq` names.
    """
    shape = prepared_runs[0].shape
    score_points = set(config.score_points(shape.classes))
    for learned in range(1, shape.classes + 1):
        last = learned * shape.train_examples
        learner.learn_each(last - shape.train_examples, last)
        if learned in score_points:
            yield score_all(learner.logits(), prepared_runs[0], epoch=1, step=last, classes_trained=learned)
        progress(learned / shape.classes)


def learn_with_replay(
    learner: BatchLearner, prepared_runs: Sequence[PreparedRun], config: EvalConfig, progress: Progress
) -> Iterator[list[Score]]:
    """Learn in sequence, each example in a batch with others from a reservoir (experience replay).

    Chaudhry et al. 2019, "On tiny episodic memories in continual learning", algorithm 1. A reservoir of `replay_size`
    examples is a random subset of all so far (Vitter 1985, algorithm R); a step draws `batch_size` - 1 of it.
    """
    first, classes, train = prepared_runs[0], prepared_runs[0].shape.classes, prepared_runs[0].shape.train_examples
    device, score_points = first.train_labels.device, set(config.score_points(classes))
    generators = [torch_generator(config.seed, "replay", prepared.run) for prepared in prepared_runs]
    reservoirs: list[list[int]] = [[] for _ in prepared_runs]
    for step in range(classes * train):
        picks = []
        for generator, reservoir in zip(generators, reservoirs, strict=True):
            places = torch.randperm(len(reservoir), generator=generator)[: config.batch_size - 1]
            picks.append(torch.tensor([step, *(reservoir[place] for place in places)], device=device))
            place = step if step < config.reservoir else int(torch.randint(step + 1, (1,), generator=generator))
            reservoir[place : place + 1] = [step] if place < config.reservoir else []
        learner.learn_batch(picks)
        learned, rest = divmod(step + 1, train)
        if not rest and learned in score_points:
            yield score_all(learner.logits(), first, epoch=1, step=step + 1, classes_trained=learned)
        progress((step + 1) / (classes * train))


def learn_shuffled(
    learner: BatchLearner, prepared_runs: Sequence[PreparedRun], config: EvalConfig, progress: Progress
) -> Iterator[list[Score]]:
    """Learn the same examples in shuffled batches, each run in its own order: learning in sequence is compared with it.

    Scores after the first step, every `eval_freq` steps and at the end; without `eval_freq`, after every epoch.
    """
    first = prepared_runs[0]
    per_epoch = -(-len(first.train_labels) // config.batch_size)
    last, step = config.epochs * per_epoch, 0
    score_points = range(per_epoch, last + 1, per_epoch) if config.eval_freq is None else config.score_points(last)
    for epoch in range(1, config.epochs + 1):
        generators = [torch_generator(config.seed, "order", prepared.run, epoch) for prepared in prepared_runs]
        orders = [torch.randperm(len(first.train_labels), generator=generator) for generator in generators]
        for picks in zip(*(order.split(config.batch_size) for order in orders), strict=True):
            learner.learn_batch([rows.to(first.train_labels.device) for rows in picks])
            step += 1
            if step in score_points:
                yield score_all(learner.logits(), first, epoch, step, first.shape.classes)
            progress(step / last)


def score_unlearned(
    learner: Predictor, prepared_runs: Sequence[PreparedRun], config: EvalConfig, progress: Progress
) -> Iterator[list[Score]]:
    """Score the models as they were prepared, with their least-squares output layers: nothing is learned."""
    prepared = prepared_runs[0]
    yield score_all(learner.logits(), prepared, epoch=0, step=0, classes_trained=prepared.shape.classes)
