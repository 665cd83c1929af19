"""The built-in data set "glyphs": invented handwritten characters, a stand-in for Omniglot that needs no download.

As in the generative model behind Omniglot (Lake et al., Science 2015), a character is a few strokes, a stroke is a part
from a small repertoire that the characters of one alphabet share, and every drawing of it bends, shifts and skews them.
It is about as hard: nearest neighbours on raw pixels (15 drawings to learn from, 5 to test) get 68, 39 and 22 % of 10,
100 and 600 classes right; of Omniglot's evaluation set, at 28 x 28 pixels, 67, 39 and 23 %.

The bytes are meant to be the same on every machine: uniform random doubles, elementwise sums and products (no sin, no
exp, whose last bit differs between machines), then small whole numbers, which float32 adds exactly in any order.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anml.config.facts import DATASETS, Split

Floats = NDArray[np.float64]

ALPHABET_SIZE = 30  # consecutive classes that share a repertoire and proportions
REPERTOIRE_SIZE = 9
CANVAS = 112  # pixels; strokes are drawn without grey on this canvas, then averaged down (Omniglot's own is 105)
STEPS = 32  # pen positions along one piece of a curve: close enough for the pen's discs to overlap
PEN = 0.043  # mean stroke width, a fraction of the canvas
# Standard deviations from drawing to drawing: of a control point, in widths and heights of its stroke; of a stroke
BEND, SHIFT = 0.11, 0.031
SCALE, SKEW, MOVE = 0.12, 0.1, 0.042  # and of the whole character

# Digits are x, y on a 5 x 5 grid, y down. A curve is pulled towards its points; one given twice is a sharp corner.
# Sorted by the ink they take.
PARTS = (
    "00 04",  # stem
    "00 40",  # bar
    "00 44",  # slash
    "02 10 34 42",  # tilde
    "00 04 04 44",  # L
    "00 40 44 24",  # hook
    "00 24 24 40",  # V
    "40 44 04 03",  # J
    "00 20 20 24 24 44",  # step
    "40 00 04 44",  # C
    "04 00 40 44",  # n
    "00 44 40 04",  # fish
    "20 40 44 04 00 20",  # O
    "00 02 42 42 40 40 44",  # 4
    "20 44 44 04 04 20",  # triangle
    "00 40 40 04 04 44",  # Z
    "41 40 00 02 42 44 04 03",  # S
    "04 00 00 40 42 02",  # P
    "02 42 40 00 04 44",  # e
    "40 00 04 44 42 02",  # 6
    "00 04 24 21 24 44 40",  # omega
    "00 40 42 12 12 42 44 04",  # 3
    "00 40 40 44 44 04 04 00",  # box
    "04 00 20 24 24 20 40 44",  # m
    "22 32 31 11 13 43 40 00 04",  # spiral
)
SPANS = (slice(0, 2), slice(0, 1), slice(1, 2))  # whole, first half, second half of a character's width or height


class _Character(NamedTuple):
    points: Floats  # [points, 2] control points (x, y) around the origin
    room: Floats  # [points, 2] width and height of a point's stroke: small strokes bend less
    stroke: NDArray[np.intp]  # [points] the stroke a point belongs to
    curves: NDArray[np.intp]  # [curves, 3] the points of each quadratic piece


def draw_split(split: Split, size: int, data_path: Path | None = None) -> NDArray[np.uint8]:
    """Draw all classes of a split: uint8 [classes, drawings, 1, size, size]."""
    facts = DATASETS["glyphs"]
    first = 0 if split == "train" else facts.train_classes
    return draw_glyphs(range(first, first + facts.classes(split)), facts.examples_per_class, size)


def draw_glyphs(classes: range, drawings: int = 20, size: int = 28, seed: int = 0) -> NDArray[np.uint8]:
    """Draw invented characters: uint8 [len(classes), drawings, 1, size, size], dark strokes (0) on white (255).

    A class is an index; drawing d of class k depends on (seed, k, d) alone, not on what else is asked for. Training and
    evaluation classes are disjoint ranges, such as range(0, 964) and range(964, 1623) for the sizes of Omniglot.
    """
    images = np.empty((len(classes), drawings, 1, size, size), np.uint8)
    average = _averaging(size)
    for i, k in enumerate(classes):
        path, width = _trace(_character(seed, k), drawings, _stream(seed, "drawings", k))
        images[i, :, 0] = _render(path, width, average)
    return images


def _stream(seed: int, purpose: str, index: int) -> np.random.Generator:
    """Random numbers of their own for each purpose and index; PCG64 by name, as numpy's default may change."""
    entropy = [seed, ("alphabet", "character", "drawings").index(purpose), index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def _pick(rng: np.random.Generator, n: int) -> int:
    """A whole number below n. Like everything here it is made from `random` alone, the draw least likely to change."""
    return int(rng.random() * n)


def _bell(rng: np.random.Generator, *shape: int) -> Floats:
    """Nearly normal: mean 0, standard deviation 1, at most 3. Sums of uniforms, as a true normal needs log and exp."""
    u = rng.random((*shape, 3))
    return 2 * (u[..., 0] + u[..., 1] + u[..., 2]) - 3


@cache
def _part(index: int) -> tuple[Floats, NDArray[np.intp]]:
    """Control points [points, 2] in the unit square and the curves [curves, 3] of a part, as a quadratic B-spline."""
    xy = np.array([(int(p[0]), int(p[1])) for p in PARTS[index].split()])
    new = np.r_[True, (xy[1:] != xy[:-1]).any(1)]
    order = np.cumsum(new) - 1
    order = np.r_[order[0], order, order[-1]]  # an end given twice is reached
    return xy[new] / 4, np.stack([order[:-2], order[1:-1], order[2:]], 1)


def _boxes(rng: np.random.Generator, n: int) -> list[Floats]:
    """Where n strokes go: corners [[x0, y0], [x1, y1]] in the unit square, preferring what is still empty."""
    x, y = ((0.0, 0.35 + 0.3 * rng.random(), 1.0) for _ in range(2))
    used, boxes = np.zeros((2, 2)), []
    for _ in range(n):
        tries = [(SPANS[_pick(rng, 3)], SPANS[_pick(rng, 3)]) for _ in range(3)]
        across, down = min(tries, key=lambda spans: used[spans].mean())
        used[across, down] += 1
        boxes.append(np.array([(x[across.start], y[down.start]), (x[across.stop], y[down.stop])]))
    return boxes


def _alphabet(seed: int, index: int) -> tuple[list[int], Floats]:
    """What the characters of an alphabet share: a repertoire of parts, lightest first, and a mean width and height."""
    rng = _stream(seed, "alphabet", index)
    repertoire = np.argsort(rng.random(len(PARTS)))[:REPERTOIRE_SIZE]
    return sorted(repertoire.tolist()), 0.42 + 0.16 * rng.random(2)


def _character(seed: int, k: int) -> _Character:
    """Class k: one to three parts from its alphabet's repertoire, mirrored and put into boxes."""
    rng, (repertoire, extent) = _stream(seed, "character", k), _alphabet(seed, k // ALPHABET_SIZE)
    n = 1 + int(0.4 + 2.6 * rng.random())
    points, room, stroke, curves = [], [], [], []
    for s, (low, high) in enumerate(_boxes(rng, n)):
        # The heaviest of three candidates if it stands alone, the lightest of three if there are three such strokes.
        xy, pieces = _part(repertoire[sorted(_pick(rng, REPERTOIRE_SIZE) for _ in range(3))[-n]])
        xy = np.abs(xy - (rng.random(2) < 0.5)) + 0.05 * _bell(rng, *xy.shape)  # mirrored or not, and no two alike
        curves.append(pieces + len(stroke))
        points.append(low + xy * (high - low))
        room.append(np.broadcast_to(high - low, xy.shape))
        stroke += [s] * len(xy)
    extent = extent * (0.8 + 0.4 * rng.random(2))
    p = np.concatenate(points)
    p = (p - (p.min(0) + p.max(0)) / 2) * extent
    return _Character(p, np.concatenate(room) * extent, np.array(stroke), np.concatenate(curves))


def _trace(character: _Character, drawings: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Pen positions [drawings, positions, 2] (x, y) and pen widths [drawings] of several drawings of one character."""
    n, strokes = len(character.points), int(character.stroke[-1]) + 1
    noise = _bell(rng, drawings, n + strokes + 4, 2)
    bend, shift = noise[:, :n], noise[:, n:-4]
    scale, skew, move, pen = (noise[:, -i, None] for i in range(1, 5))  # [drawings, 1, 2] each
    p = character.points + BEND * bend * character.room + SHIFT * shift[:, character.stroke]
    p = p * (1 + SCALE * scale) + p[..., ::-1] * (SKEW * skew) + (0.48 + MOVE * move)
    a, b, c = (p[:, character.curves[:, i], None] for i in range(3))
    t = ((np.arange(STEPS) + 0.5) / STEPS)[:, None]
    positions = a * (0.5 * (1 - t) * (1 - t)) + b * (0.5 + t * (1 - t)) + c * (0.5 * t * t)
    return positions.reshape(drawings, -1, 2), PEN * (1 + 0.1 * pen[:, 0, 0])


@cache
def _disc() -> Floats:
    """A round pen of diameter 1 as points [24, 2]: those of three circles that are whole numbers of tenths."""
    tenths = [(x, y) for x in range(-5, 6) for y in range(-5, 6) if x * x + y * y in (2, 10, 25)]
    return np.array(tenths) / 10


def _render(path: Floats, width: Floats, average: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw pen positions [drawings, positions, 2]: grey images [drawings, size, size]."""
    touched = (path[:, :, None] + width[:, None, None, None] * _disc()) * CANVAS
    x, y = np.moveaxis(np.clip(touched, 0, CANVAS - 1).astype(np.int32), -1, 0)
    ink = np.zeros((len(path), CANVAS, CANVAS), np.float32)
    ink[np.arange(len(path))[:, None, None], y, x] = 1
    covered = (average @ ink @ average.T).astype(np.int32)  # in CANVAS**2-ths of a pixel
    return (255 - covered * 255 // CANVAS**2).astype(np.uint8)


def _averaging(size: int) -> NDArray[np.float32]:
    """Overlap [size, CANVAS] of every pixel with every canvas pixel, both cut into whole numbers of equal pieces."""
    pixel, canvas = np.arange(size)[:, None] * CANVAS, np.arange(CANVAS) * size
    overlap = np.minimum(pixel + CANVAS, canvas + size) - np.maximum(pixel, canvas)
    return np.maximum(overlap, 0).astype(np.float32)
