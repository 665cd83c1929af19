"""The comparison as plain text, for a terminal or a log."""

import math
from collections.abc import Sequence

from anml.report.comparison.model import Cell, ComparedModel
from anml.report.comparison.tables import Column, Gap, Table, gaps_of
from anml.report.labels import checkpoint, classes_of, count, images, unit
from anml.report.statistics import Estimate
from anml.report.text import HEADING, WIDTH, accuracy, aligned, blocks_of, number_of_runs

GAP_HEADING = "What learning in sequence costs: oracle minus sequential, run by run, mean ± 95% interval"
CHOICE_HEADING = "What the trainings differ in"


def comparison_text(entries: Sequence[ComparedModel], tables: Sequence[Table]) -> str:
    """Return the experiments, and a table per amount: experiments down, evaluations across, at most 100 columns."""
    parts = [HEADING, "", *_entry_lines(entries), *_choice_lines(entries)]
    return "\n".join([*parts, *(line for table in tables for line in ["", *_table_lines(entries, table)])])


def _entry_lines(entries: Sequence[ComparedModel]) -> list[str]:
    columns = [
        ["experiment", *(entry.title for entry in entries)],
        ["folder", *(entry.address for entry in entries)],
        ["checkpoint", *(trained(entry) for entry in entries)],
        ["state", *(entry.state for entry in entries)],
    ]
    missing = [f"{entry.label}: {sentence}" for entry in entries for sentence in entry.missing]
    return [*aligned(columns), *(["", "Incomplete:", *missing] if missing else [])]


def _choice_lines(entries: Sequence[ComparedModel]) -> list[str]:
    """Return a table of what the trainings differ in, `-` where a key plays no part."""
    keys = dict.fromkeys(key for entry in entries for key in entry.choices)
    if not keys:
        return []
    names = ["experiment", *(entry.title for entry in entries)]
    columns = [[key, *(entry.choices.get(key, "-") for entry in entries)] for key in keys]
    return ["", CHOICE_HEADING, *_in_blocks(names, columns)]


def trained(entry: ComparedModel) -> str:
    """Return which checkpoint is compared, of how many trainings."""
    seeds = max((cell.point.seeds for cell in entry.cells), default=1)
    return checkpoint(entry.step, unit(entry.config)) + (f", {count(seeds, 'seeds')}" if seeds > 1 else "")


def _table_lines(entries: Sequence[ComparedModel], table: Table) -> list[str]:
    noun, amount = images(table.amount.dataset), table.amount
    what = f"{amount.classes} {classes_of(amount.dataset)}, {count(amount.train_examples, noun)} of each to learn"
    caption = f"{what}, {amount.test_examples} to test; {number_of_runs(table.points)}"
    names = ["experiment", *(entries[place].title for place in table.places), "chance"]
    columns = [_column(column, table.places, f"{1 / amount.classes:.4f}") for column in table.columns]
    return [
        caption,
        *_in_blocks(names, columns),
        *_gap_lines(entries, table),
        *(f"note: {note}" for note in table.notes),
    ]


def _gap_lines(entries: Sequence[ComparedModel], table: Table) -> list[str]:
    gaps = gaps_of(table)
    if not gaps:
        return []
    names = ["experiment", *(entries[place].title for place in table.places)]
    columns = [[gap.name, *(_gap(gap, place) for place in table.places)] for gap in gaps]
    return ["", GAP_HEADING, *_in_blocks(names, columns)]


def _in_blocks(names: list[str], columns: list[list[str]]) -> list[str]:
    """Return the lines of a table, in blocks one below the other where it is too wide."""
    blocks = blocks_of(columns, WIDTH - max(map(len, names)))
    return [line for block in blocks for line in [*aligned([names, *block]), ""]][:-1]


def _gap(gap: Gap, place: int) -> str:
    return difference(gap.differences[place]) if place in gap.differences else "-"


def difference(value: Estimate) -> str:
    """Return mean and 95% interval of a difference, as `+0.076 ± 0.005`."""
    return f"{value.mean:+.3f}" + ("" if math.isnan(value.half_width) else f" ± {value.half_width:.3f}")


def _column(column: Column, places: Sequence[int], chance: str) -> list[str]:
    cells = (column.cells.get(place) for place in places)
    return [column.name, *("-" if cell is None else _cell(cell, column.effort_differs) for cell in cells), chance]


def _cell(cell: Cell, with_effort: bool) -> str:
    rate = "" if cell.point.lr is None else f" @ {cell.point.lr:g}"
    return accuracy(cell.point) + rate + (f" ({effort(cell)})" if with_effort else "")


def effort(cell: Cell) -> str:
    """Return the number of runs, and of the rates that the best was chosen from."""
    runs = number_of_runs([cell.point])
    return f"{runs}, {count(len(cell.rates), 'rates')}" if cell.rates else runs
