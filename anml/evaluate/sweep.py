"""A whole flavor: the product of sizes, runs and learning rates, with everything shared that can be."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from anml.checkpoint import ModelCard
from anml.config.evaluation import EvalConfig
from anml.data.class_images import ClassImages
from anml.evaluate.iid import learn_shuffled
from anml.evaluate.score import Score
from anml.evaluate.sequential import learn_in_sequence
from anml.evaluate.trial import Shape, Trial, make_trial
from anml.evaluate.zero_shot import score_without_learning
from anml.models.meta_model import MetaModel
from anml.results import ClassRow, PointResult, ResultRow


@dataclass(frozen=True)
class Point:
    """One trajectory of a sweep; `lr` is None where nothing is learned."""

    shape: Shape
    run: int
    lr: float | None


def sweep_points(config: EvalConfig) -> list[Point]:
    """Return every point of a sweep; points of the same size and run, which share their trial, are neighbours."""
    rates: tuple[float | None, ...] = (None,) if config.eval_method == "zero_shot" else config.lr
    shapes = itertools.product(config.classes, config.train_examples, config.test_examples)
    return [Point(Shape(*s), run, lr) for s in shapes for run in range(config.runs) for lr in rates]


def run_sweep(
    model: MetaModel,
    card: ModelCard,
    config: EvalConfig,
    flavor: str,
    data: ClassImages,
    points: list[Point],
    progress: Callable[[float], None] = lambda part: None,
) -> Iterator[PointResult]:
    """Evaluate a model at the given points, in order. `progress` receives how much of the current point is done."""
    for point, trial in _with_trials(model, config, data, points):
        scores = _scores(trial, config, point, progress)
        rows = [_row(score, point, card, config, flavor) for score in scores]
        yield PointResult(rows, [row for score in scores for row in _class_rows(score, point)])


def _with_trials(
    model: MetaModel, config: EvalConfig, data: ClassImages, points: list[Point]
) -> Iterator[tuple[Point, Trial]]:
    """Pair each point with its trial, made once for neighbours that share it."""
    for (shape, run), group in itertools.groupby(points, key=lambda point: (point.shape, point.run)):
        trial = make_trial(model, config, data, shape, run)
        for point in group:
            yield point, trial


def _scores(trial: Trial, config: EvalConfig, point: Point, progress: Callable[[float], None]) -> list[Score]:
    if point.lr is None:
        return score_without_learning(trial)
    if config.eval_method == "iid":
        return learn_shuffled(trial, config, point.lr, point.run, progress)
    return learn_in_sequence(trial, config, point.lr, progress)


def _row(score: Score, point: Point, card: ModelCard, config: EvalConfig, flavor: str) -> ResultRow:
    learned = slice(0, score.classes_trained)
    return ResultRow(
        flavor=flavor,
        protocol=config.eval_method,
        model=card.display_name,
        dataset=config.dataset or card.dataset,
        checkpoint_step=card.step,
        classes=point.shape.classes,
        train_examples=point.shape.train_examples,
        test_examples=point.shape.test_examples,
        lr=point.lr,
        train_seed=card.seed,
        run=point.run,
        epoch=score.epoch,
        step=score.step,
        classes_trained=score.classes_trained,
        train_acc=float(score.train.top1[learned].mean()),
        test_acc=float(score.test.top1[learned].mean()),
        train_top5=float(score.train.top5[learned].mean()),
        test_top5=float(score.test.top5[learned].mean()),
    )


def _class_rows(score: Score, point: Point) -> list[ClassRow]:
    shape = point.shape
    return [
        ClassRow(
            shape.classes, shape.train_examples, shape.test_examples, point.lr, point.run, score.step,
            score.classes_trained, position, float(train), float(test),
        )
        for position, (train, test) in enumerate(zip(score.train.top1, score.test.top1, strict=True))
    ]  # fmt: skip
