"""The comparison as plain text, for a terminal or a log."""

from collections.abc import Sequence

from anml.report.comparison.contender import Contender
from anml.report.comparison.tables import Cell, Row, Table
from anml.report.grid import accuracy, number_of_runs
from anml.report.text import WIDTH, aligned, blocks_of
from anml.report.wording import checkpoint, count, images, unit


def comparison_text(contenders: Sequence[Contender], tables: Sequence[Table]) -> str:
    """Return the experiments, and a table per amount: experiments down, evaluations across, at most 100 columns."""
    heading = "Test accuracy: mean ± 95% interval of the mean @ the best learning rate"
    parts = [heading, "", *_contender_lines(contenders)]
    return "\n".join([*parts, *(line for table in tables for line in ["", *_table_lines(contenders, table)])])


def _contender_lines(contenders: Sequence[Contender]) -> list[str]:
    columns = [
        ["experiment", *(contender.title for contender in contenders)],
        ["folder", *(contender.address for contender in contenders)],
        ["checkpoint", *(trained(contender) for contender in contenders)],
        ["state", *(contender.state for contender in contenders)],
    ]
    missing = [f"{contender.label}: {sentence}" for contender in contenders for sentence in contender.missing]
    return [*aligned(columns), *(["", "Incomplete:", *missing] if missing else [])]


def trained(contender: Contender) -> str:
    """Return which checkpoint is compared, of how many trainings."""
    seeds = max((point.seeds for point in contender.best), default=1)
    return checkpoint(contender.step, unit(contender.config)) + (f", {count(seeds, 'seeds')}" if seeds > 1 else "")


def _table_lines(contenders: Sequence[Contender], table: Table) -> list[str]:
    noun, amount = images(table.amount.dataset), table.amount
    what = f"{amount.classes} classes of {amount.dataset}, {amount.train_examples} {noun} of each to learn"
    caption = f"{what}, {amount.test_examples} to test; {number_of_runs(table.points)}"
    names = ["experiment", *(contenders[place].title for place in table.places), "chance"]
    columns = [_column(row, table.places, f"{1 / amount.classes:.4f}") for row in table.rows]
    blocks = blocks_of(columns, WIDTH - max(map(len, names)))
    lines = [line for block in blocks for line in [*aligned([names, *block]), ""]]
    return [caption, *lines[:-1], *(f"note: {note}" for note in table.notes)]


def _column(row: Row, places: Sequence[int], chance: str) -> list[str]:
    cells = (row.cells.get(place) for place in places)
    return [row.name, *("-" if cell is None else _cell(cell, row.effort_differs) for cell in cells), chance]


def _cell(cell: Cell, with_effort: bool) -> str:
    rate = "" if cell.point.lr is None else f" @ {cell.point.lr:g}"
    return accuracy(cell.point) + rate + (f" ({effort(cell)})" if with_effort else "")


def effort(cell: Cell) -> str:
    """Return the number of runs, and of the rates that the best was chosen from."""
    runs = number_of_runs([cell.point])
    return f"{runs}, {count(len(cell.rates), 'rates')}" if cell.rates else runs
