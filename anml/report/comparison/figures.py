"""Accuracy of every experiment, sequential beside oracle; and against the number of classes learned."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from anml.report.comparison.tables import Column, Curve, Table
from anml.report.curves import ClassCountAccuracy
from anml.report.labels import classes_of, images, in_lines
from anml.report.statistics import grouped
from anml.report.style import (
    GREY,
    LINE_HEIGHT,
    accuracy_axis,
    broken,
    colour,
    legend_below,
    marker,
    or_zero,
    panel_grid,
    spread,
)
from anml.report.text import number_of_runs

# More panels than this are too small to read.
MOST_PANELS = 3
# A group of markers takes one unit of the axis; experiments share this much of it.
GROUP_WIDTH = 0.8
PANEL_HEIGHT = 3.4
# Inches: what stands left of a panel and between the names below it, and how many lines of names it has room for.
LEFT_OF_PANEL, NAME_GAP, NAME_LINES = 1.4, 0.15, 2
ORACLE = "hollow: oracle"


def draw_accuracies(titles: Sequence[str], tables: Sequence[Table]) -> Figure | None:
    """Draw test accuracy at the best learning rate, a panel per table, an oracle right of its sequential evaluation.

    titles: names of the experiments. None when there are no results.
    """
    shown = spread(list(tables), MOST_PANELS)
    if not shown:
        return None
    groups = max(len(table.pairs) for table in shown)
    width = min(14.0, max(6.6, 1.2 + groups * max(1.7, 0.42 * len(titles))))
    names = [_names(table, (width - LEFT_OF_PANEL) / len(table.pairs) - NAME_GAP) for table in shown]
    heights = [PANEL_HEIGHT + LINE_HEIGHT * max(0, _most_lines(own) - NAME_LINES) for own in names]
    figure = Figure(figsize=(width, sum(heights) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 1, sharey=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, table, own in zip(panels, shown, names, strict=True):
        _accuracy_panel(panel, titles, table)
        panel.set_xticks(range(len(own)), own)
    legend_below(figure, panels, titles)
    return figure


def _names(table: Table, width: float) -> list[str]:
    """Return what stands below each group: its names in lines of at most so many inches."""
    return [broken(_group_name(columns), width) for columns in table.pairs]


def _group_name(columns: Sequence[Column]) -> str:
    """Return the names of a group's columns; what tells several from their doubles stands once, below them."""
    found = grouped(columns, lambda column: column.name.partition(" (")[1:])
    lines = [[*(column.name.partition(" (")[0] for column in own), "".join(end).strip()] for end, own in found.items()]
    return "\n".join(line for own in lines for line in own if line)


def _most_lines(names: Sequence[str]) -> int:
    return max(name.count("\n") + 1 for name in names)


def _accuracy_panel(panel: Axes, titles: Sequence[str], table: Table) -> None:
    for group, columns in enumerate(table.pairs):
        for place in range(len(titles)):
            middle = group + GROUP_WIDTH * ((place + 0.5) / len(titles) - 0.5)
            _dots(
                panel, [column for column in columns if place in column.cells], place, middle, GROUP_WIDTH / len(titles)
            )
    for place in table.places:  # Empty lines, for the legend's sake.
        panel.plot([], [], color=colour(place), marker=marker(place), linestyle="", label=titles[place])
    if any(column.is_oracle for column in table.columns):
        panel.plot([], [], color=GREY, marker="o", linestyle="", markerfacecolor="white", label=ORACLE)
    amount = table.amount
    panel.axhline(1 / amount.classes, color=GREY, linestyle=":", label="chance")
    each = f"{amount.train_examples} + {amount.test_examples} {images(amount.dataset)} each"
    what = f"test accuracy, {amount.classes} {in_lines(classes_of(amount.dataset))}, {each}"
    panel.set_ylabel(f"{what}\n{number_of_runs(table.points)}")
    panel.set_xlim(-0.5, len(table.pairs) - 0.5)
    panel.grid(False, axis="x")
    for boundary in range(1, len(table.pairs)):
        panel.axvline(boundary - 0.5, color="#e4e4e4", linewidth=0.8, zorder=0)
    accuracy_axis(panel)


def _dots(panel: Axes, columns: Sequence[Column], place: int, middle: float, room: float) -> None:
    """Draw one experiment's points of a group, joined: the line's length is what learning in sequence costs."""
    steps = [room * 0.5 * (number - (len(columns) - 1) / 2) for number in range(len(columns))]
    where = [middle + step for step in steps]
    means = [column.cells[place].point.test_acc for column in columns]
    panel.plot(where, means, color=colour(place), linewidth=1, alpha=0.6)
    for x, column in zip(where, columns, strict=True):
        point = column.cells[place].point
        panel.errorbar(
            x, point.test_acc, or_zero(point.test_ci95), color=colour(place), marker=marker(place), capsize=2.5,
            elinewidth=1.1, markersize=6, markerfacecolor="white" if column.is_oracle else colour(place), linestyle="",
        )  # fmt: skip


def draw_curve(titles: Sequence[str], curve: Curve) -> Figure:
    """Draw test accuracy on the classes learned so far, each at the rate that is best for this many."""
    figure, axes = panel_grid(1, 1, panel_height=3.8)
    panel = axes[0, 0]
    for place, line in curve.lines.items():
        _line(panel, line, place, titles[place])
    most = max(milestone.classes for line in curve.lines.values() for milestone in line)
    panel.plot(range(1, most + 1), [1 / n for n in range(1, most + 1)], color=GREY, linestyle=":", label="chance")
    each = f"{curve.train_examples} + {curve.test_examples} {images(curve.dataset)} of each"
    runs = number_of_runs([milestone for line in curve.lines.values() for milestone in line])
    panel.set_title(broken(f"{curve.name}, {curve.dataset}: {each}, {runs}", figure.get_figwidth() - LEFT_OF_PANEL))
    panel.set_ylabel("test accuracy on the classes learned")
    panel.set_xlabel("classes learned")
    accuracy_axis(panel)
    panel.set_xlim(left=0)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    legend_below(figure, [panel], titles)
    return figure


def _line(panel: Axes, line: Sequence[ClassCountAccuracy], place: int, title: str) -> None:
    learned, test = [m.classes for m in line], [m.test_acc for m in line]
    error = [or_zero(m.test_ci95) for m in line]
    panel.plot(learned, test, color=colour(place), marker=marker(place), label=title)
    if len(line) == 1:  # A band of no width shows nothing.
        panel.errorbar(learned, test, error, color=colour(place), capsize=3, elinewidth=1.2)
        return
    low, high = ([t + sign * e for t, e in zip(test, error, strict=True)] for sign in (-1, 1))
    panel.fill_between(learned, low, high, color=colour(place), alpha=0.18, linewidth=0)
