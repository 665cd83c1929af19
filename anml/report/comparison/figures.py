"""Accuracy of every model, sequential beside oracle; and against the number of classes learned."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from anml.report import style
from anml.report.comparison.model import ComparedModel
from anml.report.comparison.tables import Column, Curve, Table
from anml.report.labels import classes_of, images, in_lines
from anml.report.statistics import grouped
from anml.report.style import Look
from anml.report.text import number_of_runs

# More panels than this are too small to read.
MOST_PANELS = 3
# A group of markers takes one unit of the axis; models share this much of it.
GROUP_WIDTH = 0.8
PANEL_HEIGHT = 3.4
# Inches: what stands left of a panel and between the names below it, and how many lines of names it has room for.
LEFT_OF_PANEL, NAME_GAP, NAME_LINES = 1.4, 0.15, 2


def model_looks(models: Sequence[ComparedModel]) -> list[Look]:
    """Return the look of each model, the same in all figures of a comparison."""
    looks = style.find_looks([model.label for model in models], style.MODELS, unique_colours=True)
    marks = {model.label: model.title.removeprefix(model.label) for model in models}  # ` (incomplete)`, or nothing.
    return [looks[label]._replace(label=looks[label].label + mark) for label, mark in marks.items()]


def draw_accuracies(looks: Sequence[Look], tables: Sequence[Table]) -> Figure:
    """Draw test accuracy at the best learning rate, a panel per table, an oracle right of its sequential evaluation.

    looks: of the models.
    """
    shown = style.spread(tables, MOST_PANELS)
    groups = max(len(table.pairs) for table in shown)
    width = min(14.0, max(6.6, 1.2 + groups * max(1.7, 0.42 * len(looks))))
    names = [_names(table, (width - LEFT_OF_PANEL) / len(table.pairs) - NAME_GAP) for table in shown]
    most_lines = [max(name.count("\n") + 1 for name in in_panel) for in_panel in names]
    heights = [PANEL_HEIGHT + style.LINE_HEIGHT * max(0, lines - NAME_LINES) for lines in most_lines]
    figure = Figure(figsize=(width, sum(heights) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 1, sharey=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, table, in_panel in zip(panels, shown, names, strict=True):
        _accuracy_panel(panel, looks, table)
        panel.set_xticks(range(len(in_panel)), in_panel)
    style.legend_below(figure, panels, [look.label for look in looks])
    return figure


def _names(table: Table, width: float) -> list[str]:
    """Return what stands below each group: its names in lines of at most so many inches.

    What tells several names from their doubles stands once, below them.
    """
    names = []
    for columns in table.pairs:
        lines = []
        for (space, end), alike in grouped(columns, lambda column: column.name.partition(" (")[1:]).items():
            lines += [column.name.partition(" (")[0] for column in alike]
            lines += [(space + end).strip()] if end else []
        names.append(style.broken("\n".join(lines), width))
    return names


def _accuracy_panel(panel: Axes, looks: Sequence[Look], table: Table) -> None:
    for group, columns in enumerate(table.pairs):
        for index, look in enumerate(looks):
            middle = group + GROUP_WIDTH * ((index + 0.5) / len(looks) - 0.5)
            _dots(panel, [c for c in columns if index in c.cells], index, look, middle, GROUP_WIDTH / len(looks))
    for index in table.models:  # Empty lines, which only the legend shows.
        look = looks[index]
        panel.plot([], [], color=look.colour, marker=look.marker, linestyle="", label=look.label)
    if any(column.evaluation.is_oracle for column in table.columns):
        panel.plot(
            [], [], color=style.GREY, marker="o", linestyle="", markerfacecolor="white", label="hollow: shuffled"
        )
    amount = table.amount
    panel.axhline(1 / amount.classes, color=style.GREY, linestyle=":", label="chance")
    each = f"{amount.train_examples} + {amount.test_examples} {images(amount.dataset)} each"
    what = f"test accuracy, {amount.classes} {in_lines(classes_of(amount.dataset))}, {each}"
    panel.set_ylabel(f"{what}\n{number_of_runs(table.results)}")
    panel.set_xlim(-0.5, len(table.pairs) - 0.5)
    panel.grid(False, axis="x")
    for boundary in range(1, len(table.pairs)):
        panel.axvline(boundary - 0.5, color=style.GRID_COLOUR, linewidth=0.8, zorder=0)
    style.accuracy_axis(panel)


def _dots(panel: Axes, columns: Sequence[Column], index: int, look: Look, middle: float, room: float) -> None:
    """Draw one model's results of a group, joined: the line's length is what learning in sequence costs."""
    results = [column.cells[index].best for column in columns]
    positions = [middle + room * 0.5 * (number - (len(columns) - 1) / 2) for number in range(len(columns))]
    panel.plot(positions, [result.test_acc for result in results], color=look.colour, linewidth=1, alpha=0.6)
    for x, result, column in zip(positions, results, columns, strict=True):
        panel.errorbar(
            x, result.test_acc, np.nan_to_num(result.test_ci95), color=look.colour, marker=look.marker, capsize=2.5,
            elinewidth=1.1, markersize=6, linestyle="",
            markerfacecolor="white" if column.evaluation.is_oracle else look.colour,
        )  # fmt: skip


def draw_curve(looks: Sequence[Look], curve: Curve) -> Figure:
    """Draw test accuracy on the classes learned so far, each at the rate that is best for this many."""
    figure, axes = style.panel_grid(1, 1, panel_height=3.8)
    panel = axes[0, 0]
    for index, line in curve.lines.items():
        style.accuracy_line(panel, line, looks[index])
    results = [result for line in curve.lines.values() for result in line]
    style.chance_line(panel, max(result.classes for result in results))
    first = results[0]
    each = f"{first.train_examples} + {first.test_examples} {images(first.dataset)} of each"
    title = f"{curve.name}, {first.dataset}: {each}, {number_of_runs(results)}"
    panel.set_title(style.broken(title, figure.get_figwidth() - LEFT_OF_PANEL))
    panel.set_ylabel("test accuracy on the classes learned")
    panel.set_xlabel("classes learned")
    style.accuracy_axis(panel)
    panel.set_xlim(left=0)
    style.count_axis(panel, bins=7)
    style.legend_below(figure, [panel], [look.label for look in looks])
    return figure
