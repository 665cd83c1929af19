"""The accuracy table as plain text, for a terminal or a log."""

import pandas as pd

from anml.report.grid import AccuracyGrid, accuracy_grids

WIDTH = 100
GAP = "  "


def accuracy_table(summary: pd.DataFrame, unit: str = "episodes") -> str:
    """Return flavors down and checkpoints across, at most 100 columns wide. `unit`: what checkpoints count."""
    grids = accuracy_grids(summary)
    if not grids:
        return "No results yet."
    heading = "Test accuracy: mean ± 95% interval of the mean @ the best learning rate"
    return "\n".join([heading, *(line for grid in grids for line in ["", *_grid_lines(grid, unit)])])


def _grid_lines(grid: AccuracyGrid, unit: str) -> list[str]:
    """Return a caption and as many blocks of columns as it takes to stay within the width."""
    lines = [f"{grid.setting.label}; {grid.runs}"]
    names = ["flavor", *grid.cells]
    columns = [_column(grid, step, unit) for step in grid.steps]
    columns.append(["chance", *(f"{grid.chance:.4f}" for _ in grid.cells)])
    for block in _blocks(columns, WIDTH - max(map(len, names))):
        lines += _aligned([names, *block])
    return lines


def _column(grid: AccuracyGrid, step: int, unit: str) -> list[str]:
    cells = (row.get(step) for row in grid.cells.values())
    return [f"{step:,} {unit}" if step else "untrained", *("-" if cell is None else cell.text for cell in cells)]


def _blocks(columns: list[list[str]], width: int) -> list[list[list[str]]]:
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


def _aligned(columns: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return [GAP.join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
