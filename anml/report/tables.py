"""Results as tables: every learning rate of the sweeps, the best one of each (the summary), and accuracy by classes."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from anml.atomic import read_json
from anml.config.facts import is_validation
from anml.config.training import TrainConfig
from anml.config.vary import Value, natural_order, written
from anml.errors import DataError
from anml.experiment import Experiment
from anml.report import labels
from anml.report.statistics import estimate, grouped
from anml.results import COLUMN_TYPES, COLUMNS, REUSED, STOPPED, ResultRow, read_results

# The train_seed of results that pool several trainings.
POOLED = "all"


class Amount(NamedTuple):
    """How much is learned and tested: classes of a data set, and examples of each class.

    Held-out background classes are another data set: rates and options were chosen on them.
    """

    dataset: str
    classes: int
    train_examples: int
    test_examples: int

    @property
    def noun(self) -> str:
        return labels.classes(is_validation(self.dataset))


@dataclass(frozen=True)
class Sweep:
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
class RateResult(Sweep):
    """One learning rate of a sweep over all runs. A row of `summary.csv` (and, with fewer columns, `by-classes.csv`).

    train_seed: the training's seed, or `all`. lr: None where nothing is learned. Accuracies are fractions: mean, its
    standard deviation over runs (n - 1), half the width of the mean's 95% interval over runs or over seeds' means.
    kept_bytes, seconds: means of those columns of the results.
    A new column is a field here with a default, for the reports of earlier versions, a line in `_rate_result`, and, to
    be on the page, one in PAGE_COLUMNS.
    """

    train_seed: str
    lr: float | None
    test_acc: float
    test_std: float
    test_ci95: float
    interval_over: str
    train_acc: float
    runs: int
    seeds: int
    chance: float
    # What results of earlier versions do not say is NaN, which would make equal results differ.
    kept_bytes: float = field(default=math.nan, compare=False)
    seconds: float = field(default=math.nan, compare=False)

    @property
    def kept_mb(self) -> float:
        return self.kept_bytes / 1e6

    @property
    def sweep(self) -> Sweep:
        return sweep_of(self)

    @property
    def amount(self) -> Amount:
        return Amount(self.dataset, self.classes, self.train_examples, self.test_examples)


SWEEP_COLUMNS = tuple(column.name for column in fields(Sweep))
SUMMARY_COLUMNS = tuple(dict.fromkeys(("train_seed", *(column.name for column in fields(RateResult)))))
BY_CLASSES_COLUMNS = (
    "flavor", "model", "dataset", "checkpoint_step", "train_examples", "test_examples", "classes", "lr", "test_acc",
    "test_ci95", "train_acc", "runs", "seeds", "kept_bytes", "seconds",
)  # fmt: skip

# Numbers on the page, in its table of all learning rates: heading, column, format.
PAGE_COLUMNS = (
    ("test", "test_acc", "%.4f"),
    ("std", "test_std", "%.4f"),
    ("± 95%", "test_ci95", "%.4f"),
    ("train", "train_acc", "%.4f"),
    ("runs", "runs", "%d"),
    ("keeps, MB", "kept_mb", "%.1f"),
    ("seconds", "seconds", "%.1f"),
)


def sweep_of(item: Sweep | ResultRow) -> Sweep:
    return Sweep(*(getattr(item, name) for name in SWEEP_COLUMNS))


def read_scores(experiment: Experiment) -> tuple[list[ResultRow], list[str]]:
    """Read all results of an experiment, the parts of array jobs included. Returns a sentence per damaged file too."""
    rows: dict[tuple, ResultRow] = {}
    problems = []
    for path in sorted(experiment.results.glob("*.csv")):
        try:
            # A sweep that is cut differently on a retry leaves the same scoring in two files: the key keeps one.
            rows |= {(*_trajectory(row), row.epoch, row.step): row for row in read_results([path])}
        except (DataError, ValueError, TypeError) as error:
            problems.append(f"{path.name} was left out: {error}")
    return list(rows.values()), problems


def read_stopped(experiment: Experiment) -> list[dict[str, Any]]:
    """Return the rates that races did not continue, and why, with the job's name as `job`."""
    paths = sorted(experiment.results.glob(f"*{STOPPED}"))
    return [{"job": path.name.removesuffix(STOPPED), **rate} for path in paths for rate in read_json(path)["stopped"]]


def read_reused(experiment: Experiment) -> dict[str, int]:
    """Return the experiments, as `PROJECT/GROUP`, that measured some of these trajectories, and how many."""
    counts: Counter[str] = Counter()
    for path in experiment.results.glob(f"*{REUSED}"):
        for results, count in read_json(path).get("trajectories", {}).items():
            counts["/".join(Path(results).parts[:2])] += count
    return dict(counts)


def _trajectory(row: ResultRow) -> tuple:
    return (sweep_of(row), row.lr, row.train_seed, row.run)


def finals(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """Return the last scoring of each trajectory: the one with the largest step.

    Of a trajectory that ends before all classes are learned, at a rate chosen for fewer, none.
    """
    whole = [row for row in rows if row.classes_trained == row.classes]
    return [max(scorings, key=lambda row: (row.step, row.epoch)) for scorings in grouped(whole, _trajectory).values()]


def rate_results(rows: Iterable[ResultRow], flavors: Sequence[str] = ()) -> list[RateResult]:
    """Return the result of every learning rate of every sweep, for each training and, of several, pooled over them.

    flavors: their order; flavors not named come last.
    """
    ends = finals(rows)
    rates = grouped(ends, lambda row: (sweep_of(row), row.lr, row.train_seed)).values()
    results = [_rate_result(rate, str(rate[0].train_seed)) for rate in rates]
    if len({row.train_seed for row in ends}) > 1:
        results += [_rate_result(rate) for rate in grouped(ends, lambda row: (sweep_of(row), row.lr)).values()]
    return sorted(results, key=lambda result: _order(result, flavors))


def _rate_result(ends: list[ResultRow], train_seed: str = POOLED, classes: int | None = None) -> RateResult:
    """Return the result of a learning rate, given one scoring of each of its trajectories.

    classes: how many are learned by then; None: all.
    """
    row = ends[0]
    sweep = {**vars(sweep_of(row)), "classes": classes or row.classes}
    first = [end.test_acc for end in ends if end.first_runs and end.run < end.first_runs]
    test = estimate(((end.train_seed, end.test_acc) for end in ends), first)
    return RateResult(
        **sweep,
        train_seed=train_seed,
        lr=row.lr,
        test_acc=test.mean,
        test_std=test.std,
        test_ci95=test.half_width,
        interval_over=test.over,
        train_acc=estimate((end.train_seed, end.train_acc) for end in ends).mean,
        runs=test.runs,
        seeds=test.seeds,
        chance=1 / sweep["classes"],
        kept_bytes=_mean(end.kept_bytes for end in ends),
        seconds=_mean(end.seconds for end in ends),
    )


def _mean(costs: Iterable[float | None]) -> float:
    """Return the mean of what is known, else NaN."""
    return float(np.mean([cost for cost in costs if cost is not None] or [math.nan]))


def _order(result: RateResult, flavors: Sequence[str]) -> tuple:
    """Most classes first, model by model; of one flavor and checkpoint the pooled results first, then seed by seed.

    Held-out background classes come last.
    """
    sizes = (-result.classes, result.train_examples, result.test_examples)
    setting = (is_validation(result.dataset), *sizes, natural_order(result.model))
    rank = flavors.index(result.flavor) if result.flavor in flavors else len(flavors)
    flavor = (rank, result.flavor, result.protocol, result.dataset)
    seed = -1 if result.train_seed == POOLED else int(result.train_seed)
    return (*setting, *flavor, result.checkpoint_step, seed, result.lr or 0.0)


def best_rates(results: Iterable[RateResult]) -> list[RateResult]:
    """Return the summary: of every sweep, the learning rate with the highest mean test accuracy.

    Of equal ones the one whose mean is known better, then the smaller. The choice is made on the test accuracy that
    is reported, as in the published tables.
    """
    sweeps = grouped(results, lambda result: (result.train_seed, result.sweep)).values()
    return [_best(sweep) for sweep in sweeps]


def _best(rates: Sequence[RateResult]) -> RateResult:
    # A rate with fewer runs (part of an array is missing) may only have been lucky.
    most = max(rate.runs for rate in rates)
    return min((rate for rate in rates if rate.runs == most), key=_badness)


def _badness(result: RateResult) -> tuple[float, float, float]:
    # Sums in another order differ in the last digits, which must not break a tie.
    mean = -math.inf if math.isnan(result.test_acc) else round(result.test_acc, 12)
    spread = math.inf if math.isnan(result.test_std) else round(result.test_std / math.sqrt(result.runs), 12)
    return (-mean, spread, result.lr or 0.0)


def main_results(results: Sequence[RateResult]) -> list[RateResult]:
    """Return the results to show first: those pooled over trainings, or all of them when there is one training."""
    return [result for result in results if result.train_seed == POOLED] or list(results)


def best_by_classes(rows: Iterable[ResultRow]) -> list[RateResult]:
    """Return the best learning rate for every flavor, checkpoint and number of classes that was scored.

    This is how published tables give accuracies. A trajectory of many classes that is scored after `classes` of them
    is one of `classes` classes so far: the others have not been seen.
    """
    names = ("flavor", "model", "dataset", "checkpoint_step", "train_examples", "test_examples", "classes_trained")
    groups = grouped(rows, lambda row: tuple(getattr(row, name) for name in names)).values()
    order = ("checkpoint_step", "flavor", "dataset", "train_examples", "classes")
    best = [_best_after(group[0].classes_trained, group) for group in groups]
    return sorted(best, key=lambda result: (natural_order(result.model), *(getattr(result, name) for name in order)))


def _best_after(classes: int, rows: list[ResultRow]) -> RateResult:
    # Of several scorings of a trajectory (epochs of an i.i.d. one) the last; of several trajectory lengths the longest.
    last = {(row.lr, row.train_seed, row.run): row for row in sorted(rows, key=lambda row: (row.classes, row.step))}
    rates = grouped(last.values(), lambda row: row.lr).values()
    return _best([_rate_result(rate, classes=classes) for rate in rates])


def learning_curve(rows: Sequence[ResultRow], best: Sequence[RateResult]) -> list[RateResult]:
    """Return the accuracies of a flavor at its best rates, after so many classes: means over those learned so far.

    best: the flavor's part of the summary at one checkpoint, one result per number of classes. Either one long
    trajectory was scored on its way, or each number of classes has its own sweep; the longer curve is returned.
    """
    longest = max(best, key=lambda result: result.classes)
    on_the_way = grouped(_rows_of(rows, [longest]), lambda row: row.classes_trained)
    others = [row for row in rows if sweep_of(row) == longest.sweep and row.classes_trained not in on_the_way]
    on_the_way |= grouped(others, lambda row: row.classes_trained)  # At the rates that were chosen for them.
    at_the_ends = grouped(finals(_rows_of(rows, best)), lambda row: row.classes_trained)
    curve = []
    for classes, scorings in sorted(max(on_the_way, at_the_ends, key=len).items()):
        # I.i.d. learning is scored several times with all classes in play: its end counts.
        runs = grouped(scorings, lambda row: (row.train_seed, row.run)).values()
        curve.append(_rate_result([max(run, key=lambda row: row.step) for run in runs], classes=classes))
    return curve


def _rows_of(rows: Sequence[ResultRow], best: Sequence[RateResult]) -> list[ResultRow]:
    """Return the rows that results of the summary are made of."""
    rates = {(result.sweep, result.lr) for result in best}
    seeds = {result.train_seed for result in best}
    rows = [row for row in rows if POOLED in seeds or str(row.train_seed) in seeds]
    return [row for row in rows if (sweep_of(row), row.lr) in rates]


def as_frame(results: Iterable[RateResult], columns: Sequence[str] = SUMMARY_COLUMNS) -> pd.DataFrame:
    return pd.DataFrame([vars(result) for result in results], columns=list(columns)).astype({"lr": float})


def with_varied(frame: pd.DataFrame, config: TrainConfig | None) -> pd.DataFrame:
    """Return a table with a typed column for every key that varies between the models of an experiment."""
    trainings = config.trainings if config else ()
    keys = dict.fromkeys(key for training in trainings for key, _ in training.model.varied)
    models = {config.for_training(t).display_name: config.values_of(t, keys) for t in trainings if config}
    return with_keys(frame, keys, [models.get(model, {}) for model in frame["model"]])


def with_keys(frame: pd.DataFrame, keys: Iterable[str], values: Sequence[Mapping[str, Value]]) -> pd.DataFrame:
    """Return a table with a column for each key of a training; of `lr`, which evaluations have too, `train_lr`.

    values: of each line, by key.
    """
    texts = [{key: written(v) if isinstance(v, tuple) else v for key, v in line.items()} for line in values]
    names = {key: f"train_{key}" if key in frame else key for key in keys}
    return frame.assign(**{name: [line.get(key) for line in texts] for key, name in names.items()})


def tidy(rows: Sequence[ResultRow], config: TrainConfig | None = None) -> pd.DataFrame:
    """Return results as a table with typed columns: a row for each scoring, a column for each key that varies.

    What may be missing has pandas' nullable type; accuracies are fractions, float64.
    """
    frame = pd.DataFrame([vars(row) for row in rows], columns=list(COLUMNS))
    frame = with_varied(frame, config)
    varied = {name: _nullable(pd.Series(frame[name])) for name in frame.columns if name not in COLUMNS}
    return frame.astype(COLUMN_TYPES).assign(**varied)


def _nullable(values: pd.Series) -> pd.Series:
    """Return values of one kind with their nullable type, values of several kinds as text."""
    typed = values.convert_dtypes()
    return typed.astype("string") if typed.dtype == object else typed


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table with as many digits as an accuracy can need."""
    frame.to_csv(path, index=False, float_format="%.10g", lineterminator="\n")


def read_summary(path: Path) -> list[RateResult]:
    """Read a summary of a report of this or another version. Raises OSError, ValueError or TypeError."""
    empty = {column.name: [""] for column in fields(RateResult) if column.type in (float, float | None)}
    table = pd.read_csv(path, dtype={"train_seed": str}, keep_default_na=False, na_values=empty)
    if "model" not in table:  # An earlier report's.
        table["model"] = ""
    rows = table.to_dict("records")
    records = [{name: row[name] for name in SUMMARY_COLUMNS if name in row} for row in rows]
    return [RateResult(**{**record, "lr": None if math.isnan(record["lr"]) else record["lr"]}) for record in records]


def missing_results(
    config: TrainConfig, rows: Sequence[ResultRow], models: Collection[str] | None = None,
    sweeps: Collection[tuple[str, int]] | None = None,
) -> list[str]:  # fmt: skip
    """Return a sentence for every flavor and checkpoint that has fewer trajectories than its sweep asks for.

    models: only of these, by the names that results have (default: all). sweeps: only these flavors at these steps.
    """
    counts = Counter((row.flavor, row.checkpoint_step, row.model, row.train_seed) for row in finals(rows))
    sentences = []
    for (flavor, evaluation), step, training in product(config.eval.items(), config.evaluated_steps, config.trainings):
        alone, wanted = config.for_training(training), evaluation.fewest_results()
        is_chosen_elsewhere = evaluation.choose and step not in config.choices(evaluation)
        if is_chosen_elsewhere or (sweeps is not None and (flavor, step) not in sweeps):
            continue
        # One that chooses its checkpoint has results of that alone.
        steps = config.choices(evaluation).get(step, (step,))
        count = sum(counts[flavor, any_step, alone.display_name, alone.seed] for any_step in steps)
        if count < wanted and (models is None or alone.display_name in models):
            at = labels.checkpoint(step, labels.unit(config))
            amount = f"{count:,} of {wanted:,} trajectories" if count else "no results"
            sentences.append(f"{', '.join(filter(None, (flavor, at, training.words)))}: {amount}")
    of_checkpoints = Counter((row.flavor, row.model) for row in finals(rows))
    for (flavor, evaluation), name in product(config.eval.items() if sweeps is None else (), config.added_checkpoints):
        count, wanted = of_checkpoints[flavor, name], 0 if evaluation.choose else evaluation.count_trajectories()
        if count < wanted and (models is None or name in models):
            sentences.append(f"{flavor}, {name}: {count:,} of {wanted:,} trajectories")
    return sentences
