"""Groups of items that share a key."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Literal, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return items by key, keys and items in the order in which they come."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


# Means and 95% intervals by Student's t. No scipy: for whole degrees of freedom the distribution is a short sum.

LEVEL = 0.95
# With fewer seeds, an interval over their means is too wide to say anything.
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Estimate:
    """A mean over runs. std: over runs. half_width: of the 95% interval of the mean, over runs or over seeds' means."""

    mean: float
    std: float
    half_width: float
    runs: int
    seeds: int
    over: Literal["runs", "seeds"]


def estimate(values: Iterable[tuple[int, float]]) -> Estimate:
    """Return the mean of (seed, value) pairs, one pair a run, each seed counting the same.

    From three seeds on the interval is over the seeds' means. Below, it is over runs and says nothing of how much
    trainings differ.
    """
    by_seed: dict[int, list[float]] = {}
    for seed, value in values:
        by_seed.setdefault(seed, []).append(value)
    means = [fmean(runs) for runs in by_seed.values()]
    everything = [value for runs in by_seed.values() for value in runs]
    over_seeds = len(means) >= FEWEST_SEEDS
    return Estimate(
        mean=fmean(means),
        std=std(everything),
        half_width=half_width(means if over_seeds else everything),
        runs=len(everything),
        seeds=len(means),
        over="seeds" if over_seeds else "runs",
    )


def std(values: Sequence[float]) -> float:
    """Return the sample standard deviation (n - 1), NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    mean = fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def half_width(values: Sequence[float]) -> float:
    """Return h such that mean ± h is the 95% interval of the mean of independent values; NaN for fewer than two."""
    return t_quantile(len(values) - 1) * std(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


@lru_cache
def t_quantile(degrees: int) -> float:
    """Return t with P(|T| < t) = 95% for Student's T with so many degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # Halves an angle below 2 until float64 has no more digits to give.
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, degrees) < LEVEL else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _probability(angle: float, degrees: int) -> float:
    """Return P(|T| < sqrt(degrees) tan(angle)). Abramowitz and Stegun, 26.7.3 (odd degrees) and 26.7.4 (even)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term, total = (cosine, 0.0) if is_odd else (1.0, 0.0)
    for power in range(is_odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
