"""The accuracy table as plain text, for a terminal or a log."""

from collections.abc import Sequence

from anml.report.grid import AccuracyGrid, accuracy, accuracy_grids
from anml.report.tables import SweepPoint
from anml.report.wording import checkpoint

HEADING = "Test accuracy: mean ± 95% interval of the mean @ the best learning rate"
WIDTH = 100
GAP = "  "


def accuracy_table(summary: Sequence[SweepPoint], unit: str = "episodes") -> str:
    """Return flavors down and checkpoints across, at most 100 columns wide. `unit`: what checkpoints count."""
    grids = accuracy_grids(summary)
    if not grids:
        return "No results yet."
    return "\n".join([HEADING, *(line for grid in grids for line in ["", *_grid_lines(grid, unit)])])


def _grid_lines(grid: AccuracyGrid, unit: str) -> list[str]:
    """Return a caption and as many blocks of columns as it takes to stay within the width."""
    setting = grid.setting
    caption = f"{setting.classes} {setting.noun}, {setting.train_examples} examples of each to learn, "
    caption += f"{setting.test_examples} to test; {grid.runs}"
    caption = f"{grid.model}: {caption}" if grid.model else caption
    names = ["flavor", *grid.cells]
    columns = [_column(grid, step, unit) for step in grid.steps]
    columns.append(["chance", *(f"{grid.chance:.4f}" for _ in grid.cells)])
    blocks = blocks_of(columns, WIDTH - max(map(len, names)))
    return [caption, *(line for block in blocks for line in [*aligned([names, *block]), ""])][:-1]


def _column(grid: AccuracyGrid, step: int, unit: str) -> list[str]:
    points = (row.get(step) for row in grid.cells.values())
    return [checkpoint(step, unit), *("-" if point is None else _cell(point) for point in points)]


def _cell(point: SweepPoint) -> str:
    return accuracy(point) + ("" if point.lr is None else f" @ {point.lr:g}")


def blocks_of(columns: list[list[str]], width: int) -> list[list[list[str]]]:
    """Return columns of a table in blocks of at most so many characters."""
    blocks: list[list[list[str]]] = [[]]
    left = width
    for column in columns:
        needed = len(GAP) + max(map(len, column))
        if needed > left and blocks[-1]:
            blocks.append([])
            left = width
        blocks[-1].append(column)
        left -= needed
    return blocks


def aligned(columns: list[list[str]]) -> list[str]:
    """Return the lines of a table given by its columns."""
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return [GAP.join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
