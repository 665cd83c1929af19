"""Results as tables: every point of the sweeps, and the best learning rate of each sweep (the summary)."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, TypeVar

import pandas as pd

from anml.config.facts import is_validation
from anml.config.training import TrainConfig, model_order
from anml.errors import DataError
from anml.experiment import Experiment
from anml.report.labels import checkpoint, unit
from anml.report.statistics import estimate, grouped
from anml.results import ResultRow, read_results

T = TypeVar("T")
# The train_seed of points that pool several trainings.
POOLED = "all"


class Scores(NamedTuple):
    """The rows of all results files, and what could not be read."""

    rows: list[ResultRow]
    problems: list[str]


class Sweep(NamedTuple):
    """What a learning rate is chosen for: one flavor of one model's checkpoint with one amount of classes and examples.

    Trainings that differ in their seed have the same model, those of several inner learning rates a model each.
    """

    flavor: str
    protocol: str
    model: str
    dataset: str
    checkpoint_step: int
    classes: int
    train_examples: int
    test_examples: int


@dataclass(frozen=True)
class RateResult:
    """One learning rate of a sweep, over all runs, at the end of their trajectories. A row of `summary.csv`.

    train_seed: the training's seed, or `all`. lr: None where nothing is learned. Accuracies are fractions: mean, its
    standard deviation over runs (n - 1), half the width of the mean's 95% interval over runs or over seeds' means.
    """

    train_seed: str
    flavor: str
    protocol: str
    model: str
    dataset: str
    checkpoint_step: int
    classes: int
    train_examples: int
    test_examples: int
    lr: float | None
    test_acc: float
    test_std: float
    test_ci95: float
    interval_over: str
    train_acc: float
    runs: int
    seeds: int
    chance: float

    @property
    def sweep(self) -> Sweep:
        """The sweep that it is a point of."""
        return sweep_of(self)


def sweep_of(item: "RateResult | ResultRow") -> Sweep:
    """Return the sweep that a point or a result belongs to."""
    return Sweep(*(getattr(item, name) for name in Sweep._fields))


def read_scores(experiment: Experiment) -> Scores:
    """Read all results of an experiment, the parts of array jobs included. A damaged file is reported, not fatal."""
    found: dict[tuple, ResultRow] = {}
    problems = []
    for path in sorted(experiment.results.glob("*.csv")):
        try:
            # A sweep cut differently on a retry leaves the same scoring in two files: the key keeps one.
            found |= {(*_trajectory(row), row.epoch, row.step): row for row in read_results([path])}
        except (DataError, ValueError, TypeError) as error:
            problems.append(f"{path.name} was left out: {error}")
    return Scores(list(found.values()), problems)


def _trajectory(row: ResultRow) -> tuple:
    return (sweep_of(row), row.lr, row.train_seed, row.run)


def finals(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """Return the last scoring of each trajectory: the one with the largest step."""
    return [max(scorings, key=lambda row: (row.step, row.epoch)) for scorings in grouped(rows, _trajectory).values()]


def rate_results(rows: Iterable[ResultRow], flavors: Sequence[str] = ()) -> list[RateResult]:
    """Return a point per learning rate of every sweep, for each training and, of several, pooled over them.

    flavors: the order of points; flavors not named come behind.
    """
    ends = finals(rows)
    points = []
    for group in grouped(ends, lambda row: (sweep_of(row), row.lr, row.train_seed)).values():
        points.append(_point(str(group[0].train_seed), group))
    if len({row.train_seed for row in ends}) > 1:
        points += [_point(POOLED, group) for group in grouped(ends, lambda row: (sweep_of(row), row.lr)).values()]
    rank = {flavor: place for place, flavor in enumerate(flavors)}
    return sorted(points, key=lambda point: _order(point, rank))


def _point(train_seed: str, ends: list[ResultRow]) -> RateResult:
    test = estimate((row.train_seed, row.test_acc) for row in ends)
    return RateResult(
        train_seed,
        *sweep_of(ends[0]),
        lr=ends[0].lr,
        test_acc=test.mean,
        test_std=test.std,
        test_ci95=test.half_width,
        interval_over=test.over,
        train_acc=estimate((row.train_seed, row.train_acc) for row in ends).mean,
        runs=test.runs,
        seeds=test.seeds,
        chance=1 / ends[0].classes,
    )


def _order(point: RateResult, rank: dict[str, int]) -> tuple:
    """Most classes first, model by model; of one flavor and checkpoint the pooled points first, then seed by seed.

    Held-out background classes come last.
    """
    sizes = (-point.classes, point.train_examples, point.test_examples)
    setting = (is_validation(point.dataset), *sizes, *model_order(point.model))
    flavor = (rank.get(point.flavor, len(rank)), point.flavor, point.protocol, point.dataset)
    seed = -1 if point.train_seed == POOLED else int(point.train_seed)
    return (*setting, *flavor, point.checkpoint_step, seed, point.lr or 0.0)


def best_rates(points: Iterable[RateResult]) -> list[RateResult]:
    """Return the summary: of every sweep, the learning rate with the highest mean test accuracy.

    Of equal ones the one whose mean is known better, then the smaller. The choice is made on the test accuracy that
    is reported, as in the published tables.
    """
    sweeps = grouped(points, lambda point: (point.train_seed, point.sweep)).values()
    return [min(run_most(sweep, lambda point: point.runs), key=_badness) for sweep in sweeps]


def run_most(rates: Iterable[T], runs: Callable[[T], int]) -> list[T]:
    """Return the rates to choose from: one with fewer runs (part of an array is missing) may only have been lucky."""
    rates = list(rates)
    most = max(map(runs, rates))
    return [rate for rate in rates if runs(rate) == most]


def _badness(point: RateResult) -> tuple[float, float, float]:
    # Sums in another order differ in the last digits, which must not break a tie.
    mean = -math.inf if math.isnan(point.test_acc) else round(point.test_acc, 12)
    spread = math.inf if math.isnan(point.test_std) else round(point.test_std / math.sqrt(point.runs), 12)
    return (-mean, spread, point.lr or 0.0)


def main_points(points: Sequence[RateResult]) -> list[RateResult]:
    """Return the points to show first: those pooled over trainings, or all of them when there is one training."""
    return [point for point in points if point.train_seed == POOLED] or list(points)


def as_frame(points: Iterable[RateResult]) -> pd.DataFrame:
    """Return points as a table, a column per field of SweepPoint."""
    table = pd.DataFrame([vars(point) for point in points], columns=[field.name for field in fields(RateResult)])
    return table.astype({"lr": float})


def write_summary(path: Path, summary: Iterable[RateResult]) -> None:
    """Write a summary as CSV."""
    as_frame(summary).to_csv(path, index=False, float_format="%.10g", lineterminator="\n")


def read_summary(path: Path) -> list[RateResult]:
    """Read a summary that a report has written. Raises OSError, ValueError or TypeError."""
    empty = {name: [""] for name in ("lr", "test_std", "test_ci95")}
    table = pd.read_csv(path, dtype={"train_seed": str}, keep_default_na=False, na_values=empty)
    if "model" not in table:  # An earlier report's.
        table["model"] = ""
    records = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    return [RateResult(**{**record, "lr": None if math.isnan(record["lr"]) else record["lr"]}) for record in records]


# What a config asks for against what the results hold: a sweep that is incomplete must say so.


def missing_results(config: TrainConfig, rows: Sequence[ResultRow], models: Collection[str] | None = None) -> list[str]:
    """Return a sentence for every flavor and checkpoint that has fewer trajectories than its sweep has points.

    models: only of these, by the names that results have (default: all).
    """
    found = Counter((row.flavor, row.checkpoint_step, row.model, row.train_seed) for row in finals(rows))
    steps = [*([0] if config.eval_untrained else []), *config.checkpoint_steps]
    trainings = [(one, config.for_training(one)) for one in config.trainings]
    trainings = [(one, alone) for one, alone in trainings if models is None or alone.display_name in models]
    sentences = []
    for flavor, evaluation in config.eval.items():
        for step in steps:
            for one, alone in trainings:
                has, wanted = found[flavor, step, alone.display_name, alone.seed], evaluation.count_trajectories()
                if has < wanted:
                    where = ", ".join(filter(None, (flavor, checkpoint(step, unit(config)), one.words)))
                    sentences.append(f"{where}: {_amount(has, wanted)}")
    return sentences


def _amount(has: int, wanted: int) -> str:
    return f"{has:,} of {wanted:,} trajectories" if has else "no results"
