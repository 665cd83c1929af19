"""The accuracy table: flavors down, checkpoints across, one grid per model and setting (classes and examples)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from anml.config.facts import is_validation
from anml.report import labels
from anml.report.curves import ClassCountAccuracy
from anml.report.labels import checkpoint
from anml.report.statistics import Estimate, grouped
from anml.report.tables import RateResult, main_points


class Setting(NamedTuple):
    """How much is learned and tested: classes, and examples of each class.

    is_validation: the classes are background classes that training left out. Kept apart from all that is measured on
    evaluation classes: rates and options were chosen on them.
    """

    classes: int
    train_examples: int
    test_examples: int
    is_validation: bool = False

    @property
    def noun(self) -> str:
        """What the classes are called."""
        return labels.classes(self.is_validation)


class AccuracyGrid(NamedTuple):
    """One model's points in one setting: `cells[flavor][step]`; trained checkpoints first in `steps`, untrained last.

    model: empty where there is only one.
    """

    model: str
    setting: Setting
    steps: tuple[int, ...]
    cells: dict[str, dict[int, RateResult]]

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the classes learned."""
        return 1 / self.setting.classes

    @property
    def runs(self) -> str:
        """Number of runs behind each mean, in words."""
        return number_of_runs([point for row in self.cells.values() for point in row.values()])


def setting_of(point: RateResult) -> Setting:
    """Return the setting of a point."""
    return Setting(point.classes, point.train_examples, point.test_examples, is_validation(point.dataset))


def accuracy_grids(summary: Sequence[RateResult]) -> list[AccuracyGrid]:
    """Return a grid per setting and model in the summary's order, pooled over trainings where there are several."""
    grids = []
    for (setting, model), points in grouped(main_points(summary), setting_and_model(summary)).items():
        flavors = grouped(points, lambda point: point.flavor)
        cells = {flavor: {point.checkpoint_step: point for point in row} for flavor, row in flavors.items()}
        steps = sorted({point.checkpoint_step for point in points}, key=lambda step: (step == 0, step))
        grids.append(AccuracyGrid(model, setting, tuple(steps), cells))
    return grids


def setting_and_model(points: Sequence[RateResult]) -> Callable[[RateResult], tuple[Setting, str]]:
    """Return what gives a point's setting and its model's name, which is empty where there is only one model."""
    has_several = len({point.model for point in points}) > 1
    return lambda point: (setting_of(point), point.model if has_several else "")


def last_checkpoint(summary: Sequence[RateResult]) -> list[RateResult]:
    """Return a point per flavor: at the last checkpoint, for the setting with the most classes, of the best model.

    Held-out background classes count only where nothing was evaluated on others.
    """
    points = main_points(summary)
    points = [point for point in points if setting_of(point) == setting_of(points[0])]
    last = max((point.checkpoint_step for point in points), default=0)
    ends = [point for point in points if point.checkpoint_step == last]
    return [max(group, key=lambda p: p.test_acc) for group in grouped(ends, lambda point: point.flavor).values()]


def accuracy(point: RateResult) -> str:
    """Return mean and 95% interval, as `0.734 ± 0.021`."""
    return f"{point.test_acc:.3f}" + ("" if math.isnan(point.test_ci95) else f" ± {point.test_ci95:.3f}")


def number_of_runs(points: Sequence[RateResult | ClassCountAccuracy | Estimate]) -> str:
    """Return `10 runs`, `7 to 10 runs` where some are missing, or `30 runs of 3 seeds`."""
    runs, seeds = (_range([getattr(point, name) for point in points]) for name in ("runs", "seeds"))
    return f"{runs} run{'' if runs == '1' else 's'}" + ("" if seeds == "1" else f" of {seeds} seeds")


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


# The accuracy table as plain text, for a terminal or a log.

HEADING = "Test accuracy: mean ± 95% interval of the mean @ the best learning rate"
WIDTH = 100
GAP = "  "


def accuracy_table(summary: Sequence[RateResult], unit: str = "episodes") -> str:
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


def _cell(point: RateResult) -> str:
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
