"""Means and 95% intervals of them by Student's t; groups of items that share a key."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Literal, TypeVar

import numpy as np

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
LEVEL = 0.95
# With fewer seeds, an interval over their means is too wide to say anything.
FEWEST_SEEDS = 3


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return items by key, keys and items in the order in which they come."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


@dataclass(frozen=True)
class Estimate:
    """A mean over runs. std: over runs. half_width: of the 95% interval of the mean, over runs or over seeds' means."""

    mean: float
    std: float
    half_width: float
    runs: int
    seeds: int
    over: Literal["runs", "seeds"]


def estimate(values: Iterable[tuple[int, float]], first: Sequence[float] = ()) -> Estimate:
    """Return the mean of (seed, value) pairs, one pair a run, each seed counting the same.

    From three seeds on the interval is over the seeds' means. Below, it is over runs and says nothing of how much
    trainings differ. first: values of the runs whose spread decided how many there are (default: nothing did).
    """
    by_seed = grouped(values, lambda pair: pair[0])
    all_runs = [value for pairs in by_seed.values() for _, value in pairs]
    means = [fmean(value for _, value in pairs) for pairs in by_seed.values()]
    over_seeds = len(means) >= FEWEST_SEEDS
    return Estimate(
        mean=fmean(means),
        std=std(all_runs),
        half_width=half_width(means) if over_seeds else half_width(first or all_runs, len(all_runs)),
        runs=len(all_runs),
        seeds=len(means),
        over="seeds" if over_seeds else "runs",
    )


def std(values: Sequence[float]) -> float:
    """Return the sample standard deviation (n - 1), NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1, mean=np.asarray(fmean(values))))


def half_width(values: Sequence[float], count: int | None = None) -> float:
    """Return h such that mean ± h is the 95% interval of the mean of independent values; NaN for fewer than two.

    count: how many values the mean is of, where the spread of the first ones, which are given, decided that. The spread
    of all would give too short an interval: few follow where the first ones happen to lie close together.
    """
    if len(values) < 2:
        return math.nan
    return t_quantile(len(values) - 1) * std(values) / math.sqrt(count or len(values))


def runs_needed(spread: float, first: int, wanted: float) -> int:
    """Return how many runs give an interval of mean ± `wanted`, given the standard deviation of the first ones.

    Stein 1945, "A two-sample test for a linear hypothesis whose power is independent of the variance". To stop as soon
    as an interval is narrow would make it too short.
    """
    return max(first, math.ceil((t_quantile(first - 1) * spread / wanted) ** 2))


@lru_cache
def t_quantile(degrees: int) -> float:
    """Return t with P(|T| < t) = 95% for Student's T with so many degrees of freedom."""
    from scipy.special import stdtrit  # What scipy.stats.t.ppf calls; importing scipy.stats takes a second.

    return float(stdtrit(degrees, (1 + LEVEL) / 2))
