"""The learning curve: accuracy against classes learned, for one flavor at one checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass

from anml.report.grouping import grouped
from anml.report.interval import Estimate, estimate
from anml.report.tables import POOLED, SweepPoint, finals, sweep_of
from anml.results import ResultRow


@dataclass(frozen=True)
class CurvePoint:
    """Accuracies after so many classes, means over the classes learned so far."""

    classes_trained: int
    test: Estimate
    train: Estimate


def learning_curve(rows: Sequence[ResultRow], best: Sequence[SweepPoint]) -> list[CurvePoint]:
    """Return the accuracies of a flavor at its best rates.

    best: the flavor's points of the summary at one checkpoint, one per number of classes. Either one long trajectory
    was scored on its way, or each number of classes has its own sweep; what gives more points is returned.
    """
    longest = max(best, key=lambda point: point.classes)
    on_the_way = _by_classes(_rows_of(rows, [longest]))
    at_the_ends = _by_classes(finals(_rows_of(rows, best)))
    chosen = on_the_way if len(on_the_way) >= len(at_the_ends) else at_the_ends
    return [_curve_point(learned, chosen[learned]) for learned in sorted(chosen)]


def _rows_of(rows: Sequence[ResultRow], points: Sequence[SweepPoint]) -> list[ResultRow]:
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
