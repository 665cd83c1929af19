"""How figures look: colours and markers by name, a grid of panels, lines of text, and PNG files."""

import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle, islice, product
from pathlib import Path
from typing import NamedTuple, TypeVar

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, MaxNLocator

from anml.report.tables import RateResult

T = TypeVar("T")


class Look(NamedTuple):
    """How figures draw a flavor or a model. label: what legends call it, empty for its own name."""

    colour: str
    marker: str
    label: str = ""


# Okabe and Ito's colours, distinct with every common form of colour blindness; their yellow is too pale for lines.
BLUE, VERMILION, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
GREY, GRID_COLOUR = "#6b6b6b", "#e4e4e4"

# A flavor has the same look in every report. Another colour for a flavor, or a look for a new one, is one line here.
# Flavors that do the same under different names look the same.
FLAVORS = {
    "no-sgd": Look(BLUE, "o"),
    "no-sgd-lg": Look(SKY, "<"),
    "no-sgd-validation": Look(BLUE, "o"),
    "olft": Look(VERMILION, "s"),
    "1ft": Look(VERMILION, "s"),
    "2ft": Look(BLACK, ">"),
    "olft-validation": Look(VERMILION, "s"),
    "olft-validation-zero": Look(BLACK, "X"),
    "olft-validation-no-momentum": Look(SKY, "P"),
    "unfrozen": Look(GREEN, "D"),
    "ft-all": Look(GREEN, "D"),
    "lstsq-unfrozen": Look(SKY, "P"),
    "olft-oracle": Look(PINK, "^"),
    "iid-olft": Look(PINK, "^"),
    "iid-1ft": Look(PINK, "^"),
    "unfrozen-oracle": Look(ORANGE, "v"),
    "iid-unfrozen": Look(ORANGE, "v"),
    "iid-ft-all": Look(ORANGE, "v"),
    "iid-lstsq-unfrozen": Look(BLACK, "X"),
    # Baselines have markers that no flavor above has.
    "ncm": Look(BLACK, "*"),
    "ncm-cosine": Look(GREY, "*"),
    "slda": Look(GREEN, "*"),
    "gemcl": Look(BLUE, "d"),
    "gemcl-map": Look(SKY, "d"),
    "rls": Look(ORANGE, "d"),
    "knn": Look(PINK, "p"),
    "logistic": Look(VERMILION, "p"),
    "replay": Look(VERMILION, "<"),
    "olft-sgd": Look(GREEN, "h"),
}
# A model has the same look in every comparison; names in small letters.
MODELS = {
    "anml": Look(BLUE, "o"),
    "sanml": Look(VERMILION, "s"),
    "oml": Look(GREEN, "D"),
    "nonml": Look(PINK, "^"),
    "sanml-iid": Look(ORANGE, "v"),
    "sanml-seqep": Look(SKY, "P"),
    "anml-iid": Look(BLACK, "X"),
}
# Looks of all other names: Paul Tol's muted colours but the pale ones, and a brown. No table above has them.
_OTHER_COLOURS = ("#332288", "#117733", "#999933", "#CC6677", "#882255", "#AA4499", "#8B5A2B")
_OTHER_LOOKS = [Look(*pair) for pair in product(_OTHER_COLOURS, ("o", "s", "D", "^", "v", "P", "X", "<", ">"))]
# Lines of trainings, which are named by their seeds and inner learning rates: a colour each, in this order.
TRAINING_COLOURS = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, BLACK, *_OTHER_COLOURS)


def find_looks(names: Iterable[str], table: Mapping[str, Look], unique_colours: bool = False) -> dict[str, Look]:
    """Return the look of each name, no two the same: that of the table, else one that follows from the name itself.

    Of several names with one look, the first in the table keeps it. unique_colours: names that the table lacks have
    different colours too, as far as there are colours: a look then depends on more of the other names.
    """
    looks: dict[str, Look] = {}
    rank = {name: number for number, name in enumerate(table)}
    for name in sorted(set(names), key=lambda name: (rank.get(name.lower(), len(rank)), name)):
        start = zlib.crc32(name.encode()) % len(_OTHER_LOOKS)
        others = list(islice(cycle(_OTHER_LOOKS), start, start + len(_OTHER_LOOKS)))
        colours = {look.colour for look in looks.values() if unique_colours}
        others.sort(key=lambda look: look.colour in colours)  # A stable sort: the order stays otherwise.
        wanted = [table[name.lower()], *others] if name.lower() in table else others
        taken = {look[:2] for look in looks.values()}
        look = next((look for look in wanted if look[:2] not in taken), wanted[0])
        looks[name] = look._replace(label=look.label or name)
    return looks


STYLE = {
    "font.family": "DejaVu Sans",  # Comes with matplotlib: the same picture on every machine.
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID_COLOUR,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "savefig.dpi": 160,
}
MOST_LEGEND_COLUMNS = 5
POINTS_PER_INCH = 72
# The figures' type is 11 points; shown so it is about as large as the page's small print.
PIXELS_PER_INCH = 96
# Inches from one line of text to the next.
LINE_HEIGHT = 1.2 * STYLE["font.size"] / POINTS_PER_INCH
# A line of text may end behind a space, or behind a `-` or `_` within a name.
_BREAK = re.compile(r"(?<=\s)|(?<=[-_])(?=[A-Za-z])")


def figure_style() -> AbstractContextManager[None]:
    """Set the style of figures made and saved inside, whatever the user's own matplotlib settings."""
    return matplotlib.style.context(["default", STYLE])


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` items, evenly spread, first and last among them."""
    if len(items) <= count:
        return list(items)
    return [items[number * (len(items) - 1) // (count - 1)] for number in range(count)]


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


def count_axis(panel: Axes, bins: int) -> None:
    """Mark whole numbers of classes or steps, at most `bins` + 1 of them."""
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=bins, min_n_ticks=1))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def accuracy_line(panel: Axes, results: Sequence[RateResult], look: Look) -> None:
    """Draw test accuracy against the number of classes, with its 95% interval."""
    classes, test = [result.classes for result in results], np.array([result.test_acc for result in results])
    half_widths = np.nan_to_num([result.test_ci95 for result in results])  # One run alone has no interval.
    panel.plot(classes, test, color=look.colour, marker=look.marker, label=look.label)
    if len(results) == 1:  # A band of no width shows nothing.
        panel.errorbar(classes, test, half_widths, color=look.colour, capsize=3, elinewidth=1.2)
    else:
        panel.fill_between(classes, test - half_widths, test + half_widths, color=look.colour, alpha=0.18, linewidth=0)


def chance_line(panel: Axes, most_classes: int) -> None:
    classes = range(1, most_classes + 1)
    panel.plot(classes, [1 / number for number in classes], color=GREY, linestyle=":", label="chance")


def legend_below(figure: Figure, axes: Iterable[Axes], first: Sequence[str] = ()) -> None:
    """Put one legend for all panels under them, where no data can be; the labels `first` come first."""
    handles: dict[str, Artist] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = [name for name in first if name in handles] + [name for name in handles if name not in first]
    if labels:
        # Inches for a handle and the gap behind it, and for a character.
        fitting = int(figure.get_figwidth() / (0.65 + 0.088 * max(map(len, labels))))
        rows = math.ceil(len(labels) / max(1, min(MOST_LEGEND_COLUMNS, fitting)))
        columns = math.ceil(len(labels) / rows)
        figure.set_figheight(figure.get_figheight() + 0.22 * rows)
        # Matplotlib fills a legend column by column; readers read it row by row.
        labels = [label for column in range(columns) for label in labels[column::columns]]
        figure.legend([handles[name] for name in labels], labels, loc="outside lower center", ncols=columns)


def save_png(figure: Figure, path: Path) -> int:
    """Write a figure; the same data give the same bytes. Returns the width in pixels to show it at."""
    figure.savefig(path, format="png", metadata={"Software": None})  # Matplotlib would write its version.
    return round(figure.get_figwidth() * PIXELS_PER_INCH)


def text_width(text: str) -> float:
    """Return how many inches a line of text takes in a figure."""
    font = FontProperties(family=STYLE["font.family"], size=STYLE["font.size"])
    points, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return points / POINTS_PER_INCH


def broken(text: str, width: float) -> str:
    """Return text in lines of at most so many inches; its own line breaks stay, a word is broken where it must be."""
    lines: list[str] = []
    for given in text.split("\n"):
        lines.append("")
        for word in _BREAK.split(given):
            # A word that no line holds is broken between letters.
            for piece in [word] if text_width(word.rstrip()) <= width else word:
                if lines[-1] and text_width((lines[-1] + piece).rstrip()) > width:
                    lines.append("")
                lines[-1] += piece
    return "\n".join(line.strip() for line in lines)
