"""95% intervals of a mean by Student's t. No scipy: for whole degrees of freedom the distribution is a short sum."""

import math
from collections.abc import Sequence
from functools import lru_cache

LEVEL = 0.95


def half_width(values: Sequence[float]) -> float:
    """Return h such that mean ± h is the 95% interval of the mean of independent values; NaN for fewer than two."""
    count = len(values)
    if count < 2:
        return math.nan
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return t_quantile(count - 1) * math.sqrt(variance / count)


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
