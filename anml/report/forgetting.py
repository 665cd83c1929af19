"""What is forgotten while a model learns class after class, by the accuracy of each class at each scoring.

docs/metrics.md has the definitions. The numbers come from `results/*.parquet`, so that reports of earlier experiments
have them too.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from anml.experiment import Experiment
from anml.report.measures import Measured
from anml.report.tables import RateResult, main_results, sweep_of
from anml.results import ResultRow

KEYS = ("flavor", "model", "dataset", "checkpoint_step", "classes", "train_examples", "test_examples", "lr")
# Where the results file is of one model and data set, it says these and the table of its classes does not.
_OF_A_FILE = ("flavor", "model", "dataset", "checkpoint_step", "train_seed")


class Metrics(NamedTuple):
    """The metrics of one trajectory; fractions. average, area: of the accuracy on the classes learned so far.

    by_order: accuracy of each class at the end, float64 [classes], in order of learning. lost: how far each fell from
    its best scoring before; NaN of those that were scored once. grid: accuracies at each scoring, float64 [scorings,
    classes], NaN before a class is learned.
    """

    average: float
    area: float
    forgetting: float
    backward_transfer: float
    by_order: np.ndarray
    lost: np.ndarray
    grid: np.ndarray


def metrics(accuracies: np.ndarray, classes_trained: np.ndarray) -> Metrics:
    """Return the metrics of a trajectory that was scored at least twice.

    accuracies: float64 [scorings, classes] in order of learning; of classes not learned yet they are not looked at.
    classes_trained: int [scorings], rising.
    """
    learned = np.where(np.arange(accuracies.shape[1]) < classes_trained[:, None], accuracies, np.nan)
    so_far = np.nanmean(learned, axis=1)
    # The classes that were scored before the end: of the others nothing can have been forgotten.
    before, end = learned[:-1, : classes_trained[-2]], learned[-1, : classes_trained[-2]]
    first = before[np.isfinite(before).argmax(axis=0), np.arange(before.shape[1])]
    lost = np.full(classes_trained[-1], np.nan)
    lost[: len(end)] = np.nanmax(before, axis=0) - end
    return Metrics(
        average=float(so_far.mean()),
        area=float(np.trapezoid(so_far, classes_trained) / (classes_trained[-1] - classes_trained[0])),
        forgetting=float(np.nanmean(lost)),
        backward_transfer=float((end - first).mean()),
        by_order=learned[-1, : classes_trained[-1]],
        lost=lost,
        grid=learned[:, : classes_trained[-1]],
    )


@dataclass(frozen=True)
class Forgetting(Measured):
    """The metrics of a flavor at its best rate. by_order, lost, grid: as in `Metrics`, means over runs.

    scored: after how many classes, int [scorings].
    """

    scored: np.ndarray
    by_order: np.ndarray
    lost: np.ndarray
    grid: np.ndarray

    @property
    def scorings(self) -> int:
        return len(self.scored)


NUMBERS = ("average", "area", "forgetting", "backward_transfer")


def read_forgetting(experiment: Experiment, summary: Sequence[RateResult]) -> list[Forgetting]:
    """Return the metrics of every flavor of the summary that was scored at least twice while it learned in sequence.

    A results file without readable values of its classes is left out.
    """
    results = {_key(result): result for result in main_results(summary)}
    runs: dict[tuple, dict[tuple[int, int], tuple[np.ndarray, Metrics]]] = {}
    for path in sorted(experiment.results.glob("*.parquet")):
        for key, seed, run, numbers in _trajectories(path, results):
            runs.setdefault(key, {})[seed, run] = numbers
    return [_summarise(results[key], runs[key]) for key in results if key in runs]


def scored_throughout(results: Sequence[RateResult], rows: Sequence[ResultRow]) -> list[RateResult]:
    """Return the results at whose rate every scoring of their sweep was made.

    A rate that was chosen for many classes has no scorings at few: its metrics would be compared with others' in vain.
    """
    scorings: dict[tuple, set[int]] = {}
    for row in rows:
        for key in ((sweep_of(row),), (sweep_of(row), row.lr)):
            scorings.setdefault(key, set()).add(row.classes_trained)
    return [r for r in results if scorings.get((r.sweep, r.lr)) == scorings.get((r.sweep,))]


def _key(result: RateResult) -> tuple:
    return tuple(getattr(result, name) for name in KEYS)


def _trajectories(
    path: Path, wanted: Mapping[tuple, RateResult]
) -> Iterator[tuple[tuple, int, int, tuple[np.ndarray, Metrics]]]:
    """Yield key, training seed, run, (classes at each scoring, metrics) of trajectories of a file that are wanted."""
    try:
        texts: Any = dict.fromkeys(_OF_A_FILE[:3], str)  # A flavor may be called 600.
        about = pd.read_csv(path.with_suffix(".csv"), nrows=1, dtype=texts, keep_default_na=False).iloc[0]
        table = pd.read_parquet(path)
        of_file = {name: about[name] for name in _OF_A_FILE if name not in table}
        varying = [name for name in (*KEYS, "train_seed", "run") if name not in of_file]
        groups: Any = table.groupby(varying, dropna=False)
    except (OSError, ValueError, LookupError):
        return
    for values, trajectory in groups:
        values_of = of_file | dict(zip(varying, values, strict=True))
        values_of["lr"] = None if math.isnan(values_of["lr"]) else values_of["lr"]
        key = tuple(values_of[name] for name in KEYS)
        grid = trajectory.pivot_table(index="classes_trained", columns="position", values="test_acc")
        if key in wanted and len(grid) > 1 and grid.index[-1] == values_of["classes"]:
            scored = grid.index.to_numpy()
            yield key, int(values_of["train_seed"]), values_of["run"], (scored, metrics(grid.to_numpy(), scored))


def _summarise(result: RateResult, runs: dict[tuple[int, int], tuple[np.ndarray, Metrics]]) -> Forgetting:
    numbers = {name: {key: getattr(each, name) for key, (_, each) in runs.items()} for name in NUMBERS}
    scored = min((scored for scored, _ in runs.values()), key=len)
    alike = [each for of_run, each in runs.values() if np.array_equal(of_run, scored)]
    means = [np.mean([getattr(each, name) for each in alike], axis=0) for name in ("by_order", "lost", "grid")]
    return Forgetting(result, numbers, scored, *means)


def by_class_frame(items: Sequence[Forgetting]) -> pd.DataFrame:
    """Return a line per class in order of learning: its accuracy at the end, and what was lost of it."""
    frames = [
        pd.DataFrame({"position": range(len(item.lost)), "test_acc": item.by_order, "forgetting": item.lost}).assign(
            **{key: getattr(item.result, key) for key in KEYS}
        )
        for item in items
    ]
    return pd.concat(frames).reindex(columns=[*KEYS, "position", "test_acc", "forgetting"])
