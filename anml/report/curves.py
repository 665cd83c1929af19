"""Accuracy after so many classes, each at its own best learning rate: how published tables give it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import pandas as pd

from anml.config.training import model_order
from anml.report.statistics import Estimate, estimate, grouped
from anml.report.tables import POOLED, RateResult, finals, run_most, sweep_of
from anml.results import ResultRow


@dataclass(frozen=True)
class ClassCountAccuracy:
    """One row of such a table: mean test accuracy over the classes learned so far, half its 95% interval.

    A trajectory of many classes that is scored after `classes` of them is one of `classes` classes so far: the others
    have not been seen.
    """

    flavor: str
    model: str
    dataset: str
    checkpoint_step: int
    train_examples: int
    test_examples: int
    classes: int
    lr: float | None
    test_acc: float
    test_ci95: float
    train_acc: float
    runs: int
    seeds: int

    @property
    def sweep(self) -> tuple:
        """What it has in common with the milestones of the same trajectories."""
        return (self.flavor, self.model, self.dataset, self.checkpoint_step, self.train_examples, self.test_examples)


def best_by_classes(rows: Iterable[ResultRow]) -> list[ClassCountAccuracy]:
    """Return the best learning rate for every flavor, checkpoint and number of classes that was scored."""
    best = [_best(group) for group in grouped(rows, _kind).values()]
    return sorted(best, key=_order)


def _order(m: ClassCountAccuracy) -> tuple:
    return (*model_order(m.model), m.checkpoint_step, m.flavor, m.dataset, m.train_examples, m.classes)


def _kind(row: ResultRow) -> tuple:
    examples = (row.train_examples, row.test_examples)
    return (row.flavor, row.model, row.dataset, row.checkpoint_step, *examples, row.classes_trained)


def _best(rows: list[ResultRow]) -> ClassCountAccuracy:
    # Of several scorings of a trajectory (epochs of an i.i.d. one) the last; of several trajectory lengths the longest.
    last = {(row.lr, row.train_seed, row.run): row for row in sorted(rows, key=lambda r: (r.classes, r.step))}
    rates = grouped(last.values(), lambda row: row.lr).values()
    return max(map(_class_count_accuracy, run_most(rates, len)), key=lambda m: (m.test_acc, -(m.lr or 0.0)))


def _class_count_accuracy(rows: list[ResultRow]) -> ClassCountAccuracy:
    test = estimate((row.train_seed, row.test_acc) for row in rows)
    train = estimate((row.train_seed, row.train_acc) for row in rows)
    first = rows[0]
    return ClassCountAccuracy(
        flavor=first.flavor,
        model=first.model,
        dataset=first.dataset,
        checkpoint_step=first.checkpoint_step,
        train_examples=first.train_examples,
        test_examples=first.test_examples,
        classes=first.classes_trained,
        lr=first.lr,
        test_acc=test.mean,
        test_ci95=test.half_width,
        train_acc=train.mean,
        runs=test.runs,
        seeds=test.seeds,
    )


def as_table(milestones: Sequence[ClassCountAccuracy]) -> pd.DataFrame:
    """Return milestones as a table, a column per field."""
    return pd.DataFrame([vars(m) for m in milestones], columns=[field.name for field in fields(ClassCountAccuracy)])


# The learning curve: accuracy against classes learned, for one flavor at one checkpoint.


@dataclass(frozen=True)
class CurvePoint:
    """Accuracies after so many classes, means over the classes learned so far."""

    classes_trained: int
    test: Estimate
    train: Estimate


def learning_curve(rows: Sequence[ResultRow], best: Sequence[RateResult]) -> list[CurvePoint]:
    """Return the accuracies of a flavor at its best rates.

    best: the flavor's points of the summary at one checkpoint, one per number of classes. Either one long trajectory
    was scored on its way, or each number of classes has its own sweep; what gives more points is returned.
    """
    longest = max(best, key=lambda point: point.classes)
    on_the_way = _by_classes(_rows_of(rows, [longest]))
    at_the_ends = _by_classes(finals(_rows_of(rows, best)))
    chosen = on_the_way if len(on_the_way) >= len(at_the_ends) else at_the_ends
    return [_curve_point(learned, chosen[learned]) for learned in sorted(chosen)]


def _rows_of(rows: Sequence[ResultRow], points: Sequence[RateResult]) -> list[ResultRow]:
    """Return the rows that points of the summary stand for."""
    rates = {point.sweep: point.lr for point in points}
    seeds = {point.train_seed for point in points}
    return [
        row
        for row in rows
        if rates.get(sweep_of(row), -1.0) == row.lr and (POOLED in seeds or str(row.train_seed) in seeds)
    ]


def _by_classes(rows: Sequence[ResultRow]) -> dict[int, list[ResultRow]]:
    return grouped(rows, lambda row: row.classes_trained)


def _curve_point(learned: int, rows: Sequence[ResultRow]) -> CurvePoint:
    # I.i.d. learning is scored several times with all classes in play: its end counts.
    ends = [max(run, key=lambda row: row.step) for run in grouped(rows, lambda r: (r.train_seed, r.run)).values()]
    test = estimate((row.train_seed, row.test_acc) for row in ends)
    return CurvePoint(learned, test, estimate((row.train_seed, row.train_acc) for row in ends))
