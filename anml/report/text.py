"""The accuracy table: flavors down, checkpoints across, one grid per model and amount (classes and examples)."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from anml.report.labels import checkpoint
from anml.report.statistics import Estimate, grouped
from anml.report.tables import Amount, RateResult, main_results

HEADING = "Test accuracy: mean ± 95% interval of the mean @ the best learning rate"
WIDTH = 100
GAP = "  "


class AccuracyGrid(NamedTuple):
    """One model's results of one amount: `cells[flavor][step]`; trained checkpoints first in `steps`, untrained last.

    model: empty where there is only one.
    """

    model: str
    amount: Amount
    steps: tuple[int, ...]
    cells: dict[str, dict[int, RateResult]]

    @property
    def chance(self) -> float:
        return 1 / self.amount.classes

    @property
    def runs(self) -> str:
        """Number of runs behind each mean, in words."""
        return number_of_runs([result for row in self.cells.values() for result in row.values()])


def amount_and_model(results: Sequence[RateResult]) -> Callable[[RateResult], tuple[Amount, str]]:
    """Return what gives a result's amount and its model's name, which is empty where there is only one model."""
    has_several = len({result.model for result in results}) > 1
    return lambda result: (result.amount, result.model if has_several else "")


def accuracy_grids(summary: Sequence[RateResult]) -> list[AccuracyGrid]:
    """Return a grid per amount and model in the summary's order, pooled over trainings where there are several."""
    grids = []
    for (amount, model), results in grouped(main_results(summary), amount_and_model(summary)).items():
        flavors = grouped(results, lambda result: result.flavor)
        cells = {flavor: {result.checkpoint_step: result for result in row} for flavor, row in flavors.items()}
        steps = sorted({result.checkpoint_step for result in results}, key=lambda step: (step == 0, step))
        grids.append(AccuracyGrid(model, amount, tuple(steps), cells))
    return grids


def last_checkpoint(summary: Sequence[RateResult], chosen: Collection[str] = ()) -> list[RateResult]:
    """Return a result per flavor: at the last checkpoint, for the amount with the most classes, of the best model.

    chosen: flavors that choose their checkpoint, which counts for them.

    Held-out background classes count only where nothing was evaluated on others.
    """
    results = main_results(summary)
    results = [result for result in results if result.amount == results[0].amount]
    models = grouped(results, lambda result: result.model)
    last = {model: max(result.checkpoint_step for result in own) for model, own in models.items()}
    flavors = grouped(
        (r for r in results if r.checkpoint_step == last[r.model] or r.flavor in chosen), lambda result: result.flavor
    )
    return [max(models, key=lambda result: result.test_acc) for models in flavors.values()]


def accuracy(result: RateResult) -> str:
    """Return mean and 95% interval, as `0.734 ± 0.021`."""
    return f"{result.test_acc:.3f}" + ("" if math.isnan(result.test_ci95) else f" ± {result.test_ci95:.3f}")


def accuracy_at_rate(result: RateResult) -> str:
    """Return mean, 95% interval and learning rate, as `0.734 ± 0.021 @ 0.001`."""
    return accuracy(result) + ("" if result.lr is None else f" @ {result.lr:g}")


def number_of_runs(results: Sequence[RateResult | Estimate]) -> str:
    """Return `10 runs`, `7 to 10 runs` where some are missing, or `30 runs of 3 seeds`."""
    runs, seeds = (_range([getattr(result, name) for result in results]) for name in ("runs", "seeds"))
    return f"{runs} run{'' if runs == '1' else 's'}" + ("" if seeds == "1" else f" of {seeds} seeds")


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def accuracy_table(summary: Sequence[RateResult], unit: str = "episodes") -> str:
    """Return the accuracies as text for a terminal or a log. `unit`: what checkpoints count."""
    grids = accuracy_grids(summary)
    if not grids:
        return "No results yet."
    return "\n".join([HEADING, *(line for grid in grids for line in ["", *_grid_lines(grid, unit)])])


def _grid_lines(grid: AccuracyGrid, unit: str) -> list[str]:
    amount = grid.amount
    caption = f"{amount.classes} {amount.noun}, {amount.train_examples} examples of each to learn, "
    caption += f"{amount.test_examples} to test; {grid.runs}"
    columns = []
    for step in grid.steps:
        results = (row.get(step) for row in grid.cells.values())
        columns.append([checkpoint(step, unit), *("-" if r is None else accuracy_at_rate(r) for r in results)])
    columns.append(["chance", *(f"{grid.chance:.4f}" for _ in grid.cells)])
    caption = f"{grid.model}: {caption}" if grid.model else caption
    return [caption, *table_lines(["flavor", *grid.cells], columns)]


def table_lines(names: list[str], columns: list[list[str]]) -> list[str]:
    """Return the lines of a table, at most WIDTH characters wide: in blocks one below the other where it is wider.

    names: the first column, which every block begins with. Each column begins with its heading.
    """
    blocks = [[names]]
    width = 0
    for column in columns:
        width += len(GAP) + max(map(len, column))
        if width > WIDTH - max(map(len, names)) and len(blocks[-1]) > 1:
            blocks.append([names])
            width = len(GAP) + max(map(len, column))
        blocks[-1].append(column)
    return [line for block in blocks for line in ["", *aligned(block)]][1:]


def aligned(columns: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return [GAP.join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def interval_note(results: Sequence[RateResult]) -> str:
    """Return what the intervals of results are over."""
    over = {result.interval_over for result in results}
    pooled = [result.seeds > 1 for result in results]
    if not any(pooled):
        return "over runs: it tells how much classes and examples matter, not how much trainings differ"
    if over == {"seeds"}:
        return "over the trained seeds' means, which the number is the mean of"
    if over == {"runs"} and all(pooled):
        return "over all runs of all trained seeds (it takes three seeds to tell how much trainings differ)"
    return "over the trained seeds' means where there are three or more, else over all their runs"
