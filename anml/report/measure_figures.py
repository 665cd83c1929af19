"""Figures of what is measured besides accuracy: what is forgotten, confusions, and maps of representations."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from anml.report import style
from anml.report.figures import MOST_COLUMNS, MOST_ROWS, shown_checkpoints
from anml.report.forgetting import Forgetting
from anml.report.labels import checkpoint
from anml.report.measures import Measured, MeasuredRows, confusion_matrix
from anml.report.statistics import grouped

M = TypeVar("M", bound=Measured)

# Rows and columns of a matrix; classes are taken together to so many.
MOST_CELLS = 30


def at_the_end(items: Sequence[M]) -> list[M]:
    """Return what is of the most classes, at the last checkpoint."""
    most = max(((item.result.classes, item.result.checkpoint_step) for item in items), default=None)
    return [item for item in items if (item.result.classes, item.result.checkpoint_step) == most]


def shown_confusions(items: Sequence[MeasuredRows]) -> list[MeasuredRows]:
    """Return those that a page shows."""
    return at_the_end(items)[:MOST_COLUMNS]


def draw_forgetting(items: Sequence[Forgetting]) -> Figure | None:
    """Draw the accuracy of each class at each scoring, a panel per flavor (or a choice of them). None without any."""
    if not (shown := style.spread(at_the_end(items), MOST_COLUMNS)):
        return None
    figure, axes = style.panel_grid(1, len(shown), panel_height=3.6)
    for panel, item in zip(axes[0], shown, strict=True):
        panel.pcolormesh(range(len(item.lost) + 1), [0, *item.scored], item.grid, cmap="Blues", vmin=0, vmax=1)
        panel.set(title=_title(item, shown), xlabel="place in order", yticks=style.spread([*item.scored], 6))
        panel.set_facecolor(style.GRID_COLOUR)  # Where a class is not learned yet.
        panel.grid(visible=False)
        style.count_axis(panel, bins=5)
    axes[0, 0].set_ylabel("classes learned")
    axes[0, 0].invert_yaxis()  # As time goes on, downwards.
    figure.colorbar(axes[0, 0].collections[0], ax=axes, label="test accuracy")
    return figure


def _title(item: Measured, shown: Sequence[Measured]) -> str:
    has_models = len({other.result.model for other in shown}) > 1
    return item.result.flavor + (f"\n{item.result.model}" if has_models else "")


def draw_confusions(items: Sequence[MeasuredRows]) -> Figure | None:
    """Draw the matrices of `shown_confusions`. None without any."""
    if not (shown := shown_confusions(items)):
        return None
    figure, axes = style.panel_grid(1, len(shown), panel_height=3.6)
    last = shown[0].result.classes
    # The square root shows what is rare beside the diagonal.
    look: Any = {"cmap": "Blues", "norm": PowerNorm(0.5, 0, 1), "extent": (0, last, last, 0)}
    for panel, item in zip(axes[0], shown, strict=True):
        panel.imshow(confusion_matrix(item.rows, last, MOST_CELLS), **look)
        panel.set(title=_title(item, shown), xlabel="class that was answered", xticks=(0, last), yticks=(0, last))
        panel.grid(visible=False)
    axes[0, 0].set_ylabel("right class, the first learned on top")
    figure.colorbar(axes[0, 0].images[0], ax=axes, label="share of the answers")
    return figure


def draw_maps(items: Sequence[MeasuredRows], unit: str, name: str = "map") -> Figure | None:
    """Draw a map of each checkpoint, by PCA or `tsne`: a row per model, a colour per class. None without any."""
    # Earlier versions made no t-SNE.
    items = [item for item in items if name in item.rows and bool(np.all(item.rows[name].notna()))]
    if not items:
        return None
    flavor, amount = items[0].result.flavor, items[0].result.amount
    alike = [item for item in items if (item.result.flavor, item.result.amount) == (flavor, amount)]
    models = list(grouped(alike, lambda item: item.result.model).items())[:MOST_ROWS]
    steps = shown_checkpoints([item.result for item in alike])
    figure, axes = style.panel_grid(len(models), len(steps))
    for row, (model, of_model) in zip(axes, models, strict=True):
        by_step = {item.result.checkpoint_step: item for item in of_model}
        for panel, step in zip(row, steps, strict=True):
            panel.set(xticks=(), yticks=(), title=checkpoint(step, unit))
            if step in by_step:
                _scatter(panel, by_step[step], name)
        row[0].set_ylabel(model)
    return figure


def _scatter(panel: Axes, item: MeasuredRows, name: str) -> None:
    """Draw the images of the first training, class after class; every map fills its panel."""
    first = item.rows[item.rows["run"] == 0].iloc[0]
    points = np.reshape(first[name], (-1, item.result.test_examples, 2))
    for number, of_class in enumerate(points / (np.abs(points).max() or 1)):
        colour = style.TRAINING_COLOURS[number % len(style.TRAINING_COLOURS)]
        panel.scatter(of_class[:, 0], of_class[:, 1], color=colour, s=18)
