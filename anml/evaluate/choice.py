"""Choosing: the rate, and maybe the checkpoint, that learned held-out background classes best."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import NamedTuple

from anml.atomic import wait_until
from anml.config.evaluation import EvalConfig
from anml.config.training import TrainConfig
from anml.config.vary import TrainingId
from anml.errors import JobError
from anml.evaluate.prepared_run import Shape
from anml.evaluate.sweep import Trajectory
from anml.experiment import Experiment
from anml.report import labels
from anml.report.statistics import grouped, runs_needed
from anml.report.tables import RateResult, best_by_classes, missing_results, read_scores
from anml.results import ResultRow

# Examples of each class to learn from, and to be tested on.
Examples = tuple[int, int]


class Chosen(NamedTuple):
    """A checkpoint, and by the numbers of examples a rate for each number of held-out classes that was scored."""

    step: int
    rates: dict[Examples, dict[int, float | None]]

    def rate(self, shape: Shape, classes: int) -> float | None:
        """Return the rate for so many classes: that for the next smaller number of held-out classes."""
        rates = self.rates[shape.train_examples, shape.test_examples]
        return rates[max((number for number in rates if number <= classes), default=min(rates))]

    def __str__(self) -> str:
        words = [
            labels.count(number, "classes") + ("" if rate is None else f" lr {rate:g}")
            for rates in self.rates.values()
            for number, rate in rates.items()
        ]
        return f"chosen on held-out classes: the model after step {self.step}; " + ", ".join(words)


def choose(experiment: Experiment, config: TrainConfig, flavor: str, step: int, training: TrainingId) -> Chosen:
    """Return what did best on held-out classes, as a mean over all seeds of the model and all runs.

    Of several checkpoints the one that did best with the most classes. Raises JobError where results are missing.
    """
    evaluation, model = config.eval[flavor], config.for_training(training).display_name
    steps, tried_by = config.choices(evaluation)[step], evaluation.choose and evaluation.choose.flavor
    rows, problems = list[ResultRow](), list[str]()

    def is_complete() -> bool:
        nonlocal rows, problems
        rows, problems = read_scores(experiment)
        problems += missing_results(config, rows, [model], [(str(tried_by), each) for each in steps])
        return not problems

    # Of a part of them, another rate may be the best.
    if not wait_until(is_complete, experiment.results):
        message = f"{tried_by}, which {flavor} chooses from, lacks results. Run its jobs again, then this one."
        raise JobError("\n".join([message, *problems]))
    of_sweeps = [row for row in rows if (row.flavor, row.model) == (tried_by, model) and row.checkpoint_step in steps]
    best = best_by_classes(of_sweeps)
    step = _best_step(best)
    rates: dict[Examples, dict[int, float | None]] = {}
    for result in [result for result in best if result.checkpoint_step == step]:
        rates.setdefault((result.train_examples, result.test_examples), {})[result.classes] = result.lr
    return Chosen(step, rates)


def _best_step(best: Sequence[RateResult]) -> int:
    most = max(result.classes for result in best)
    steps = grouped([result for result in best if result.classes == most], lambda result: result.checkpoint_step)
    means = {step: fmean(result.test_acc for result in results) for step, results in sorted(steps.items())}
    return max(means, key=means.__getitem__)


def chosen_trajectories(config: EvalConfig, chosen: Chosen) -> list[Trajectory]:
    """Return the trajectories that score each number of classes at its rate, and at no other."""
    shapes = product(config.classes, config.train_examples, config.test_examples)
    trajectories = []
    for shape in itertools.starmap(Shape, shapes):
        rates = {count: chosen.rate(shape, count) for count in config.scored(shape.classes)}
        trajectories += at_rates(shape, range(config.runs), rates)
    return trajectories


def at_rates(shape: Shape, runs: Iterable[int], rates: Mapping[int, float | None]) -> list[Trajectory]:
    """Return the trajectories that score each number of classes at the rate that is given for it, and at no other."""
    by_rate = {rate: tuple(scored) for rate, scored in grouped(rates, rates.__getitem__).items()}
    return [Trajectory(shape, run, rate, counts) for run in runs for rate, counts in by_rate.items()]


def more_runs(config: EvalConfig, rows: Sequence[ResultRow]) -> tuple[list[Trajectory], list[str]]:
    """Return the runs that `until` adds to the first ones, and a line for each size that says how many and why.

    rows: of the first runs. Each number of classes goes on at the rate that is best for it so far.
    """
    if config.until is None:
        return [], []
    trajectories, lines = [], []
    for sizes, of_size in grouped(rows, lambda row: (row.classes, row.train_examples, row.test_examples)).items():
        best = {result.classes: result for result in best_by_classes(of_size)}
        shape, last = Shape(*sizes), best[max(best)]
        needed = runs_needed(last.test_std, config.runs, config.until.half_width)
        runs = min(needed, config.until.at_most)
        trajectories += at_rates(shape, range(config.runs, runs), {count: best[count].lr for count in best})
        wide = f"± {last.test_ci95:.4f} after {config.runs} runs; ± {config.until.half_width:g} takes {needed} runs"
        lines.append(f"{shape.classes} classes: {wide}" + (f", at most {runs} are made" if runs < needed else ""))
    return trajectories, lines
