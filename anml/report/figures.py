"""Accuracy against learning rate, and against classes learned: a panel per checkpoint, a line per flavor."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from anml.report.canvas import GREY, accuracy_axis, colour, legend_below, marker, panel_grid, spread
from anml.report.grid import number_of_runs
from anml.report.tables import SETTING, learning_curve, main_rows
from anml.report.wording import checkpoint

# More panels than this are too small to read.
MOST_COLUMNS, MOST_ROWS = 4, 3


def shown_checkpoints(points: pd.DataFrame) -> list[int]:
    """Return the checkpoints that get a panel: the untrained network, then the others or a choice of them."""
    steps = sorted(points["checkpoint_step"].unique())
    untrained = [step for step in steps if step == 0]
    return untrained + spread([step for step in steps if step], MOST_COLUMNS - len(untrained))


def shown_settings(points: pd.DataFrame) -> list[tuple[int, ...]]:
    """Return the settings that get a row of panels, most classes first, or a choice of them."""
    settings = points[SETTING].drop_duplicates().itertuples(index=False, name=None)
    return spread(sorted(settings, key=lambda s: (-s[0], *s[1:])), MOST_ROWS)


def draw_rates(points: pd.DataFrame, unit: str, noun: str) -> Figure | None:
    """Draw final test accuracy against learning rate. None when no learning rate was swept.

    points: see sweep_points. unit: what checkpoints count. noun: what examples are called.
    """
    points = main_rows(points)
    if points["lr"].notna().sum() == 0:
        return None
    steps, settings = shown_checkpoints(points), shown_settings(points)
    figure, axes = panel_grid(len(settings), len(steps))
    for row, setting in zip(axes, settings, strict=True):
        here = points[(points[SETTING] == setting).all(axis="columns")]
        for panel, step in zip(row, steps, strict=True):
            _rate_panel(panel, here[here["checkpoint_step"] == step], list(points["flavor"].unique()))
            panel.axhline(1 / setting[0], color=GREY, linestyle=":", label="chance")
        runs = number_of_runs(here["runs"].tolist())
        row[0].set_ylabel(f"test accuracy, {setting[0]} classes\n{setting[1]} + {setting[2]} {noun} each, {runs}")
    _titles(axes[0], steps, unit)
    figure.supxlabel("learning rate at test-train", fontsize="medium")
    legend_below(figure, axes.flat, columns=4)
    return figure


def _rate_panel(panel: Axes, points: pd.DataFrame, flavors: Sequence[str]) -> None:
    panel.set_xscale("log")
    for place, flavor in enumerate(flavors):
        own = points[points["flavor"] == flavor]
        swept = own[own["lr"].notna()].sort_values("lr")
        if not swept.empty:
            # Moved aside by a hair, so that error bars of different flavors do not hide one another.
            panel.errorbar(
                swept["lr"] * 1.04**place, swept["test_acc"], swept["test_std"].fillna(0.0), color=colour(place),
                marker=marker(place), capsize=2, elinewidth=1, label=flavor,
            )  # fmt: skip
        elif not own.empty:
            mean, std = own["test_acc"].iloc[0], own["test_std"].fillna(0.0).iloc[0]
            panel.axhline(mean, color=colour(place), linestyle="-.", label=f"{flavor} (no learning rate)")
            panel.axhspan(mean - std, mean + std, color=colour(place), alpha=0.12, linewidth=0)
    accuracy_axis(panel)
    panel.xaxis.set_major_locator(LogLocator(numticks=6))
    panel.xaxis.set_minor_formatter(NullFormatter())


def draw_classes(scores: pd.DataFrame, summary: pd.DataFrame, unit: str, noun: str) -> Figure | None:
    """Draw accuracy against classes learned at the best learning rate. None when there are no results."""
    if summary.empty:
        return None
    best = main_rows(summary)
    steps = shown_checkpoints(best)
    settings = [key[1:] for key in shown_settings(best.assign(classes=0))]
    figure, axes = panel_grid(len(settings), len(steps))
    for row, (train_examples, test_examples) in zip(axes, settings, strict=True):
        here = best[(best["train_examples"] == train_examples) & (best["test_examples"] == test_examples)]
        for panel, step in zip(row, steps, strict=True):
            _classes_panel(panel, scores, here[here["checkpoint_step"] == step], list(best["flavor"].unique()))
        runs = number_of_runs(here["runs"].tolist())
        row[0].set_ylabel(f"accuracy on the classes learned\n{train_examples} + {test_examples} {noun} each, {runs}")
    _titles(axes[0], steps, unit)
    figure.supxlabel("classes learned", fontsize="medium")
    legend_below(figure, axes.flat, columns=4)
    return figure


def _classes_panel(panel: Axes, scores: pd.DataFrame, best: pd.DataFrame, flavors: Sequence[str]) -> None:
    learned: set[int] = set()
    for place, flavor in enumerate(flavors):
        own = best[best["flavor"] == flavor]
        if own.empty:
            continue
        curve = learning_curve(scores, own)
        learned |= set(curve["classes_trained"])
        x, test, error = curve["classes_trained"], curve["test_acc"], curve["test_ci95"].fillna(0.0)
        look = {"color": colour(place), "marker": marker(place)}
        panel.plot(x, test, label=flavor, **look)
        panel.fill_between(x, test - error, test + error, color=colour(place), alpha=0.18, linewidth=0)
        if len(curve) == 1:  # A band of no width shows nothing.
            panel.errorbar(x, test, error, color=colour(place), capsize=3, elinewidth=1.2)
        panel.plot(x, curve["train_acc"], linestyle="--", linewidth=1.1, markerfacecolor="white", markersize=4, **look)
    if learned:
        grid = pd.Series(range(1, max(learned) + 1))
        panel.plot(grid, 1 / grid, color=GREY, linestyle=":", label="chance")
        _line_styles(panel)
    accuracy_axis(panel)
    panel.set_xlim(left=0)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _line_styles(panel: Axes) -> None:
    """Add empty lines, for the legend's sake."""
    panel.plot([], [], color=GREY, label="test (band: 95%)")
    panel.plot([], [], color=GREY, linestyle="--", linewidth=1.1, label="train")


def _titles(row: Sequence[Axes], steps: Sequence[int], unit: str) -> None:
    for panel, step in zip(row, steps, strict=True):
        panel.set_title(checkpoint(step, unit))
