"""A whole flavor: the product of sizes, runs and learning rates, with everything shared that can be."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from anml.checkpoints import ModelCard
from anml.config.evaluation import EvalConfig
from anml.data.class_images import ClassImages
from anml.evaluate.choose import Engine, choose_engine
from anml.evaluate.prepared_run import PreparedRun, RunPreparer, Shape
from anml.evaluate.protocols import Score, learn_in_sequence, learn_shuffled, score_without_learning
from anml.machine import determinism
from anml.models.meta_model import MetaModel
from anml.results import ClassRow, ResultRow, TrajectoryResult


@dataclass(frozen=True)
class Trajectory:
    """One trajectory of a sweep; `lr` is None where nothing is learned."""

    shape: Shape
    run: int
    lr: float | None


def sweep_trajectories(config: EvalConfig) -> list[Trajectory]:
    """Return every point of a sweep; points of the same size and run, which share their trial, are neighbours."""
    rates: tuple[float | None, ...] = (None,) if config.eval_method == "zero_shot" else config.lr
    shapes = itertools.product(config.classes, config.train_examples, config.test_examples)
    return [Trajectory(Shape(*s), run, lr) for s in shapes for run in range(config.runs) for lr in rates]


def run_sweep(
    model: MetaModel,
    card: ModelCard,
    config: EvalConfig,
    flavor: str,
    data: ClassImages,
    points: Sequence[Trajectory],
    progress: Callable[[float], None] = lambda done: None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[TrajectoryResult]:
    """Evaluate a model at the given points, in order.

    `progress` receives how many points' worth is done of those not returned yet, `say` which engine it is.
    """
    if not points:
        return
    preparer = RunPreparer(model, config, data)
    # By the whole sweep: engines round differently, and the points of an array's task, or those left of a stopped job,
    # belong to it.
    engine = choose_engine(config, preparer, config.runs, config.count_trajectories())
    say(f"engine {engine.name}, {engine.why}{determinism(data.images.device)}")
    if engine.name == "native" and preparer.shared is not None:
        preparer.shared.use_native_blocks()
    for point, own in _learn(points, preparer, engine, progress, say):
        rows = [_row(score, point, card, config, flavor, data.name) for score in own]
        yield TrajectoryResult(rows, [row for score in own for row in _class_rows(score, point)])


def _learn(
    points: Sequence[Trajectory],
    preparer: RunPreparer,
    engine: Engine,
    progress: Callable[[float], None],
    say: Callable[[str], None],
) -> Iterator[tuple[Trajectory, list[Score]]]:
    """Yield every point with its scores, block by block; with fewer trajectories at once where memory is short."""
    left, lanes, prepared_runs = list(points), engine.lanes, list[PreparedRun]()
    while left:
        block = next(blocks(left, lanes))
        try:
            prepared_runs = _prepared_runs(prepared_runs, preparer, block)
            scores = _scores(
                prepared_runs, preparer.config, block, engine, functools.partial(_scaled, progress, len(block))
            )
        except torch.OutOfMemoryError:
            if len(block) == 1:
                raise
            lanes, prepared_runs = len(block) // 2, []
            torch.cuda.empty_cache()
            say(f"out of memory: on with {lanes} trajectories at once")
            continue
        yield from zip(block, scores, strict=True)
        left = left[len(block) :]


def _prepared_runs(before: list[PreparedRun], preparer: RunPreparer, block: Sequence[Trajectory]) -> list[PreparedRun]:
    """Return the trials of a block: those of the last one, where they are the same."""
    shape, runs = block[0].shape, list(dict.fromkeys(point.run for point in block))
    alike = [(prepared.shape, prepared.run) for prepared in before] == [(shape, run) for run in runs]
    return before if alike else preparer.make(shape, runs)


def blocks(points: Sequence[Trajectory], lanes: int) -> Iterator[list[Trajectory]]:
    """Cut points, in order, into blocks of at most `lanes` that are each a product of runs and rates of one shape."""
    by_run = [list(group) for _, group in itertools.groupby(points, key=lambda point: (point.shape, point.run))]
    parts = [run[first : first + lanes] for run in by_run for first in range(0, len(run), lanes)]
    for _, alike in itertools.groupby(parts, key=lambda part: [(point.shape, point.lr) for point in part]):
        same = list(alike)
        count = max(1, lanes // len(same[0]))
        for first in range(0, len(same), count):
            yield [point for part in same[first : first + count] for point in part]


def _scaled(progress: Callable[[float], None], count: int, part: float) -> None:
    progress(part * count)


def _scores(
    prepared_runs: Sequence[PreparedRun],
    config: EvalConfig,
    block: Sequence[Trajectory],
    engine: Engine,
    progress: Callable[[float], None],
) -> list[list[Score]]:
    if config.eval_method == "zero_shot":
        return [score_without_learning(prepared) for prepared in prepared_runs]
    rates = [point.lr for point in block if point.run == block[0].run and point.lr is not None]
    learner = engine.make(prepared_runs, rates)
    if config.eval_method == "iid":
        return learn_shuffled(learner, prepared_runs, config, progress)
    return learn_in_sequence(learner, prepared_runs[0], config, progress)


def _row(score: Score, point: Trajectory, card: ModelCard, config: EvalConfig, flavor: str, dataset: str) -> ResultRow:
    learned = slice(0, score.classes_trained)
    return ResultRow(
        flavor=flavor,
        protocol=config.eval_method,
        model=card.display_name,
        dataset=dataset,
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


def _class_rows(score: Score, point: Trajectory) -> list[ClassRow]:
    shape = point.shape
    return [
        ClassRow(
            shape.classes, shape.train_examples, shape.test_examples, point.lr, point.run, score.step,
            score.classes_trained, position, float(train), float(test),
        )
        for position, (train, test) in enumerate(zip(score.train.top1, score.test.top1, strict=True))
    ]  # fmt: skip
