"""The training curve: loss and accuracy against episodes, one line per seed, with the evaluated checkpoints."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from anml.report.canvas import GREY, accuracy_axis, colour, legend_below, panel_grid

# A running mean over this share of the log is smooth and still shows when learning sets in.
SMOOTHED_SHARE = 30
FEWEST_TO_SMOOTH = 12


def draw_training(logs: Mapping[str, pd.DataFrame], checkpoints: Sequence[int], unit: str) -> Figure | None:
    """Draw the logs of trainings (see read_training). None when nothing was logged."""
    if not logs:
        return None
    figure, axes = panel_grid(2, 1, panel_height=2.5, same_y=False)
    loss, right = axes[:, 0]
    for place, (seed, log) in enumerate(logs.items()):
        name = f"seed {seed}" if seed else "training"
        _curve(loss, log, "loss", place, name)
        _curve(right, log, "accuracy", place, name)
        if "val_accuracy" in log:
            _validation(right, log, place)
    for panel in (loss, right):
        _mark(panel, checkpoints)
    _loss_axis(loss, logs)
    accuracy_axis(right)
    right.set_ylabel("accuracy")
    right.set_xlabel(unit if unit != "episodes" else "episodes (one update of the model each)")
    right.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    legend_below(figure, (right, loss), columns=3)
    return figure


def _curve(panel: Axes, log: pd.DataFrame, measure: str, place: int, name: str) -> None:
    if measure not in log:
        return
    values = log[measure]
    if len(log) < FEWEST_TO_SMOOTH:
        panel.plot(log["step"], values, color=colour(place), marker="o", label=name)
        return
    window = max(5, len(log) // SMOOTHED_SHARE)
    smooth = values.rolling(window, center=True, min_periods=1).mean()
    panel.plot(log["step"], values, color=colour(place), alpha=0.25, linewidth=0.8)
    panel.plot(log["step"], smooth, color=colour(place), label=f"{name} (mean of {window} log lines; faint: each)")


def _validation(panel: Axes, log: pd.DataFrame, place: int) -> None:
    kept = log[log["val_accuracy"].notna()]
    window = max(5, len(kept) // SMOOTHED_SHARE) if len(kept) >= FEWEST_TO_SMOOTH else 1
    smooth = kept["val_accuracy"].rolling(window, center=True, min_periods=1).mean()
    panel.plot(kept["step"], smooth, color=colour(place), linestyle="--", linewidth=1.3, label="validation")


def _mark(panel: Axes, checkpoints: Sequence[int]) -> None:
    for step in checkpoints:
        panel.axvline(step, color=GREY, linestyle=":", linewidth=1.2, label="evaluated checkpoint", zorder=0.9)


def _loss_axis(panel: Axes, logs: Mapping[str, pd.DataFrame]) -> None:
    """Choose a logarithmic scale where the loss falls far, and never where it cannot be drawn."""
    values = pd.concat([log["loss"] for log in logs.values() if "loss" in log] or [pd.Series(dtype=float)]).dropna()
    panel.set_ylabel("loss")
    if len(values) and values.min() > 0 and values.max() > 20 * values.min():
        panel.set_yscale("log")
        panel.set_ylabel("loss (logarithmic)")
