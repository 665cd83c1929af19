"""The evaluation job: one flavor at one checkpoint (or one task's share of its sweep), into one results file."""

import functools
import statistics
from collections.abc import Sequence

import torch

from anml.checkpoints import ModelCard, load_model
from anml.config.evaluation import DataRequest, EvalConfig
from anml.config.facts import find_dataset, is_validation
from anml.config.profile import Device, WandbMode
from anml.config.training import TrainConfig, TrainingId
from anml.data import load_images
from anml.data.class_images import ClassImages
from anml.errors import ConfigError
from anml.evaluate.sweep import Trajectory, run_sweep, sweep_trajectories
from anml.experiment import Experiment
from anml.jobs.job import JobContext, check_folder
from anml.machine import peak_memory, prepare_device
from anml.models.meta_model import MetaModel
from anml.report import labels
from anml.results import FinishedTrajectories, ResultRow
from anml.tracking import Tracker


def evaluate_checkpoint(
    context: JobContext,
    config: TrainConfig,
    experiment: Experiment,
    flavor: str,
    step: int,
    one: TrainingId,
    task: int | None,
    points_per_job: int | None,
    device: Device,
    wandb_mode: WandbMode,
    min_free_gb: float = 0.0,
) -> bool:
    """Run a flavor's sweep on a checkpoint and write its results, continuing after the trajectories already finished.

    Returns False when stopped before the end.
    """
    check_folder(experiment.root, min_free_gb)
    evaluation = config.eval[flavor]
    compute_on = prepare_device(device, config.device, evaluation.deterministic)
    model, card = load_model(experiment.checkpoint(step, one.tag), compute_on)
    data = load_data(evaluation, config.eval_request(evaluation), card, compute_on)
    points = sweep_trajectories(evaluation)
    if task is not None and points_per_job is not None:
        points = points[task * points_per_job : (task + 1) * points_per_job]
    path = experiment.result(flavor, step, one.tag, task)
    tracker = Tracker(experiment, config.for_training(one), path.stem, "evaluate", wandb_mode)
    finished = FinishedTrajectories(path.with_suffix(".partial.jsonl"))
    complete = _sweep(context, model, card, evaluation, flavor, data, points, finished)
    rows = finished.write(path) if complete else []
    _log_curves(tracker, rows)
    tracker.finish(exit_code=0 if complete else 1)
    for line in [*accuracy_lines(rows), peak_memory(compute_on)]:
        print(line)
    return complete


def load_data(config: EvalConfig, request: DataRequest, card: ModelCard, device: torch.device) -> ClassImages:
    """Load the images of an evaluation. Raises ConfigError when the model takes images of another kind."""
    channels = find_dataset(request.dataset).channels
    if channels != card.image_shape[0]:
        message = f"dataset: {request.dataset} has {channels} channels, the model takes {card.image_shape[0]}"
        raise ConfigError(message)
    return load_images(request).first_examples(0, config.imgs_per_class).to(device)


def _sweep(
    context: JobContext, model: MetaModel, card: ModelCard, config: EvalConfig, flavor: str, data: ClassImages,
    points: list[Trajectory], finished: FinishedTrajectories,
) -> bool:  # fmt: skip
    """Run the points that are not finished. Returns False when stopped before the last."""
    left = [index for index in range(len(points)) if index not in finished.results]
    done = 0.0

    def progress(part: float) -> None:
        nonlocal done
        # Trajectories that were learned side by side are counted by what was learned, then one by one as they are kept.
        done = max(done, len(finished.results) + part)
        context.progress(done, len(points), "trajectories")
        if context.stop():
            raise _StoppedError

    say = functools.partial(print, flush=True)
    results = run_sweep(model, card, config, flavor, data, [points[index] for index in left], progress, say)
    try:
        progress(0)
        for index in left:
            finished.add(index, next(results))
            progress(0)
    except _StoppedError:
        return False
    return True


class _StoppedError(Exception):
    """Unwinds out of a trajectory: one may take longer than the scheduler's warning."""


def accuracy_lines(rows: Sequence[ResultRow]) -> list[str]:
    """Return a line per size and learning rate: mean and standard deviation over runs at the trajectory's end."""
    lines = []
    for key, finals in _finals(rows).items():
        classes, rate = key[0], key[-1]
        label = f"{classes} {labels.classes_of(finals[0].dataset)}" + ("" if rate is None else f", lr {rate:g}")
        columns = (("train", [r.train_acc for r in finals]), ("test", [r.test_acc for r in finals]))
        parts = [f"{name} {_mean_and_std(accuracies)}" for name, accuracies in columns]
        lines.append(f"{label}: {' | '.join(parts)}, {labels.count(len(finals), 'runs')}")
    return lines


def _finals(rows: Sequence[ResultRow]) -> dict[tuple, list[ResultRow]]:
    """Return the last scoring of each trajectory, by size and learning rate."""
    last: dict[tuple, ResultRow] = {}
    for row in rows:
        last[(*_size(row), row.lr, row.run)] = row
    grouped: dict[tuple, list[ResultRow]] = {}
    for key, row in last.items():
        grouped.setdefault(key[:-1], []).append(row)
    return grouped


def _mean_and_std(values: list[float]) -> str:
    spread = f" (std {statistics.stdev(values):.1%})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1%}{spread}"


def _log_curves(tracker: Tracker, rows: Sequence[ResultRow]) -> None:
    """Log mean accuracies against steps learned, and the best final one of the largest size."""
    if tracker.run is None or not rows:
        return
    for step, values in mean_curves(rows).items():
        tracker.log(values, step=step)
    finals = _finals(rows)
    largest = max(key[:-1] for key in finals)
    best = max((ends for key, ends in finals.items() if key[:-1] == largest), key=_mean_test)
    tracker.summary({f"best_{_tested_on(rows)}_acc": _mean_test(best), "best_lr": best[0].lr})


def _mean_test(rows: Sequence[ResultRow]) -> float:
    return statistics.mean(row.test_acc for row in rows)


def _tested_on(rows: Sequence[ResultRow]) -> str:
    """Return what W&B calls test accuracies: those on held-out background classes never share a chart with others."""
    return "validation" if is_validation(rows[0].dataset) else "test"


def mean_curves(rows: Sequence[ResultRow]) -> dict[int, dict[str, float]]:
    """Return mean accuracies by step: a curve per learning rate, and per size where a sweep has several."""
    is_alike = len({_size(row) for row in rows}) == 1
    curves: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        name = "accuracy" if row.lr is None else f"lr {row.lr:g}"
        if not is_alike:
            name = f"{row.classes} classes, {row.train_examples} train, {row.test_examples} test, {name}"
        curve = curves.setdefault(row.step, {})
        curve.setdefault(f"{_tested_on(rows)}/{name}", []).append(row.test_acc)
        curve.setdefault(f"train/{name}", []).append(row.train_acc)
    return {step: {name: statistics.mean(v) for name, v in curves[step].items()} for step in sorted(curves)}


def _size(row: ResultRow) -> tuple[int, int, int]:
    return row.classes, row.train_examples, row.test_examples
