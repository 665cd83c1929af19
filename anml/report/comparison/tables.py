"""The comparison as tables: one per amount of classes and examples, experiments down, evaluations across."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from anml.report.comparison.contender import Cell, Contender
from anml.report.comparison.evaluation import Evaluation, align
from anml.report.comparison.notes import table_notes
from anml.report.grouping import grouped
from anml.report.milestones import Milestone
from anml.report.tables import SweepPoint


class Amount(NamedTuple):
    """What is learned in all cells of a table: classes of a data set, and examples of each."""

    dataset: str
    classes: int
    train_examples: int
    test_examples: int


@dataclass(frozen=True)
class Column:
    """One evaluation; cells by the place of the experiment."""

    name: str
    evaluation: Evaluation
    cells: dict[int, Cell]

    @property
    def is_oracle(self) -> bool:
        """Whether the examples come shuffled."""
        return self.evaluation.eval_method == "iid"

    @property
    def effort_differs(self) -> bool:
        """Whether experiments had different numbers of runs, of seeds, or of rates to choose from."""
        efforts = {(cell.point.runs, cell.point.seeds, len(cell.rates)) for cell in self.cells.values()}
        return len(efforts) > 1


@dataclass(frozen=True)
class Table:
    """All columns of one amount, an oracle right behind its sequential evaluation."""

    amount: Amount
    columns: tuple[Column, ...]
    notes: tuple[str, ...]

    @property
    def points(self) -> list[SweepPoint]:
        """The points of all cells."""
        return [cell.point for column in self.columns for cell in column.cells.values()]

    @property
    def places(self) -> list[int]:
        """Places of the experiments that have results here."""
        return sorted({place for column in self.columns for place in column.cells})

    @property
    def pairs(self) -> list[list[Column]]:
        """Columns in groups: a sequential evaluation with its oracle, every other one alone."""
        return list(grouped(self.columns, lambda column: column.evaluation.pair).values())


@dataclass(frozen=True)
class Curve:
    """One sequential evaluation: accuracy against classes learned, by the place of the experiment."""

    name: str
    dataset: str
    train_examples: int
    test_examples: int
    lines: dict[int, list[Milestone]]


def comparison_tables(contenders: Sequence[Contender]) -> list[Table]:
    """Return a table per amount, most classes first."""
    everything = [(place, cell) for place, contender in enumerate(contenders) for cell in contender.cells]
    amounts = grouped(everything, lambda item: Amount(*(getattr(item[1].point, name) for name in Amount._fields)))
    order = sorted(amounts, key=lambda amount: (-amount.classes, *amount))
    return [_table(contenders, amount, amounts[amount]) for amount in order]


def _table(contenders: Sequence[Contender], amount: Amount, items: Sequence[tuple[int, Cell]]) -> Table:
    own: list[dict[str, Cell]] = [{} for _ in contenders]
    for place, cell in items:
        own[place][cell.point.flavor] = cell
    evaluations = [
        {flavor: contender.evaluation(flavor, cell.point.protocol, amount.dataset) for flavor, cell in cells.items()}
        for contender, cells in zip(contenders, own, strict=True)
    ]
    aligned = align(evaluations)
    columns = [
        Column(
            match.label,
            match.evaluation,
            {place: own[place][flavor] for place, flavor in sorted(match.flavors.items())},
        )
        for match in aligned
    ]
    return Table(amount, tuple(columns), tuple(table_notes(contenders, aligned)))


def comparison_curves(contenders: Sequence[Contender]) -> list[Curve]:
    """Return a curve per sequential evaluation that two experiments have, and one of them scored on its way."""
    amounts: dict[tuple[str, int, int], list[dict[str, list[Milestone]]]] = {}
    for place, contender in enumerate(contenders):
        for milestone in contender.milestones:
            key = (milestone.dataset, milestone.train_examples, milestone.test_examples)
            lines = amounts.setdefault(key, [{} for _ in contenders])[place]
            lines.setdefault(milestone.flavor, []).append(milestone)
    return [curve for amount in sorted(amounts) for curve in _curves(contenders, amount, amounts[amount])]


def _curves(
    contenders: Sequence[Contender], amount: tuple[str, int, int], lines: Sequence[dict[str, list[Milestone]]]
) -> list[Curve]:
    dataset = amount[0]
    evaluations = []
    for contender, own in zip(contenders, lines, strict=True):
        protocols = {cell.point.flavor: cell.point.protocol for cell in contender.cells}
        evaluations.append({flavor: contender.evaluation(flavor, protocols[flavor], dataset) for flavor in own})
    curves = []
    for match in align(evaluations):
        found = {place: lines[place][flavor] for place, flavor in sorted(match.flavors.items())}
        if match.evaluation.eval_method == "sequential" and len(found) > 1 and max(map(len, found.values())) > 1:
            curves.append(Curve(match.label, *amount, found))
    return curves


def as_frame(contenders: Sequence[Contender], tables: Sequence[Table]) -> pd.DataFrame:
    """Return a line per cell: whose it is, the fields of SweepPoint as in summary.csv, and the rates tried."""
    lines = []
    for table in tables:
        for column in table.columns:
            for place, cell in column.cells.items():
                rates = {
                    "rates_tried": len(cell.rates),
                    "lowest_rate": min(cell.rates, default=None),
                    "highest_rate": max(cell.rates, default=None),
                }
                lines.append({**who(contenders[place]), "evaluation": column.name, **vars(cell.point), **rates})
    names = [field.name for field in fields(SweepPoint)]
    columns = [*WHO, "evaluation", *names, "rates_tried", "lowest_rate", "highest_rate"]
    return pd.DataFrame(lines, columns=columns).astype({"lr": float, "lowest_rate": float, "highest_rate": float})


def by_classes_frame(contenders: Sequence[Contender]) -> pd.DataFrame:
    """Return a line per experiment, flavor and number of classes scored, with the columns of by-classes.csv."""
    lines = [{**who(contender), **vars(m)} for contender in contenders for m in contender.milestones]
    return pd.DataFrame(lines, columns=[*WHO, *(field.name for field in fields(Milestone))]).astype({"lr": float})


WHO: dict[str, Callable[[Contender], object]] = {
    "experiment": lambda contender: contender.label,
    "project": lambda contender: contender.experiment.project,
    "group": lambda contender: contender.experiment.group,
    "pixels": lambda contender: contender.config.image_shape[1] if contender.config else None,
    "differs_in": lambda contender: ", ".join(contender.differs_in),
    "is_incomplete": lambda contender: bool(contender.missing),
}


def who(contender: Contender) -> dict[str, object]:
    """Return the values of the columns that say whose a line is."""
    return {name: read(contender) for name, read in WHO.items()}


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table with the digits of the reports' own files."""
    frame.to_csv(path, index=False, float_format="%.10g", lineterminator="\n")
