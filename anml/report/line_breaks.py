"""Breaks text into lines of a width that is measured in the figures' type: what stands side by side stays apart."""

import re
from collections.abc import Iterator

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from anml.report.canvas import STYLE

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
