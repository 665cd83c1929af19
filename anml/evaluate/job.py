"""The evaluation job: one flavor at one checkpoint (or one task's share of its sweep), into one results file."""

import functools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anml.atomic import wait_until, write_json
from anml.checkpoints import ModelCard, is_complete, load_model
from anml.checkpoints.import_pth import load_pth
from anml.config.evaluation import DataRequest, EvalConfig
from anml.config.facts import is_validation
from anml.config.profile import Device, WandbMode
from anml.config.training import TrainConfig
from anml.config.vary import TrainingId
from anml.data import load_images
from anml.data.class_images import ClassImages
from anml.evaluate.measure import write_measures
from anml.evaluate.prepared_run import Shape
from anml.evaluate.race import Stopped, race
from anml.evaluate.reuse import Reuse, find_reuse
from anml.evaluate.sweep import LoadedModel, Say, Trajectory, run_sweep, stage_trajectories
from anml.experiment import ADDED_PTH, Experiment
from anml.jobs.job import JobContext, check_folder
from anml.machine import GpuMeter, peak_memory, prepare_device
from anml.models.meta_model import MetaModel
from anml.report import labels
from anml.results import REUSED, STOPPED, FinishedTrajectories, ResultRow, TrajectoryResult
from anml.tracking import Tracker

if TYPE_CHECKING:
    from anml.evaluate.choice import Chosen


class StoppedError(Exception):
    """Ends a sweep in the middle of a trajectory, which may take longer than the scheduler's warning gives."""


def evaluate_checkpoint(
    context: JobContext, config: TrainConfig, experiment: Experiment, flavor: str, step: int,
    training: TrainingId | str, task: int | None, points_per_job: int | None, device: Device, wandb_mode: WandbMode,
    min_free_gb: float = 0.0, stage: int = 0,
) -> bool:  # fmt: skip
    """Run a flavor's sweep on a checkpoint and write its results, continuing after the trajectories already finished.

    training: whose checkpoint, or the name of one that was added. stage: of a sweep that has grown, which part
    (`EvalConfig.stages`). Returns False when stopped before the end.
    """
    check_folder(experiment.root, min_free_gb)
    evaluation = config.eval[flavor].stages[stage]
    compute_on = prepare_device(device, config.device, evaluation.deterministic)
    meter = GpuMeter(compute_on)
    tag = training if isinstance(training, str) else training.tag
    chosen = None
    if evaluation.choose and not isinstance(training, str):
        from anml.evaluate.choice import choose  # Here and below: it imports pandas, half a second.

        chosen = choose(experiment, config, flavor, step, training)
    print(chosen or "", end="\n" if chosen else "", flush=True)
    checkpoint = experiment.checkpoint(chosen.step if chosen else step, tag)
    if isinstance(training, str):
        model, card = load_checkpoint(checkpoint, evaluation, config.dataset, compute_on)
        card, alone = replace(card, display_name=tag, step=step), config.model_copy(update={"model_name": tag})
    else:
        wait_until(lambda: is_complete(checkpoint, ["model"]), checkpoint.parent)
        (model, card), alone = load_model(checkpoint, compute_on), config.for_training(training)
    data = load_data(evaluation, config.eval_request(evaluation), compute_on)
    path = experiment.result(flavor, step, tag, task, stage)
    tracker = Tracker(experiment, alone, path.stem, "evaluate", wandb_mode)
    finished = FinishedTrajectories(path.with_suffix(".partial.jsonl"))
    loaded = LoadedModel(model, card, data, evaluation)
    if not finished.results:
        path.with_suffix(REUSED).unlink(missing_ok=True)
    # Results tell no confusions.
    takes = config.reuse is not False and "confusions" not in (evaluation.measure or ())
    reuse = find_reuse(experiment, path, loaded, flavor, takes, functools.partial(print, flush=True))
    planned, complete, size = list[Trajectory](), True, points_per_job
    share = slice(None) if task is None or size is None else slice(task * size, (task + 1) * size)
    sweep = stage_trajectories(config.eval[flavor], stage)[share]
    for trajectories in blocks_of_sweep(evaluation, chosen, finished, sweep):
        planned += trajectories
        if not (complete := finish(context, loaded, flavor, planned, finished, reuse)):
            break
    if complete and evaluation.measure:
        write_measures(loaded, flavor, path, finished.results.values(), has_first=not (task or stage))
    rows = finished.write(path) if complete else []
    if rows:
        _log_curves(tracker, rows)
    if rows and reuse:
        reuse.offer()
    tracker.summary(meter.read())
    tracker.finish(exit_code=0 if complete else 1)
    for line in [*accuracy_lines(rows), peak_memory(compute_on) + meter.energy()]:
        print(line)
    return complete


def load_checkpoint(
    path: Path, config: EvalConfig, dataset: str | None, device: torch.device
) -> tuple[MetaModel, ModelCard]:
    """Return the model of a checkpoint's folder, or of a `.pth`, and its card. Raises CheckpointError, ConfigError.

    dataset: what a `.pth`, which does not say it, was trained on.
    """
    if (path / ADDED_PTH).is_file():
        path = path / ADDED_PTH
    if path.is_file():
        return load_pth(path, dataset, config.im_size, device, config.pth_args)
    return load_model(path, device)


def blocks_of_sweep(
    config: EvalConfig, chosen: "Chosen | None", finished: FinishedTrajectories, sweep: list[Trajectory]
) -> Iterator[list[Trajectory]]:
    """Yield the trajectories of an evaluation: what comes next may depend on the results of all before.

    sweep: all of them (of a task of an array, its share), where nothing does.
    """
    stopped: list[dict[str, Any]] = []

    def tell(shape: Shape, rates: Sequence[Stopped]) -> None:
        for rate in rates:
            print(f"{shape.classes} classes: {rate}", flush=True)
            stopped.append({"shape_classes": shape.classes, **rate._asdict()})

    if chosen:
        from anml.evaluate.choice import chosen_trajectories

        yield chosen_trajectories(config, chosen)
    elif config.race:
        yield from race(config, finished.results, tell)
        write_json(finished.path.with_suffix("").with_suffix(STOPPED), {"stopped": stopped})
    else:
        yield sweep
    if config.until:
        from anml.evaluate.choice import more_runs

        first = [row for result in finished.results.values() for row in result.rows if row.run < config.runs]
        more, reasons = more_runs(config, first)
        print(*reasons, sep="\n", flush=True)
        yield more


def load_data(config: EvalConfig, request: DataRequest, device: torch.device) -> ClassImages:
    """Load the images of an evaluation, onto the device. Raises DataError."""
    return load_images(request).first_examples(0, config.imgs_per_class).to(device)


def finish(
    context: JobContext, loaded: LoadedModel, flavor: str, trajectories: list[Trajectory],
    finished: FinishedTrajectories, reuse: Reuse | None = None, say: Say | None = None,
) -> bool:  # fmt: skip
    """Run the trajectories that nobody has measured. Returns False when stopped before the last."""
    left = {index: trajectory for index, trajectory in enumerate(trajectories) if index not in finished.results}
    if reuse:
        for source, taken in reuse.take(left):
            for index, result in taken.items():
                finished.add(index, result)
                del left[index]
            reuse.record(source, len(taken))
    before, total = len(trajectories) - len(left), len(trajectories)
    say = say or functools.partial(print, flush=True)
    results = run_until_stopped(context, loaded, flavor, list(left.values()), before, total, say)
    try:
        for index, result in zip(left, results, strict=True):
            finished.add(index, result)
    except StoppedError:
        return False
    return True


def run_until_stopped(
    context: JobContext, loaded: LoadedModel, flavor: str, trajectories: list[Trajectory],
    before: int, total: int, say: Say,
) -> Iterator[TrajectoryResult]:  # fmt: skip
    """Evaluate a model on trajectories and report progress. Raises StoppedError when the job is asked to stop.

    before, total: how many trajectories are done before these, and how many there are in all.
    """
    returned, reported = 0, 0.0

    def report(part: float = 0) -> None:
        nonlocal reported
        # Trajectories that were learned side by side count by what was learned, then one by one as they are returned.
        reported = max(reported, before + returned + part)
        context.progress(reported, total, "trajectories")

    def progress(part: float) -> None:
        report(part)
        if context.stop():
            raise StoppedError

    progress(0)
    for result in run_sweep(loaded, flavor, trajectories, progress, say):
        yield result
        returned += 1
        report()  # And stops for nobody: others that were learned beside this trajectory are about to be returned.


def accuracy_lines(rows: Sequence[ResultRow]) -> list[str]:
    """Return a line per size and learning rate: mean and standard deviation over runs at the trajectory's end."""
    lines = []
    for (*_, lr), ends in _finals(rows).items():
        label = f"{ends[0].classes} {labels.classes_of(ends[0].dataset)}" + ("" if lr is None else f", lr {lr:g}")
        train, test = _mean_and_std([r.train_acc for r in ends]), _mean_and_std([r.test_acc for r in ends])
        lines.append(f"{label}: train {train} | test {test}, {labels.count(len(ends), 'runs')}")
    return lines


def _finals(rows: Sequence[ResultRow]) -> dict[tuple, list[ResultRow]]:
    """Return the last scoring of each trajectory, by size and learning rate."""
    last = {(*_size(row), row.lr, row.run): row for row in rows if row.classes_trained == row.classes}
    grouped: dict[tuple, list[ResultRow]] = {}
    for (*key, _), row in last.items():
        grouped.setdefault(tuple(key), []).append(row)
    return grouped


def _mean_and_std(values: Sequence[float]) -> str:
    spread = f" (std {statistics.stdev(values):.1%})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1%}{spread}"


def _log_curves(tracker: Tracker, rows: Sequence[ResultRow]) -> None:
    """Log mean accuracies against steps learned, and the best final one of the largest size."""
    for step, values in mean_curves(rows).items():
        tracker.log(values, step=step)
    finals = _finals(rows)
    largest = max(size for *size, _ in finals)
    means = {lr: statistics.mean(r.test_acc for r in ends) for (*size, lr), ends in finals.items() if size == largest}
    best = max(means, key=means.__getitem__)
    tracker.summary({f"best_{_tested_on(rows)}_acc": means[best], "best_lr": best})


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
