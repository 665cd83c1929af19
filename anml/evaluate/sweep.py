"""A whole evaluation of one model: the product of sizes, runs and learning rates, and the engine that learns them."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import nn

from anml.checkpoints import ModelCard
from anml.config.evaluation import EvalConfig
from anml.data.class_images import ClassImages
from anml.errors import ConfigError, JobError
from anml.evaluate.baselines import BaselineLearner
from anml.evaluate.learner import (
    LaneLearner,
    Lanes,
    Predictor,
    ReferenceLearner,
    Unlearned,
    lanes_that_fit,
    learns_linear_head,
)
from anml.evaluate.native import NativeBatchLearner, native_learner, unsupported
from anml.evaluate.prepared_run import PreparedRun, RunPreparer, Shape
from anml.evaluate.protocols import Progress, Score
from anml.machine import determinism
from anml.models.meta_model import MetaModel
from anml.native.blocks import use_native_blocks
from anml.optim import count_moments
from anml.plugins import code_checksum
from anml.results import ResultRow, TrajectoryResult

# Seconds that native kernels save on a core, measured: for each step of a weight, each multiplication of a convolution.
_PER_WEIGHT, _PER_MULTIPLICATION = 0.5e-9, 7e-11
# Seconds that it takes to build them.
_BUILD = 60.0
# Trajectories at once where a GPU solves their least squares, or a CPU takes lanes (which gain nothing there).
_DEFAULT_LANES = 16
# Trajectories from which on lanes pay on a GPU. All layers of an ANML on an H200: a step of one lane takes 13 ms, one
# of six lanes 16 ms, one of a plain learner 3.6 ms (docs/performance.md).
_PAYS_FROM = 5

Say = Callable[[str], None]


class LoadedModel(NamedTuple):
    """A model to be evaluated: on which images, and how."""

    model: MetaModel
    card: ModelCard
    data: ClassImages
    config: EvalConfig


@dataclass(frozen=True)
class Trajectory:
    """One run at one learning rate; `lr` is None where nothing is learned.

    counts: the numbers of learned classes whose scores are wanted; it ends with the largest. Empty: all.
    """

    shape: Shape
    run: int
    lr: float | None
    counts: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """How many classes it learns."""
        return max(self.counts, default=self.shape.classes)


class Engine(NamedTuple):
    """A way to learn: its name, why it was chosen, how many trajectories it takes at once, and what makes a learner."""

    name: str
    why: str
    lanes: int
    make: Callable[[Sequence[PreparedRun], Sequence[float]], Any]


class Cost(NamedTuple):
    """What a trajectory costs until a scoring: memory, and seconds of learning and scoring."""

    kept_bytes: int | None
    seconds: float


def sweep_trajectories(config: EvalConfig) -> list[Trajectory]:
    """Return every trajectory of a sweep; those of one size and run, which share what is prepared, are neighbours."""
    lrs: tuple[float | None, ...] = config.lr if config.protocol.learns else (None,)
    shapes = itertools.product(config.classes, config.train_examples, config.test_examples)
    return [Trajectory(Shape(*s), run, lr) for s in shapes for run in range(config.runs) for lr in lrs]


def stage_trajectories(config: EvalConfig, stage: int) -> list[Trajectory]:
    """Return the trajectories of a stage of a sweep that those before it do not have."""
    before = set(sweep_trajectories(config.stages[stage - 1])) if stage else set()
    return [each for each in sweep_trajectories(config.stages[stage]) if each not in before]


def run_sweep(
    loaded: LoadedModel, flavor: str, trajectories: Sequence[Trajectory],
    progress: Progress = lambda done: None, say: Say = lambda text: None,
) -> Iterator[TrajectoryResult]:  # fmt: skip
    """Evaluate a model on the given trajectories, in order.

    `progress` receives how many trajectories' worth is done of those not returned yet, `say` the engine's name. What
    `progress` raises to stop the sweep loses no trajectory that is finished. Raises JobError where memory is too short.
    """
    if not trajectories:
        return
    try:
        preparer = RunPreparer(loaded.model, loaded.config, loaded.data)
        # By the whole sweep: engines round differently, and the trajectories of an array's task, or those left of a
        # stopped job, belong to it.
        engine = choose_engine(preparer, loaded.config.runs, loaded.config.count_trajectories())
        say(f"engine {engine.name}, {engine.why}{determinism(loaded.data.images.device)}")
        if engine.name == "native" and preparer.encoder is not None:
            use_native_blocks(preparer.encoder)
        for trajectory, scorings in _learn(trajectories, preparer, engine, progress, say):
            wanted = trajectory.counts
            scores = [(score, cost) for score, cost in scorings if not wanted or score.classes_trained in wanted]
            class_rows = [row for score, _ in scores for row in _class_rows(score, trajectory)]
            rows = [_row(score, cost, trajectory, loaded, flavor) for score, cost in scores]
            is_wanted = "confusions" in (loaded.config.measure or ())
            yield TrajectoryResult(rows, class_rows, _confusions(scores[-1][0], trajectory) if is_wanted else ())
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        message = f"the GPU's memory is too small to evaluate even one trajectory at a time: {reason}\n"
        message += (
            "Ask for a GPU with more memory or for none (device: cpu), or for fewer classes or a smaller batch_size."
        )
        raise JobError(message) from None


def _learn(
    trajectories: Sequence[Trajectory], preparer: RunPreparer, engine: Engine, progress: Progress, say: Say
) -> Iterator[tuple[Trajectory, list[tuple[Score, Cost]]]]:
    """Yield every trajectory with its scores, block by block; with fewer at once where memory is short."""
    left, lanes, prepared_runs = list(trajectories), engine.lanes, list[PreparedRun]()
    while left:
        progress(0)  # May stop the sweep: all that is finished has been yielded.
        block = next(blocks(left, lanes))
        is_alone = len(block) == 1 and not (prepared_runs or preparer.features)
        try:
            wanted = list(dict.fromkeys((trajectory.shape, trajectory.run) for trajectory in block))
            # A run that has more learning rates than fit into a block is prepared once.
            if [(prepared.shape, prepared.run) for prepared in prepared_runs] != wanted:
                prepared_runs = []  # Frees the memory of the runs before these.
                prepared_runs = preparer.make(block[0].shape, [run for _, run in wanted])
            scores = _learn_block(block, prepared_runs, preparer.config, engine, progress)
        except torch.OutOfMemoryError:
            if is_alone:
                raise
            scores = None
        if scores is None:  # Outside of the handler, where the exception no longer keeps the block's memory alive.
            lanes, prepared_runs = max(1, len(block) // 2), []
            preparer.features.clear()
            torch.cuda.empty_cache()
            say(f"out of memory: on with {lanes} trajectories at once")
            continue
        yield from zip(block, scores, strict=True)
        left = left[len(block) :]


def _learn_block(
    block: list[Trajectory], prepared_runs: list[PreparedRun], config: EvalConfig, engine: Engine, progress: Progress
) -> list[list[tuple[Score, Cost]]]:
    """Return the scores of each trajectory of a block."""
    lrs = [trajectory.lr for trajectory in block if trajectory.run == block[0].run and trajectory.lr is not None]
    learner = _make_learner(prepared_runs, config, engine, lrs)
    learn, start = config.protocol.load(), time.perf_counter()
    scorings, costs = list[Sequence[Score]](), list[Cost]()
    end = max(trajectory.end for trajectory in block)
    for scoring in learn(learner, prepared_runs, config, lambda part: progress(part * len(block))):
        scorings.append(scoring)
        costs.append(Cost(_kept_bytes(learner, prepared_runs, config), (time.perf_counter() - start) / len(block)))
        if end < block[0].shape.classes and scoring[0].classes_trained >= end:
            break
    if not scorings or any(len(scoring) != len(block) for scoring in scorings):
        message = f"eval_method: {config.eval_method} must yield, once or more, a Score for each of {len(block)} "
        message += f"trajectories; it yields {[len(scoring) for scoring in scorings] or 'nothing'}"
        raise ConfigError(message)
    return [list(zip(scores, costs, strict=True)) for scores in zip(*scorings, strict=True)]


def _kept_bytes(learner: object, prepared_runs: Sequence[PreparedRun], config: EvalConfig) -> int | None:
    """Return the memory of what a trajectory keeps to learn from the next example, and to predict; None: not known.

    That is a baseline's head, or the weights that learn and the optimizer's moments, or those that are solved; and the
    examples that are revisited, or solved at once. Layers that never change are left out: all protocols share them.
    """
    if isinstance(learner, BaselineLearner):
        return sum(tensor.nbytes for tensor in learner.heads[0].kept)
    protocol, prepared = config.protocol, prepared_runs[0]
    count = len(prepared.train_inputs)
    if protocol.learns:
        names, copies = prepared.trained_names, 1 + count_moments(config.stepper)
        examples = count if protocol.is_shuffled else min(count, config.reservoir) if protocol.replays else 0
    elif protocol.solves_head:
        names, copies, examples = prepared.redrawn_names, 1, min(count, config.init_size or prepared.shape.classes)
    else:
        return None
    weights = sum(prepared.model.get_parameter(name).nbytes for name in names)
    return copies * weights + examples * (prepared.train_inputs.nbytes // count)


def _make_learner(
    prepared_runs: Sequence[PreparedRun], config: EvalConfig, engine: Engine, lrs: Sequence[float]
) -> Predictor:
    if config.protocol.baseline:
        return BaselineLearner(prepared_runs, config, config.protocol.load_baseline())
    return engine.make(prepared_runs, lrs) if config.protocol.learns else Unlearned(prepared_runs)


def blocks(trajectories: Sequence[Trajectory], lanes: int) -> Iterator[list[Trajectory]]:
    """Cut trajectories, in order, into blocks of at most `lanes`, each a product of runs and rates of one shape."""
    by_run = [list(group) for _, group in itertools.groupby(trajectories, key=lambda t: (t.shape, t.run))]
    parts = [run[first : first + lanes] for run in by_run for first in range(0, len(run), lanes)]
    for _, alike in itertools.groupby(parts, key=lambda part: [(t.shape, t.lr) for t in part]):
        same = list(alike)
        count = max(1, lanes // len(same[0]))
        for first in range(0, len(same), count):
            yield [trajectory for part in same[first : first + count] for trajectory in part]


def choose_engine(preparer: RunPreparer, runs: int, trajectories: int) -> Engine:
    """Return the engine that the config names, or the fastest for a sweep of so many runs and trajectories."""
    config, device = preparer.config, preparer.data.images.device
    name, why = config.engine, "asked for"
    if name == "auto" and not config.learns_by_adam:
        name, why = "reference", "which alone learns by other optimizers than Adam, or by a schedule"
    if name == "auto" and device.type == "cuda":
        pays = trajectories >= _PAYS_FROM or not config.protocol.learns
        name, why = ("lanes", "on a GPU") if pays else ("reference", "too few trajectories for lanes to pay")
    elif name == "auto" and seconds_saved(preparer, runs, trajectories) < _BUILD:
        name, why = "reference", "a small sweep"
    elif name in ("auto", "native") and (reason := unsupported(device, preparer.dtype)):
        if name == "native":
            message = f"engine: native cannot evaluate this: {reason}. Use engine: auto."
            raise ConfigError(message)
        name, why = "reference", f"not native: {reason}"
    elif name == "auto":
        name, why = "native", "the fastest"
    if name == "lanes":
        lanes = lanes_that_fit(preparer) if device.type == "cuda" else _DEFAULT_LANES
        lanes = lanes if config.protocol.learns else min(lanes, _DEFAULT_LANES)
        learner, how = choose_lane_learner(preparer)
        return Engine(name, f"{why}, up to {lanes} trajectories at once{how}", lanes, learner)
    native = NativeBatchLearner if config.protocol.takes_batches else native_learner
    learner = native if name == "native" else ReferenceLearner
    return Engine(name, why, 1, lambda prepared_runs, lrs: learner(prepared_runs[0], lrs[0]))


def choose_lane_learner(preparer: RunPreparer) -> tuple[type[Lanes], str]:
    """Return the fastest lanes, and what a log says of them."""
    device = preparer.data.images.device
    is_head = learns_linear_head(preparer.model, preparer.stage, preparer.trained)
    if device.type != "cuda" or not is_head or preparer.config.protocol.takes_batches:
        return LaneLearner, ""
    if not find_spec("triton"):
        return LaneLearner, ", slower without Triton"
    from anml.evaluate.fused_head import FusedHeadLearner, find_problem

    problem = find_problem(device)
    return (LaneLearner, f", slower without Triton: {problem}") if problem else (FusedHeadLearner, ", by Triton")


def seconds_saved(preparer: RunPreparer, runs: int, trajectories: int) -> float:
    """Estimate how many seconds native kernels save in a sweep, whether or not they are built already."""
    config, (classes, train, test) = preparer.config, preparer.largest
    examples = classes * (train + test)
    if preparer.stage == "images":
        is_shuffled = config.protocol.is_shuffled
        passes, scorings = (config.epochs,) * 2 if is_shuffled else (1, len(config.score_points(classes)))
        images = trajectories * (3 * classes * train * passes + scorings * examples)
    else:
        images = runs * examples * (2 * (config.shifts or 0) + 1) ** 2
    steps = trajectories * classes * train if config.protocol.in_sequence and not config.protocol.takes_batches else 0
    outputs = preparer.layer_outputs("images")
    convolutions = [(layer.weight, output[0, 0]) for layer, output in outputs if isinstance(layer, nn.Conv2d)]
    multiplications = sum(weight.numel() * positions.numel() for weight, positions in convolutions)
    return steps * preparer.count_trained() * _PER_WEIGHT + images * multiplications * _PER_MULTIPLICATION


def _row(score: Score, cost: Cost, trajectory: Trajectory, loaded: LoadedModel, flavor: str) -> ResultRow:
    """Return one scoring as a row: means over the classes learned so far."""
    learned, card = slice(0, score.classes_trained), loaded.card
    return ResultRow(
        flavor=flavor,
        protocol=loaded.config.eval_method.rpartition(":")[2],
        model=card.display_name,
        dataset=loaded.data.name,
        checkpoint_step=card.step,
        **trajectory.shape._asdict(),
        lr=trajectory.lr,
        train_seed=card.seed,
        run=trajectory.run,
        epoch=score.epoch,
        step=score.step,
        classes_trained=score.classes_trained,
        train_acc=float(score.train.top1[learned].mean()),
        test_acc=float(score.test.top1[learned].mean()),
        train_top5=float(score.train.top5[learned].mean()),
        test_top5=float(score.test.top5[learned].mean()),
        kept_bytes=cost.kept_bytes,
        seconds=cost.seconds,
        first_runs=loaded.config.runs if loaded.config.until else None,
        code=code_checksum(),
    )


def _class_rows(score: Score, trajectory: Trajectory) -> Iterator[tuple]:
    """Return the values of a ClassRow for each class."""
    classes, train, test = trajectory.shape
    measured = (classes, train, test, trajectory.lr, trajectory.run, score.step, score.classes_trained)
    accuracies = score.train.top1.tolist(), score.test.top1.tolist()
    return zip(*map(itertools.repeat, measured), range(classes), *accuracies, strict=False)


def _confusions(score: Score, trajectory: Trajectory) -> Sequence[list[Any]]:
    """Return the values of a ConfusionRow for each pair of classes that was answered."""
    classes, train, test = trajectory.shape
    if score.predicted is None or score.classes_trained < classes:
        return ()  # A protocol of the user's own need not say; a trajectory that ends early tells of fewer classes.
    pairs = torch.stack([torch.arange(classes).repeat_interleave(test), score.predicted.cpu()])
    pairs, counts = pairs.unique(dim=1, return_counts=True)
    measured = [classes, train, test, trajectory.lr, trajectory.run]
    return [[*measured, *pair, count] for pair, count in zip(pairs.T.tolist(), counts.tolist(), strict=True)]
