"""The figures of one experiment: accuracy against learning rate and against classes learned, and the training log."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from anml.config.training import training_of_tag, training_order
from anml.experiment import Experiment
from anml.report import style
from anml.report.labels import checkpoint, in_lines
from anml.report.statistics import grouped
from anml.report.style import Look
from anml.report.tables import RateResult, learning_curve, main_results
from anml.report.text import number_of_runs, setting_and_model, setting_of
from anml.results import ResultRow

# More panels than this are too small to read.
MOST_COLUMNS, MOST_ROWS = 4, 3
# A running mean over this share of the log is smooth and still shows when learning sets in.
SMOOTHED_SHARE = 30
FEWEST_TO_SMOOTH = 12


class LoggedMeasure(NamedTuple):
    """Values of one measure and the steps they belong to, in order of step."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class TrainingLog:
    """The log of one training, `metrics/train*.jsonl`: one line per logged step.

    name: `seed 1`, say; empty when the experiment has only one training.
    """

    name: str
    lines: tuple[dict[str, float], ...]

    def measure(self, name: str) -> LoggedMeasure:
        """Return the finite values of `loss`, `accuracy` or `val_accuracy`: a diverged training logs others too."""
        kept = [line for line in self.lines if math.isfinite(line.get(name, math.nan))]
        return LoggedMeasure([int(line["step"]) for line in kept], [line[name] for line in kept])


def read_training(experiment: Experiment) -> list[TrainingLog]:
    """Return the logs of all trainings that have logged anything, in order of their inner rates and seeds."""
    logs = []
    for path in experiment.metrics().parent.glob("train*.jsonl"):
        tag = path.stem.removeprefix("train").removeprefix("-")
        try:
            training = training_of_tag(tag)
            name, order = training.words, (0, *training_order(training))
        except ValueError:  # Not the name of a training: such files come last.
            name, order = tag, (1, path.stem)
        logs.append((order, TrainingLog(name, _read_lines(path))))
    return [log for _, log in sorted(logs, key=lambda item: item[0]) if log.lines]


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


def shown_checkpoints(results: Sequence[RateResult]) -> list[int]:
    """Return the checkpoints that get a panel: the untrained network, then the others or a choice of them."""
    steps = sorted({result.checkpoint_step for result in results})
    untrained = [step for step in steps if step == 0]
    return untrained + style.spread([step for step in steps if step], MOST_COLUMNS - len(untrained))


def draw_rates(results: Sequence[RateResult], looks: Mapping[str, Look], unit: str, noun: str) -> Figure | None:
    """Draw final test accuracy against learning rate: a panel per checkpoint, a line per flavor.

    None when no learning rate was swept. unit: what checkpoints count. noun: what examples are called.
    """
    results = main_results(results)
    rates = sorted({result.lr for result in results if result.lr is not None})
    if not rates:
        return None
    steps, flavors = shown_checkpoints(results), _flavors(results)
    settings = grouped(results, setting_and_model(results))
    shown = style.spread(list(settings), MOST_ROWS)
    figure, axes = style.panel_grid(len(shown), len(steps))
    _rate_axis(axes[0, 0], rates)
    for row, (setting, model) in zip(axes, shown, strict=True):
        in_row = settings[setting, model]
        for panel, step in zip(row, steps, strict=True):
            _rate_panel(panel, [result for result in in_row if result.checkpoint_step == step], flavors, looks)
            panel.axhline(1 / setting.classes, color=style.GREY, linestyle=":", label="chance")
        what = f"test accuracy, {setting.classes} {in_lines(setting.noun)}"
        row[0].set_ylabel(_axis_label(model, what, in_row, noun))
    _label_panels(axes, [checkpoint(step, unit) for step in steps], "learning rate")
    names = [looks[flavor].label for flavor in flavors]
    style.legend_below(figure, axes.flat, [label for name in names for label in (name, _without_rate(name))])
    return figure


def draw_classes(
    rows: Sequence[ResultRow], summary: Sequence[RateResult], looks: Mapping[str, Look], unit: str, noun: str
) -> Figure | None:
    """Draw accuracy against classes learned at the best learning rate: a panel per checkpoint, a line per flavor.

    None when there are no results. unit, noun: as for `draw_rates`.
    """
    best = main_results(summary)
    if not best:
        return None
    steps, flavors = shown_checkpoints(best), _flavors(best)
    model_of = setting_and_model(best)
    amounts = grouped(best, lambda result: (setting_of(result)._replace(classes=0), model_of(result)[1]))
    shown = style.spread(list(amounts), MOST_ROWS)
    figure, axes = style.panel_grid(len(shown), len(steps))
    for row, (setting, model) in zip(axes, shown, strict=True):
        in_row = amounts[setting, model]
        for panel, step in zip(row, steps, strict=True):
            _classes_panel(panel, rows, [result for result in in_row if result.checkpoint_step == step], looks)
        what = f"accuracy on the {in_lines(setting.noun)} learned"
        row[0].set_ylabel(_axis_label(model, what, in_row, noun))
    axes[0, 0].set_xlim(left=0)  # Shared, and fixed from then on: a later row may have more classes.
    _label_panels(axes, [checkpoint(step, unit) for step in steps], "classes learned")
    style.legend_below(figure, axes.flat, [looks[flavor].label for flavor in flavors])
    return figure


def _axis_label(model: str, what: str, results: Sequence[RateResult], noun: str) -> str:
    amount = f"{results[0].train_examples} + {results[0].test_examples} {noun} each"
    return "\n".join([*([model] if model else []), what, amount, number_of_runs(results)])


def _label_panels(axes: np.ndarray, titles: Sequence[str], x: str) -> None:
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title)
    for panel in axes[-1]:
        panel.set_xlabel(x)


def _flavors(results: Sequence[RateResult]) -> list[str]:
    return list(dict.fromkeys(result.flavor for result in results))


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


def _rate_panel(panel: Axes, results: Sequence[RateResult], flavors: Sequence[str], looks: Mapping[str, Look]) -> None:
    swept = _flavors([result for result in results if result.lr is not None])
    for flavor in flavors:
        of_flavor = [result for result in results if result.flavor == flavor]
        look = looks[flavor]
        if flavor in swept:
            # Moved aside by a hair, so that error bars of different flavors do not hide one another.
            aside = 1.2 ** ((swept.index(flavor) + 0.5) / len(swept) - 0.5)
            panel.errorbar(
                [(result.lr or 0.0) * aside for result in of_flavor],
                [result.test_acc for result in of_flavor],
                [style.or_zero(result.test_std) for result in of_flavor],
                color=look.colour, marker=look.marker, capsize=2, elinewidth=1, label=look.label,
            )  # fmt: skip
        elif of_flavor:  # Nothing is learned, so there is no learning rate: a level.
            mean, std = of_flavor[0].test_acc, style.or_zero(of_flavor[0].test_std)
            panel.axhline(mean, color=look.colour, linestyle="-.", label=_without_rate(look.label))
            panel.axhspan(mean - std, mean + std, color=look.colour, alpha=0.12, linewidth=0)
    style.accuracy_axis(panel)


def _without_rate(label: str) -> str:
    return f"{label} (no learning rate)"


def _classes_panel(
    panel: Axes, rows: Sequence[ResultRow], best: Sequence[RateResult], looks: Mapping[str, Look]
) -> None:
    for flavor, of_flavor in grouped(best, lambda result: result.flavor).items():
        look, curve = looks[flavor], learning_curve(rows, of_flavor)
        style.accuracy_line(panel, curve, look)
        panel.plot(
            [result.classes for result in curve], [result.train_acc for result in curve],
            color=look.colour, marker=look.marker, linestyle="--", linewidth=1.1, markerfacecolor="white", ms=4,
        )  # fmt: skip
    if best:
        style.chance_line(panel, max(result.classes for result in best))
        # Empty lines, which only the legend shows.
        panel.plot([], [], color=style.GREY, label="test (band: 95%)")
        panel.plot([], [], color=style.GREY, linestyle="--", linewidth=1.1, label="train")
    style.accuracy_axis(panel)
    style.count_axis(panel, bins=5)


def draw_training(logs: Sequence[TrainingLog], checkpoints: Sequence[int], unit: str) -> Figure | None:
    """Draw loss and accuracy of trainings, a line each, with marks at checkpoints. None when nothing was logged."""
    if not logs:
        return None
    figure, axes = style.panel_grid(2, 1, panel_height=2.5, same_y=False)
    loss, accuracy = axes[:, 0]
    for number, log in enumerate(logs):
        colour = style.TRAINING_COLOURS[number % len(style.TRAINING_COLOURS)]
        _logged_curve(loss, log, "loss", colour)
        _logged_curve(accuracy, log, "accuracy", colour)
        _validation(accuracy, log, colour)
    mark = {"color": style.GREY, "linestyle": ":", "linewidth": 1.2, "zorder": 0.9}
    for panel, step in product((loss, accuracy), checkpoints):
        panel.axvline(step, label="evaluated checkpoint", **mark)
    values = [value for log in logs for value in log.measure("loss").values]
    # Logarithmic where the loss falls far, and never where it cannot be drawn.
    is_log = bool(values) and 0 < 20 * min(values) < max(values)
    loss.set_yscale("log" if is_log else "linear")
    loss.set_ylabel("loss (logarithmic)" if is_log else "loss")
    style.accuracy_axis(accuracy)
    accuracy.set_ylabel("accuracy")
    accuracy.set_xlabel(f"{unit} (one update of the model each)")
    style.count_axis(accuracy, bins=7)
    style.legend_below(figure, (accuracy, loss))
    return figure


def smoothed(values: Sequence[float]) -> tuple[np.ndarray, int]:
    """Return a centred running mean, float64 [n], and how many values each is the mean of (fewer at the ends)."""
    count = len(values)
    window = 1 if count < FEWEST_TO_SMOOTH else max(5, count // SMOOTHED_SHARE) | 1
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(count), ones, "same"), window


def _logged_curve(panel: Axes, log: TrainingLog, name: str, colour: str) -> None:
    steps, values = log.measure(name)
    if not values:
        return
    training = log.name or "training"
    means, window = smoothed(values)
    if window == 1:
        panel.plot(steps, values, color=colour, marker="o", label=training)
        return
    panel.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    panel.plot(steps, means, color=colour, label=f"{training} (running mean)")


def _validation(panel: Axes, log: TrainingLog, colour: str) -> None:
    steps, values = log.measure("val_accuracy")
    if values:
        label = f"{log.name}, validation" if log.name else "validation"
        panel.plot(steps, smoothed(values)[0], color=colour, linestyle="--", linewidth=1.3, label=label)
