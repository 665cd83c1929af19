"""The figures of one experiment: accuracy against learning rate and against classes learned, and the training log."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from anml.config.vary import TrainingId, natural_order
from anml.experiment import Experiment
from anml.report import style
from anml.report.labels import checkpoint, in_lines
from anml.report.statistics import grouped
from anml.report.style import Look
from anml.report.tables import Amount, RateResult, learning_curve, main_results
from anml.report.text import amount_and_model, number_of_runs
from anml.results import ResultRow

# More panels than this are too small to read.
MOST_COLUMNS, MOST_ROWS = 4, 3
# Classes are taken together to so many points of a curve.
MOST_POINTS = 20
# A running mean over this share of the log is smooth and still shows when learning sets in.
SMOOTHED_SHARE = 30
FEWEST_TO_SMOOTH = 12
# Accuracies of a training's log beside that of its own examples: what the figure calls them, and their lines.
EXTRA_CURVES = {"val_accuracy": ("validation", "--"), "held_out_accuracy": ("held-out classes", "-.")}


@dataclass(frozen=True)
class TrainingLog:
    """The log of one training, `metrics/train*.jsonl`: one line per logged step.

    name: `seed 1`, say; empty when the experiment has only one training.
    """

    name: str
    lines: list[dict[str, float]]

    def measure(self, name: str) -> tuple[list[int], list[float]]:
        """Return steps and values of `loss`, `accuracy` or another measure, where finite: a diverged training's."""
        kept = [line for line in self.lines if math.isfinite(line.get(name, math.nan))]
        return [int(line["step"]) for line in kept], [line[name] for line in kept]


def read_training(experiment: Experiment, trainings: Sequence[TrainingId] = ()) -> list[TrainingLog]:
    """Return the logs of all trainings that have logged anything, those named first, in order of their values."""
    words = {training.tag: training.words for training in trainings}
    logs = []
    for path in experiment.metrics().parent.glob("train*.jsonl"):
        tag = path.stem.removeprefix("train").removeprefix("-")
        if lines := _read_lines(path):
            logs.append(((tag not in words, natural_order(tag)), TrainingLog(words.get(tag, tag), lines)))
    return [log for _, log in sorted(logs, key=lambda item: item[0])]


def _read_lines(path: Path) -> list[dict[str, float]]:
    """Read the lines that are whole: a training that is writing or was killed may leave half a last line."""
    lines = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = {name: float(value) for name, value in json.loads(text).items()}
            lines[line["step"]] = line
        except (ValueError, TypeError, AttributeError, KeyError):
            continue
    return [lines[step] for step in sorted(lines)]


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
    flavors = _flavors(results)

    def draw(panel: Axes, amount: Amount, in_panel: list[RateResult]) -> None:
        _rate_panel(panel, in_panel, flavors, looks)
        panel.axhline(1 / amount.classes, color=style.GREY, linestyle=":", label="chance")

    rows = grouped(results, amount_and_model(results))
    figure, axes = _panels(rows, draw, "test accuracy, {classes} {noun}", "learning rate", unit, noun)
    _rate_axis(axes[0, 0], rates)
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
    key = amount_and_model(best)
    amounts = grouped(best, lambda result: (result.amount._replace(classes=0), key(result)[1]))

    def draw(panel: Axes, _: Amount, in_panel: list[RateResult]) -> None:
        _classes_panel(panel, rows, in_panel, looks)

    figure, axes = _panels(amounts, draw, "accuracy on the {noun} learned", "classes learned", unit, noun)
    axes[0, 0].set_xlim(left=0)  # Shared, and fixed from then on: a later row may have more classes.
    style.legend_below(figure, axes.flat, [looks[flavor].label for flavor in _flavors(best)])
    return figure


def draw_order(
    by_order: Mapping[RateResult, np.ndarray], looks: Mapping[str, Look], unit: str, noun: str
) -> Figure | None:
    """Draw the accuracy at the end of each class against its place in the order of learning: old classes to the left.

    by_order: float64 [classes] of flavors at their best rates. None without any. unit, noun: as for `draw_rates`.
    """
    results = list(by_order)
    if not results:
        return None

    def draw(panel: Axes, _: Amount, in_panel: list[RateResult]) -> None:
        for result in in_panel:
            parts = np.array_split(by_order[result], min(MOST_POINTS, len(by_order[result])))
            ends = np.cumsum([len(part) for part in parts])
            places = ends - (np.array([len(part) for part in parts]) - 1) / 2
            look = looks[result.flavor]
            panel.plot(places, [part.mean() for part in parts], color=look.colour, marker=look.marker, label=look.label)
        style.accuracy_axis(panel)

    rows = grouped(results, amount_and_model(results))
    figure, axes = _panels(rows, draw, "test accuracy at the end, {classes} {noun}", "place in order", unit, noun)
    style.legend_below(figure, axes.flat, [looks[flavor].label for flavor in _flavors(results)])
    return figure


def _panels(
    groups: Mapping[tuple[Amount, str], list[RateResult]], draw: Callable[[Axes, Amount, list[RateResult]], None],
    what: str, x: str, unit: str, noun: str,
) -> tuple[Figure, np.ndarray]:  # fmt: skip
    """Return a figure and its panels: a row per amount and model (or a choice of them), a column per checkpoint.

    what: the vertical axis, with {classes} and {noun} for those of a row. x: the horizontal axis.
    """
    shown = style.spread(list(groups), MOST_ROWS)
    steps = shown_checkpoints([result for results in groups.values() for result in results])
    figure, axes = style.panel_grid(len(shown), len(steps))
    for row, (amount, model) in zip(axes, shown, strict=True):
        results = groups[amount, model]
        for panel, step in zip(row, steps, strict=True):
            draw(panel, amount, [result for result in results if result.checkpoint_step == step])
        accuracy = what.format(classes=amount.classes, noun=in_lines(amount.noun))
        examples = f"{amount.train_examples} + {amount.test_examples} {noun} each"
        row[0].set_ylabel("\n".join(filter(None, (model, accuracy, examples, number_of_runs(results)))))
    for top, bottom, step in zip(axes[0], axes[-1], steps, strict=True):
        top.set_title(checkpoint(step, unit))
        bottom.set_xlabel(x)
    return figure, axes


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
                [np.nan_to_num(result.test_std) for result in of_flavor],
                color=look.colour, marker=look.marker, capsize=2, elinewidth=1, label=look.label,
            )  # fmt: skip
        elif of_flavor:  # Nothing is learned, so there is no learning rate: a level.
            mean, std = of_flavor[0].test_acc, np.nan_to_num(of_flavor[0].test_std)
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
        for name in EXTRA_CURVES:
            _logged_curve(accuracy, log, name, colour)
    mark = {"color": style.GREY, "linestyle": ":", "linewidth": 1.2, "zorder": 0.9}
    for panel, step in product((loss, accuracy), checkpoints):
        panel.axvline(step, label="evaluated checkpoint", **mark)
    values = [value for log in logs for value in log.measure("loss")[1]]
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
    if name in EXTRA_CURVES:
        words, linestyle = EXTRA_CURVES[name]
        label = f"{log.name}, {words}" if log.name else words
        panel.plot(steps, means, color=colour, linestyle=linestyle, linewidth=1.3, label=label)
    elif window == 1:
        panel.plot(steps, values, color=colour, marker="o", label=training)
    else:
        panel.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        panel.plot(steps, means, color=colour, label=f"{training} (running mean)")
