"""The training curve: loss and accuracy against episodes, one line per training, with the evaluated checkpoints."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from anml.report.canvas import GREY, accuracy_axis, colour, legend_below, panel_grid
from anml.report.training_log import TrainingLog

# A running mean over this share of the log is smooth and still shows when learning sets in.
SMOOTHED_SHARE = 30
FEWEST_TO_SMOOTH = 12


def draw_training(logs: Sequence[TrainingLog], checkpoints: Sequence[int], unit: str) -> Figure | None:
    """Draw the logs of trainings, with marks at checkpoints. None when nothing was logged."""
    if not logs:
        return None
    figure, axes = panel_grid(2, 1, panel_height=2.5, same_y=False)
    loss, right = axes[:, 0]
    for place, log in enumerate(logs):
        _curve(loss, log, "loss", place)
        _curve(right, log, "accuracy", place)
        _validation(right, log, place)
    for panel in (loss, right):
        for step in checkpoints:
            panel.axvline(step, color=GREY, linestyle=":", linewidth=1.2, label="evaluated checkpoint", zorder=0.9)
    _loss_axis(loss, [value for log in logs for value in log.measure("loss").values])
    accuracy_axis(right)
    right.set_ylabel("accuracy")
    right.set_xlabel(f"{unit} (one update of the model each)")
    right.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    legend_below(figure, (right, loss))
    return figure


def smoothed(values: Sequence[float]) -> tuple[np.ndarray, int]:
    """Return a centred running mean, float64 [n], and how many values each is the mean of (fewer at the ends)."""
    count = len(values)
    window = 1 if count < FEWEST_TO_SMOOTH else max(5, count // SMOOTHED_SHARE) | 1
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(count), ones, "same"), window


def _curve(panel: Axes, log: TrainingLog, name: str, place: int) -> None:
    found = log.measure(name)
    if not found.values:
        return
    who = log.name or "training"
    smooth, window = smoothed(found.values)
    if window == 1:
        panel.plot(found.steps, found.values, color=colour(place), marker="o", label=who)
        return
    panel.plot(found.steps, found.values, color=colour(place), alpha=0.25, linewidth=0.8)
    panel.plot(found.steps, smooth, color=colour(place), label=f"{who} (running mean)")


def _validation(panel: Axes, log: TrainingLog, place: int) -> None:
    found = log.measure("val_accuracy")
    if found.values:
        smooth, _ = smoothed(found.values)
        label = f"{log.name}, validation" if log.name else "validation"
        panel.plot(found.steps, smooth, color=colour(place), linestyle="--", linewidth=1.3, label=label)


def _loss_axis(panel: Axes, values: Sequence[float]) -> None:
    """Choose a logarithmic scale where the loss falls far, and never where it cannot be drawn."""
    panel.set_ylabel("loss")
    if values and min(values) > 0 and max(values) > 20 * min(values):
        panel.set_yscale("log")
        panel.set_ylabel("loss (logarithmic)")
