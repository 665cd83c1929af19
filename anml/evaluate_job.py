"""The evaluation job: one flavor at one checkpoint (or one task's share of its sweep), into one results file."""

import functools
import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from anml.checkpoint import ModelCard, load_model
from anml.config.dataset_facts import DATASETS, DatasetFacts
from anml.config.evaluation import EvalConfig
from anml.config.profile import Device, WandbMode
from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.data.load import load_images
from anml.disk import check_folder
from anml.errors import ConfigError
from anml.evaluate.sweep import Point, run_sweep, sweep_points
from anml.experiment import Experiment
from anml.import_pth import load_pth
from anml.job import JobContext
from anml.machine import prepare_device
from anml.models.meta_model import MetaModel
from anml.models.parameters import select_names
from anml.results import ClassRow, FinishedPoints, Origin, ResultRow, write_results
from anml.tracking import Tracker


def evaluate_checkpoint(
    context: JobContext,
    config: TrainConfig,
    experiment: Experiment,
    flavor: str,
    step: int,
    seed: int | None,
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
    compute_on = prepare_device(device, config.device)
    evaluation = config.eval[flavor]
    model, card = load_model(experiment.checkpoint(step, seed), compute_on)
    data = load_images(str(evaluation.dataset), "eval", card.image_shape[1], evaluation.data_path).to(compute_on)
    points = sweep_points(evaluation)
    if task is not None and points_per_job is not None:
        points = points[task * points_per_job : (task + 1) * points_per_job]
    path = experiment.result(flavor, step, seed, task)
    tracker = Tracker(experiment, config, path.stem, "evaluate", wandb_mode)
    finished = FinishedPoints(path.with_suffix(".partial.jsonl"))
    complete = _sweep(context, model, card, evaluation, flavor, data, points, finished)
    rows = finished.write(path) if complete else []
    _log_curves(tracker, rows)
    tracker.finish(exit_code=0 if complete else 1)
    for line in accuracy_lines(rows):
        print(line)
    return complete


def evaluate_by_hand(
    context: JobContext, config: EvalConfig, checkpoints: Sequence[Path], device: Device, output: str | None
) -> bool:
    """Evaluate any checkpoints and print their accuracy; write the results only where they are asked for."""
    compute_on = prepare_device("auto", device)
    candidates = _candidates(config, checkpoints, compute_on)
    rows: list[ResultRow] = []
    class_rows: list[ClassRow] = []
    origins: list[Origin] = []
    points = sweep_points(config)
    for number, (model, card, data) in enumerate(candidates):
        first = len(rows)
        for done, result in enumerate(run_sweep(model, card, config, "eval", data, points), 1):
            rows += result.rows
            class_rows += result.class_rows
            origins += [(card.display_name, card.step, card.seed)] * len(result.class_rows)
            context.progress(number * len(points) + done, len(candidates) * len(points), "trajectories")
            if context.stop():
                return False
        heading = f"{card.display_name}, step {card.step}: " if len(candidates) > 1 else ""
        for line in accuracy_lines(rows[first:]):
            print(f"{heading}{line}")
    if output:
        write_results(Path(output), rows, class_rows, origins if len(candidates) > 1 else ())
    return True


class _Candidate(NamedTuple):
    """A checkpoint to be evaluated by hand, and on what."""

    model: MetaModel
    card: ModelCard
    data: ClassImages


def _candidates(config: EvalConfig, checkpoints: Sequence[Path], device: torch.device) -> list[_Candidate]:
    """Load everything and check that it fits, before the first of hours of work. Raises ConfigError."""
    loaded = [_load_checkpoint(path, config, device) for path in checkpoints]
    cards = tell_apart([card for _, card in loaded], checkpoints)
    problems: list[str] = []
    candidates = []
    for path, (model, _), card in zip(checkpoints, loaded, cards, strict=True):
        dataset, size = config.dataset or card.dataset, card.image_shape[1]
        found = _misfits(model, card, config, DATASETS.get(dataset))
        problems += [f"{path}: {text}" for text in found]
        if not found:
            data = load_images(dataset, "eval", size, config.data_path or os.environ.get("ANML_DATA")).to(device)
            candidates.append(_Candidate(model, card, data))
    if problems:
        raise ConfigError(problems)
    return candidates


def _load_checkpoint(path: Path, config: EvalConfig, device: torch.device) -> tuple[MetaModel, ModelCard]:
    if path.is_file():
        return load_pth(path, config.dataset, config.im_size, device)
    return load_model(path, device)


def tell_apart(cards: Sequence[ModelCard], paths: Sequence[Path]) -> list[ModelCard]:
    """Return the cards with their paths, as far as these differ, in names that several of the same step share."""
    keys = [(card.display_name, card.step, card.seed) for card in cards]
    places = [path.resolve() for path in paths]
    common = os.path.commonpath(places) if len(places) > 1 else ""
    return [
        card
        if keys.count(key) == 1
        else replace(card, display_name=f"{card.display_name} ({place.relative_to(common)})")
        for card, key, place in zip(cards, keys, places, strict=True)
    ]


def _misfits(model: MetaModel, card: ModelCard, config: EvalConfig, facts: DatasetFacts | None) -> list[str]:
    """Return why a model cannot be evaluated as the config says."""
    channels, size, outputs = card.image_shape[0], card.image_shape[1], model.head.out_features
    problems = []
    if config.im_size not in (None, size):
        problems.append(f"im_size {config.im_size}: this model was trained on {size} pixels")
    if facts and facts.channels != channels:
        problems.append(f"this model takes images of {channels} channels, those of the data set have {facts.channels}")
    if max(config.classes) > outputs:
        problems.append(f"{max(config.classes)} classes do not fit the {outputs} outputs of this model")
    for key, selectors in (("opt_params", config.opt_params), ("reinit_params", config.reinit_params)):
        try:
            select_names(model, selectors)
        except ConfigError as error:
            problems.append(f"{key}: {error}")
    return problems


def _sweep(
    context: JobContext, model: MetaModel, card: ModelCard, config: EvalConfig, flavor: str, data: ClassImages,
    points: list[Point], finished: FinishedPoints,
) -> bool:  # fmt: skip
    """Run the points that are not finished. Returns False when stopped before the last."""
    left = [index for index in range(len(points)) if index not in finished.results]

    def progress(part: float) -> None:
        context.progress(len(finished.results) + part, len(points), "trajectories")
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
        label = f"{classes} classes" + ("" if rate is None else f", lr {rate:g}")
        columns = (("train", [r.train_acc for r in finals]), ("test", [r.test_acc for r in finals]))
        parts = [f"{name} {statistics.mean(v):.1%} (std {_std(v):.1%})" for name, v in columns]
        lines.append(f"{label}: {' | '.join(parts)}, {len(finals)} runs")
    return lines


def _finals(rows: Sequence[ResultRow]) -> dict[tuple, list[ResultRow]]:
    """Return the last scoring of each trajectory, by size and learning rate."""
    last: dict[tuple, ResultRow] = {}
    for row in rows:
        last[(row.classes, row.train_examples, row.test_examples, row.lr, row.run)] = row
    grouped: dict[tuple, list[ResultRow]] = {}
    for key, row in last.items():
        grouped.setdefault(key[:-1], []).append(row)
    return grouped


def _std(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _log_curves(tracker: Tracker, rows: Sequence[ResultRow]) -> None:
    """Log mean accuracies against classes learned, a curve per learning rate, and the best final one."""
    if tracker.run is None or not rows:
        return
    curves: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        name = "accuracy" if row.lr is None else f"lr {row.lr:g}"
        curves.setdefault(row.step, {}).setdefault(f"test/{name}", []).append(row.test_acc)
        curves[row.step].setdefault(f"train/{name}", []).append(row.train_acc)
    for step in sorted(curves):
        tracker.log({name: statistics.mean(values) for name, values in curves[step].items()}, step=step)
    best = max(_finals(rows).values(), key=lambda finals: statistics.mean(r.test_acc for r in finals))
    tracker.summary({"best_test_acc": statistics.mean(r.test_acc for r in best), "best_lr": best[0].lr})
