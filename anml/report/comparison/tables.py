"""The comparison as tables: one per amount of classes and examples, experiments down, evaluations across."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from anml.config.training import TrainConfig
from anml.report.comparison.differences import Alignment, Evaluation, align
from anml.report.comparison.model import Cell, ComparedModel
from anml.report.curves import ClassCountAccuracy
from anml.report.labels import listed
from anml.report.statistics import Estimate, estimate, grouped
from anml.report.tables import RateResult


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
        return self.evaluation.protocol.is_shuffled

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
    def points(self) -> list[RateResult]:
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
    lines: dict[int, list[ClassCountAccuracy]]


def comparison_tables(entries: Sequence[ComparedModel]) -> list[Table]:
    """Return a table per amount, most classes first."""
    everything = [(place, cell) for place, entry in enumerate(entries) for cell in entry.cells]
    amounts = grouped(everything, lambda item: Amount(*(getattr(item[1].point, name) for name in Amount._fields)))
    order = sorted(amounts, key=lambda amount: (-amount.classes, *amount))
    return [_table(entries, amount, amounts[amount]) for amount in order]


def _table(entries: Sequence[ComparedModel], amount: Amount, items: Sequence[tuple[int, Cell]]) -> Table:
    own: list[dict[str, Cell]] = [{} for _ in entries]
    for place, cell in items:
        own[place][cell.point.flavor] = cell
    evaluations = [
        {flavor: entry.evaluation(flavor, cell.point.protocol, amount.dataset) for flavor, cell in cells.items()}
        for entry, cells in zip(entries, own, strict=True)
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
    return Table(amount, tuple(columns), tuple(table_notes(entries, aligned)))


def comparison_curves(entries: Sequence[ComparedModel]) -> list[Curve]:
    """Return a curve per sequential evaluation that two experiments have, and one of them scored on its way."""
    amounts: dict[tuple[str, int, int], list[dict[str, list[ClassCountAccuracy]]]] = {}
    for place, entry in enumerate(entries):
        for milestone in entry.milestones:
            key = (milestone.dataset, milestone.train_examples, milestone.test_examples)
            lines = amounts.setdefault(key, [{} for _ in entries])[place]
            lines.setdefault(milestone.flavor, []).append(milestone)
    return [curve for amount in sorted(amounts) for curve in _curves(entries, amount, amounts[amount])]


def _curves(
    entries: Sequence[ComparedModel], amount: tuple[str, int, int], lines: Sequence[dict[str, list[ClassCountAccuracy]]]
) -> list[Curve]:
    dataset = amount[0]
    evaluations = []
    for entry, own in zip(entries, lines, strict=True):
        protocols = {cell.point.flavor: cell.point.protocol for cell in entry.cells}
        evaluations.append({flavor: entry.evaluation(flavor, protocols[flavor], dataset) for flavor in own})
    curves = []
    for match in align(evaluations):
        found = {place: lines[place][flavor] for place, flavor in sorted(match.flavors.items())}
        if match.evaluation.protocol.in_sequence and len(found) > 1 and max(map(len, found.values())) > 1:
            curves.append(Curve(match.label, *amount, found))
    return curves


def as_frame(entries: Sequence[ComparedModel], tables: Sequence[Table]) -> pd.DataFrame:
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
                lines.append({**who(entries[place]), "evaluation": column.name, **vars(cell.point), **rates})
    names = [field.name for field in fields(RateResult)]
    columns = [*WHO, "evaluation", *names, "rates_tried", "lowest_rate", "highest_rate"]
    return pd.DataFrame(lines, columns=columns).astype({"lr": float, "lowest_rate": float, "highest_rate": float})


def by_classes_frame(entries: Sequence[ComparedModel]) -> pd.DataFrame:
    """Return a line per experiment, flavor and number of classes scored, with the columns of by-classes.csv."""
    lines = [{**who(entry), **vars(m)} for entry in entries for m in entry.milestones]
    return pd.DataFrame(lines, columns=[*WHO, *(field.name for field in fields(ClassCountAccuracy))]).astype(
        {"lr": float}
    )


WHO: dict[str, Callable[[ComparedModel], object]] = {
    "experiment": lambda entry: entry.label,
    "project": lambda entry: entry.experiment.project,
    "group": lambda entry: entry.experiment.group,
    "pixels": lambda entry: entry.config.image_shape[1] if entry.config else None,
    "differs_in": lambda entry: ", ".join(entry.differs_in),
    "is_incomplete": lambda entry: bool(entry.missing),
}


def who(entry: ComparedModel) -> dict[str, object]:
    """Return the values of the columns that say whose a line is."""
    return {name: read(entry) for name, read in WHO.items()}


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table with the digits of the reports' own files."""
    frame.to_csv(path, index=False, float_format="%.10g", lineterminator="\n")


# What learning in sequence costs: how far an oracle is ahead of its sequential flavor, run by run.


@dataclass(frozen=True)
class Gap:
    """Accuracy of an oracle minus that of its sequential flavor, by the place of the experiment.

    The mean over the runs that both have, of one evaluation seed: a run has the same classes and examples in both, so
    that the interval of the differences is narrower than those of the accuracies.
    """

    sequential: str
    oracle: str
    differences: dict[int, Estimate]

    @property
    def name(self) -> str:
        """Return `olft-oracle - olft`."""
        return f"{self.oracle} - {self.sequential}"


def gaps_of(table: Table) -> list[Gap]:
    """Return the gap of every sequential flavor to every oracle of it."""
    found = []
    for columns in table.pairs:
        for sequential in (column for column in columns if not column.is_oracle):
            found += [_gap(sequential, oracle) for oracle in columns if oracle.is_oracle]
    return [gap for gap in found if gap.differences]


def _gap(sequential: Column, oracle: Column) -> Gap:
    differences = {}
    for place in sorted(sequential.cells.keys() & oracle.cells.keys()):
        low, high = sequential.cells[place], oracle.cells[place]
        both = sorted(low.runs.keys() & high.runs.keys()) if low.seed == high.seed else ()
        if both:
            differences[place] = estimate((seed, high.runs[seed, run] - low.runs[seed, run]) for seed, run in both)
    return Gap(sequential.name, oracle.name, differences)


def gaps_frame(entries: Sequence[ComparedModel], tables: Sequence[Table]) -> pd.DataFrame:
    """Return a line per gap and experiment."""
    columns = {
        "difference": "mean", "std": "std", "ci95": "half_width", "interval_over": "over", "runs": "runs",
        "seeds": "seeds",
    }  # fmt: skip
    lines = [
        {
            **who(entries[place]),
            "model": entries[place].model,
            **table.amount._asdict(),
            "sequential": gap.sequential,
            "oracle": gap.oracle,
            **{name: getattr(value, field) for name, field in columns.items()},
        }
        for table in tables
        for gap in gaps_of(table)
        for place, value in gap.differences.items()
    ]
    return pd.DataFrame(
        lines,
        columns=[
            *WHO,
            "model",
            "dataset",
            "classes",
            "train_examples",
            "test_examples",
            "sequential",
            "oracle",
            *columns,
        ],
    )


# What a reader must know of a table in which not everything is equal.


def table_notes(entries: Sequence[ComparedModel], matches: Sequence[Alignment]) -> list[str]:
    """Return sentences on differences that a table allows for."""
    places = sorted({place for match in matches for place in match.flavors})
    here = [entries[place] for place in places]
    notes = [
        *_differing(
            here, lambda config: f"{config.image_shape[1]}x{config.image_shape[1]} pixels", "Images differ in size"
        ),
        *_differing(here, lambda config: f"{config.model_record.num_classes:,}", "Outputs differ in number"),
        *_other_names(entries, matches),
        *(note for match in matches for note in _other_seeds(entries, match)),
    ]
    if unknown := [entry.label for entry in here if entry.config is None]:
        notes.append(f"What the flavors of {listed(unknown)} do is unknown, so they have columns of their own.")
    return notes


def _differing(entries: Sequence[ComparedModel], read: Callable[[TrainConfig], Hashable], what: str) -> Iterator[str]:
    values = {entry.label: read(entry.config) for entry in entries if entry.config}
    if len(set(values.values())) > 1:
        yield f"{what}: {_by_value(values)}."


def _by_value(values: Mapping[str, Hashable]) -> str:
    """Return `ANML and SANML 28, OML 84`."""
    labels = grouped(values, lambda label: values[label])
    return ", ".join(f"{listed(names)} {value}" for value, names in labels.items())


def _other_names(entries: Sequence[ComparedModel], matches: Sequence[Alignment]) -> Iterator[str]:
    for place, entry in enumerate(entries):
        names = {
            match.label: match.flavors[place] for match in matches if match.flavors.get(place, match.name) != match.name
        }
        if names:
            yield f"{entry.label} calls {', '.join(f'{label} {name}' for label, name in names.items())}."


def _other_seeds(entries: Sequence[ComparedModel], match: Alignment) -> Iterator[str]:
    seeds = {}
    for place, flavor in match.flavors.items():
        config = entries[place].config
        if config and flavor in config.eval:
            seeds[entries[place].label] = config.eval[flavor].seed
    if len(set(seeds.values())) > 1:
        yield f"{match.label}: seeds differ, so runs are not of the same classes and examples: {_by_value(seeds)}."
