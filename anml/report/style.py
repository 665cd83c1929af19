"""What all figures share: style, colours, a grid of panels, and PNG files that are the same every time."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

T = TypeVar("T")

# Okabe and Ito's colours, told apart with every common form of colour blindness; yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">")
MOST_LEGEND_COLUMNS = 5
GREY = "#6b6b6b"
STYLE = {
    "font.family": "DejaVu Sans",  # Comes with matplotlib: the same picture on every machine.
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "savefig.dpi": 160,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Set the style of figures made and saved inside, whatever the user's own matplotlib settings."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def colour(place: int) -> str:
    """Return the colour of the line at a place."""
    return COLOURS[place % len(COLOURS)]


def marker(place: int) -> str:
    """Return the marker of the line at a place; with the colour it stays unique for dozens of lines."""
    return MARKERS[place % len(MARKERS)]


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` items, evenly spread, first and last among them."""
    if len(items) <= count:
        return list(items)
    return [items[place * (len(items) - 1) // (count - 1)] for place in range(count)]


def panel_grid(rows: int, columns: int, panel_height: float = 3.1, same_y: bool = True) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes [rows, columns], on the same scales."""
    width = {1: 6.6, 2: 8.6, 3: 10.4}.get(columns, 11.6)
    figure = Figure(figsize=(width, panel_height * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, sharex=True, sharey=same_y, squeeze=False)


def accuracy_axis(axes: Axes) -> None:
    """Show the whole range of a fraction, with room for markers at its ends."""
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks(np.linspace(0, 1, 6))


def legend_below(figure: Figure, axes: Iterable[Axes], first: Sequence[str] = ()) -> None:
    """Put one legend for all panels under them, where no data can be; the labels `first` come first."""
    found: dict[str, Artist] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = [name for name in first if name in found] + [name for name in found if name not in first]
    if labels:
        # Inches for a handle and the gap behind it, and for a character.
        fitting = int(figure.get_figwidth() / (0.65 + 0.088 * max(map(len, labels))))
        rows = math.ceil(len(labels) / max(1, min(MOST_LEGEND_COLUMNS, fitting)))
        columns = math.ceil(len(labels) / rows)
        figure.set_figheight(figure.get_figheight() + 0.22 * rows)
        labels = _row_by_row(labels, columns)
        figure.legend([found[name] for name in labels], labels, loc="outside lower center", ncols=columns)


def _row_by_row(labels: Sequence[str], columns: int) -> list[str]:
    """Reorder labels so that matplotlib, which fills a legend column by column, shows them row by row."""
    return [label for column in range(columns) for label in labels[column::columns]]


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure; without the program's version in it, the same data give the same bytes."""
    figure.savefig(path, format="png", metadata={"Software": None})


def or_zero(width: float) -> float:
    """Return the width of an error bar: none where one run alone has no spread."""
    return 0.0 if math.isnan(width) else width


# Breaks text into lines of a width that is measured in the figures' type: what stands side by side stays apart.

POINTS_PER_INCH = 72
# Inches from one line to the next, in the figures' type.
LINE_HEIGHT = 1.2 * STYLE["font.size"] / POINTS_PER_INCH
# Behind a space, or behind a `-` or `_` within a name.
_BREAK = re.compile(r"(?<=\s)|(?<=[-_])(?=[A-Za-z])")


def text_width(text: str) -> float:
    """Return how many inches a line of text takes in a figure."""
    font = FontProperties(family=STYLE["font.family"], size=STYLE["font.size"])
    points, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return points / POINTS_PER_INCH


def broken(text: str, width: float) -> str:
    """Return text in lines of at most so many inches; breaks that it has are kept, words broken where they must be."""
    return "\n".join(line for given in text.split("\n") for line in _lines(given, width))


def _lines(text: str, width: float) -> list[str]:
    lines = [""]
    for piece in _pieces(text, width):
        if lines[-1] and text_width((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.strip() for line in lines]


def _pieces(text: str, width: float) -> Iterator[str]:
    """Yield what may stand on lines of its own: words, or the letters of one that no line holds."""
    for word in _BREAK.split(text):
        yield from [word] if text_width(word.rstrip()) <= width else word
