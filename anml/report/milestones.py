"""Accuracy after so many classes, each at its own best learning rate: how published tables give it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import pandas as pd

from anml.config.variation import model_order
from anml.report.grouping import grouped
from anml.report.interval import estimate
from anml.report.tables import run_most
from anml.results import ResultRow


@dataclass(frozen=True)
class Milestone:
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


def best_by_classes(rows: Iterable[ResultRow]) -> list[Milestone]:
    """Return the best learning rate for every flavor, checkpoint and number of classes that was scored."""
    best = [_best(group) for group in grouped(rows, _kind).values()]
    return sorted(best, key=_order)


def _order(m: Milestone) -> tuple:
    return (*model_order(m.model), m.checkpoint_step, m.flavor, m.dataset, m.train_examples, m.classes)


def _kind(row: ResultRow) -> tuple:
    examples = (row.train_examples, row.test_examples)
    return (row.flavor, row.model, row.dataset, row.checkpoint_step, *examples, row.classes_trained)


def _best(rows: list[ResultRow]) -> Milestone:
    # Of several scorings of a trajectory (epochs of an i.i.d. one) the last; of several trajectory lengths the longest.
    last = {(row.lr, row.train_seed, row.run): row for row in sorted(rows, key=lambda r: (r.classes, r.step))}
    rates = grouped(last.values(), lambda row: row.lr).values()
    return max(map(_milestone, run_most(rates, len)), key=lambda m: (m.test_acc, -(m.lr or 0.0)))


def _milestone(rows: list[ResultRow]) -> Milestone:
    test = estimate((row.train_seed, row.test_acc) for row in rows)
    train = estimate((row.train_seed, row.train_acc) for row in rows)
    first = rows[0]
    return Milestone(
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


def as_table(milestones: Sequence[Milestone]) -> pd.DataFrame:
    """Return milestones as a table, a column per field."""
    return pd.DataFrame([vars(m) for m in milestones], columns=[field.name for field in fields(Milestone)])
