"""Racing: after each block of runs, rates that a paired test shows to be worse than the best are not continued.

All rates meet the same classes and drawings, so that the test is of differences class by class. A rate goes on as long
as it may be the best for any number of classes, and no further than to the largest of these.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise, product, starmap
from typing import NamedTuple

import numpy as np

from anml.config.evaluation import EvalConfig
from anml.evaluate.prepared_run import Shape
from anml.evaluate.sweep import Trajectory
from anml.results import ClassRow, TrajectoryResult

# For each number of classes, the probability that its best rate is stopped is at most this.
FAMILY_WISE_ERROR = 0.05
# By how much more than classes explain, one rate's lead over another may differ from run to run (standard deviation).
_RUN_SPREAD = 0.015
# After how many runs rates are compared.
_LOOKS = (1, 2, 3, 5, 8, 13, 21, 34, 55)

# Test accuracies of the classes learned so far, float64 [runs, classes], by rate and number of classes.
Accuracies = Mapping[tuple[float, int], np.ndarray]


class Stopped(NamedTuple):
    """A rate that is not continued, or only to fewer classes, and why.

    goes_to: the number of classes that it still learns, 0 for none. difference: how much less accurate it is than
    `best` with `classes` classes, after so many runs. p: of the paired test, one-sided.
    """

    lr: float
    goes_to: int
    runs: int
    classes: int
    best: float
    difference: float
    p: float

    def __str__(self) -> str:
        what = f"goes on to {self.goes_to} classes" if self.goes_to else "is stopped"
        why = f"{self.difference:.3f} less than lr {self.best:g} with {self.classes} classes (p {self.p:.1g})"
        return f"lr {self.lr:g} {what} after {self.runs} run{'s' if self.runs > 1 else ''}: {why}"


def looks(runs: int) -> tuple[int, ...]:
    """Return after how many of so many runs rates are compared."""
    return tuple(look for look in _LOOKS if look < runs)


def gap(best: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return how much more accurate one rate is than another, and the one-sided p of a paired t-test.

    best, other: accuracies, float64 [runs, classes]. The variance of the difference is that over classes and the
    spread of runs, which one run cannot tell, or that over runs, whichever is larger. Two more classes, of which each
    rate wins one, keep it from 0 where all agree.
    """
    from scipy.special import stdtr  # Half a second that evaluations without a race need not wait.

    differences = best - other
    pairs = np.append(differences.ravel(), (1.0, -1.0))
    variances = [pairs.var(ddof=1) / pairs.size + _RUN_SPREAD**2 / len(differences)]
    if len(differences) > 1:
        variances.append(differences.mean(axis=1).var(ddof=1) / len(differences))
    return float(differences.mean()), float(stdtr(pairs.size - 1, -pairs.mean() / math.sqrt(max(variances))))


def narrowed(ends: Mapping[float, int], accuracies: Accuracies, level: float) -> tuple[dict[float, int], list[Stopped]]:
    """Return to how many classes each rate goes on (0: it does not), and why of those that are stopped before.

    ends: the same so far. level: the p below which a rate is worse than the best one.
    """
    worse: dict[tuple[float, int], Stopped] = {}
    for count in sorted({count for _, count in accuracies}):
        racing = {rate: accuracies[rate, count] for rate, end in ends.items() if end >= count}
        best = max(racing, key=lambda rate: racing[rate].mean())
        for rate, scores in racing.items():
            difference, p = gap(racing[best], scores)
            if rate != best and p < level:
                worse[rate, count] = Stopped(rate, 0, len(scores), count, best, difference, p)
    after, stopped = dict(ends), []
    for rate, end in ends.items():
        counts = [count for other, count in accuracies if other == rate and count <= end]
        after[rate] = max((count for count in counts if (rate, count) not in worse), default=0)
        if after[rate] < end:
            stopped.append(worse[rate, max(counts)]._replace(goes_to=after[rate]))
    return after, stopped


def race(
    config: EvalConfig, finished: Mapping[int, TrajectoryResult], tell: Callable[[Shape, list[Stopped]], None]
) -> Iterator[list[Trajectory]]:
    """Yield the trajectories of block after block of runs.

    finished: by index, the results of all that were yielded before. tell: receives what was stopped.
    """
    shapes = list(starmap(Shape, product(config.classes, config.train_examples, config.test_examples)))
    ends = {shape: dict.fromkeys(config.lr, shape.classes) for shape in shapes}
    compared = looks(config.runs)
    level = FAMILY_WISE_ERROR / max(1, len(compared) * (len(config.lr) - 1))
    yielded = 0
    for first, last in pairwise((0, *compared, config.runs)):
        block = [
            Trajectory(shape, run, rate, tuple(n for n in config.scored(shape.classes) if n <= end))
            for shape in shapes
            for run in range(first, last)
            for rate, end in ends[shape].items()
            if end
        ]
        yield block
        yielded += len(block)
        # A job that continues has results of later blocks too, which were made without knowledge of these.
        results = [finished[index] for index in range(yielded)] if last < config.runs else []
        for shape, accuracies in _accuracies(results).items():
            ends[shape], stopped = narrowed(ends[shape], accuracies, level)
            tell(shape, stopped)


def _accuracies(results: Iterable[TrajectoryResult]) -> dict[Shape, Accuracies]:
    """Return accuracies by size, of the last scoring with so many classes."""
    scores: dict[Shape, dict[tuple[float, int], dict[tuple[int, int], float]]] = {}
    for row in (ClassRow._make(row) for result in results for row in result.class_rows):
        if row.position < row.classes_trained and row.lr is not None:
            of_size = scores.setdefault(Shape(row.classes, row.train_examples, row.test_examples), {})
            of_size.setdefault((row.lr, row.classes_trained), {})[row.run, row.position] = row.test_acc
    return {
        shape: {key: np.array([by[at] for at in sorted(by)]).reshape(-1, key[1]) for key, by in of_size.items()}
        for shape, of_size in scores.items()
    }
