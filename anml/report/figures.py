"""What training wrote down: `metrics/train*.jsonl`, one line per logged step."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from anml.config.training import training_of_tag, training_order
from anml.experiment import Experiment
from anml.report.curves import learning_curve
from anml.report.labels import checkpoint, in_lines
from anml.report.statistics import grouped
from anml.report.style import GREY, accuracy_axis, colour, legend_below, marker, or_zero, panel_grid, spread
from anml.report.tables import RateResult, main_points
from anml.report.text import number_of_runs, setting_and_model, setting_of
from anml.results import ResultRow


@dataclass(frozen=True)
class LoggedMeasure:
    """Values of one measure and the steps they belong to, in order of step."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class TrainingLog:
    """The log of one training. name: `seed 1`, say; empty when the experiment has only one training."""

    name: str
    lines: tuple[dict[str, float], ...]

    def measure(self, name: str) -> LoggedMeasure:
        """Return the finite values of `loss`, `accuracy` or `val_accuracy`: a diverged training logs others too."""
        kept = [(int(line["step"]), line[name]) for line in self.lines if math.isfinite(line.get(name, math.nan))]
        return LoggedMeasure(tuple(step for step, _ in kept), tuple(value for _, value in kept))


def read_training(experiment: Experiment) -> list[TrainingLog]:
    """Return the logs of all trainings that have logged anything."""
    paths = sorted(experiment.metrics().parent.glob("train*.jsonl"), key=_order)
    logs = [TrainingLog(_name(path), _read_lines(path)) for path in paths]
    return [log for log in logs if log.lines]


def _tag(path: Path) -> str:
    return path.stem.removeprefix("train").removeprefix("-")


def _name(path: Path) -> str:
    try:
        return training_of_tag(_tag(path)).words
    except ValueError:
        return _tag(path)


def _order(path: Path) -> tuple:
    """Put trainings in order of their inner rates and seeds as numbers, and behind them what names none."""
    try:
        return (0, *training_order(training_of_tag(_tag(path))))
    except ValueError:
        return (1, path.stem)


def _read_lines(path: Path) -> tuple[dict[str, float], ...]:
    """Read the lines that are whole: a training that is writing or was killed may leave half a last line."""
    lines = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = {name: float(value) for name, value in json.loads(text).items()}
            lines[line["step"]] = line
        except (ValueError, TypeError, AttributeError, KeyError):
            continue
    return tuple(lines[step] for step in sorted(lines))


# Accuracy against learning rate, and against classes learned: a panel per checkpoint, a line per flavor.

# More panels than this are too small to read.
MOST_COLUMNS, MOST_ROWS = 4, 3


def shown_checkpoints(points: Sequence[RateResult]) -> list[int]:
    """Return the checkpoints that get a panel: the untrained network, then the others or a choice of them."""
    steps = sorted({point.checkpoint_step for point in points})
    untrained = [step for step in steps if step == 0]
    return untrained + spread([step for step in steps if step], MOST_COLUMNS - len(untrained))


def draw_rates(points: Sequence[RateResult], unit: str, noun: str) -> Figure | None:
    """Draw final test accuracy against learning rate. None when no learning rate was swept.

    unit: what checkpoints count. noun: what examples are called.
    """
    points = main_points(points)
    if all(point.lr is None for point in points):
        return None
    steps, flavors = shown_checkpoints(points), _flavors(points)
    settings = grouped(points, setting_and_model(points))
    shown = spread(list(settings), MOST_ROWS)
    figure, axes = panel_grid(len(shown), len(steps))
    _rate_axis(axes[0, 0], sorted({point.lr for point in points if point.lr is not None}))
    for row, (setting, model) in zip(axes, shown, strict=True):
        here = settings[setting, model]
        for panel, step in zip(row, steps, strict=True):
            _rate_panel(panel, [point for point in here if point.checkpoint_step == step], flavors)
            panel.axhline(1 / setting.classes, color=GREY, linestyle=":", label="chance")
        amount = f"{setting.train_examples} + {setting.test_examples} {noun} each"
        what = _of(model, f"test accuracy, {setting.classes} {in_lines(setting.noun)}")
        row[0].set_ylabel(f"{what}\n{amount}\n{number_of_runs(here)}")
    _label(axes, [checkpoint(step, unit) for step in steps], "learning rate")
    legend_below(figure, axes.flat, [name for flavor in flavors for name in (flavor, _without_rate(flavor))])
    return figure


def _of(model: str, what: str) -> str:
    """Return what an axis shows, and of which model where there are several."""
    return f"{model}\n{what}" if model else what


def _flavors(points: Sequence[RateResult]) -> list[str]:
    return list(dict.fromkeys(point.flavor for point in points))


def _rate_panel(panel: Axes, points: Sequence[RateResult], flavors: Sequence[str]) -> None:
    swept = list(dict.fromkeys(point.flavor for point in points if point.lr is not None))
    for place, flavor in enumerate(flavors):
        own = [point for point in points if point.flavor == flavor]
        if flavor in swept:
            # Moved aside by a hair, so that error bars of different flavors do not hide one another.
            _rate_line(panel, own, place, aside=1.2 ** ((swept.index(flavor) + 0.5) / len(swept) - 0.5))
        elif own:
            _level(panel, own[0], place)
    accuracy_axis(panel)


def _rate_axis(panel: Axes, rates: Sequence[float]) -> None:
    """Set the shared axis of learning rates, wide enough to keep ticks of neighbouring panels apart."""
    low, high = rates[0], rates[-1]
    room = max(1.3, (high / low) ** 0.08)
    panel.set_xscale("log")
    panel.set_xlim(low / room, high * room)
    decades = math.floor(math.log10(high) + 1e-9) - math.ceil(math.log10(low) - 1e-9)
    if decades >= 1:
        panel.xaxis.set_major_locator(LogLocator(numticks=6))
    else:  # Too narrow for powers of ten.
        panel.set_xticks(sorted({low, high}), [f"{rate:g}" for rate in sorted({low, high})])
    panel.xaxis.set_minor_formatter(NullFormatter())


def _rate_line(panel: Axes, points: Sequence[RateResult], place: int, aside: float) -> None:
    panel.errorbar(
        [(point.lr or 0.0) * aside for point in points],
        [point.test_acc for point in points],
        [or_zero(point.test_std) for point in points],
        color=colour(place), marker=marker(place), capsize=2, elinewidth=1, label=points[0].flavor,
    )  # fmt: skip


def _level(panel: Axes, point: RateResult, place: int) -> None:
    """Draw a flavor that learns nothing, so has no learning rate, as a level."""
    std = or_zero(point.test_std)
    panel.axhline(point.test_acc, color=colour(place), linestyle="-.", label=_without_rate(point.flavor))
    panel.axhspan(point.test_acc - std, point.test_acc + std, color=colour(place), alpha=0.12, linewidth=0)


def _without_rate(flavor: str) -> str:
    return f"{flavor} (no learning rate)"


def draw_classes(rows: Sequence[ResultRow], summary: Sequence[RateResult], unit: str, noun: str) -> Figure | None:
    """Draw accuracy against classes learned at the best learning rate. None when there are no results."""
    best = main_points(summary)
    if not best:
        return None
    steps, flavors = shown_checkpoints(best), _flavors(best)
    name = setting_and_model(best)
    amounts = grouped(best, lambda point: (setting_of(point)._replace(classes=0), name(point)[1]))
    shown = spread(list(amounts), MOST_ROWS)
    figure, axes = panel_grid(len(shown), len(steps))
    for line, (setting, model) in zip(axes, shown, strict=True):
        here = amounts[setting, model]
        for panel, step in zip(line, steps, strict=True):
            _classes_panel(panel, rows, [point for point in here if point.checkpoint_step == step], flavors)
        amount = f"{setting.train_examples} + {setting.test_examples} {noun} each"
        what = _of(model, f"accuracy on the {in_lines(setting.noun)} learned")
        line[0].set_ylabel(f"{what}\n{amount}\n{number_of_runs(here)}")
    axes[0, 0].set_xlim(left=0)  # Shared, and fixed from then on: a later row may have more classes.
    _label(axes, [checkpoint(step, unit) for step in steps], "classes learned")
    legend_below(figure, axes.flat, flavors)
    return figure


def _classes_panel(panel: Axes, rows: Sequence[ResultRow], best: Sequence[RateResult], flavors: Sequence[str]) -> None:
    for place, flavor in enumerate(flavors):
        own = [point for point in best if point.flavor == flavor]
        if own:
            _classes_line(panel, rows, own, place)
    if best:
        most = max(point.classes for point in best)
        panel.plot(range(1, most + 1), [1 / n for n in range(1, most + 1)], color=GREY, linestyle=":", label="chance")
        # Empty lines, for the legend's sake.
        panel.plot([], [], color=GREY, label="test (band: 95%)")
        panel.plot([], [], color=GREY, linestyle="--", linewidth=1.1, label="train")
    accuracy_axis(panel)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _classes_line(panel: Axes, rows: Sequence[ResultRow], best: Sequence[RateResult], place: int) -> None:
    curve = learning_curve(rows, best)
    learned = [point.classes_trained for point in curve]
    test = [point.test.mean for point in curve]
    error = [or_zero(point.test.half_width) for point in curve]
    own, shape = colour(place), marker(place)
    panel.plot(learned, test, color=own, marker=shape, label=best[0].flavor)
    if len(curve) == 1:  # A band of no width shows nothing.
        panel.errorbar(learned, test, error, color=own, capsize=3, elinewidth=1.2)
    else:
        low, high = ([t + sign * e for t, e in zip(test, error, strict=True)] for sign in (-1, 1))
        panel.fill_between(learned, low, high, color=own, alpha=0.18, linewidth=0)
    train = [point.train.mean for point in curve]
    panel.plot(learned, train, color=own, marker=shape, linestyle="--", linewidth=1.1, markerfacecolor="white", ms=4)


def _label(axes: np.ndarray, titles: Sequence[str], x: str) -> None:
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title)
    for panel in axes[-1]:
        panel.set_xlabel(x)


# The training curve: loss and accuracy against episodes, one line per training, with the evaluated checkpoints.

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
