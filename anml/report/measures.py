"""What evaluations measured besides accuracy (`measure`): files beside their results, defined in docs/metrics.md."""

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from anml.experiment import Experiment
from anml.report.statistics import Estimate, estimate
from anml.report.tables import RateResult, main_results
from anml.results import CONFUSIONS, PICTURES, REPRESENTATION, ConfusionRow

# What a number is of, as files and summaries call it; a representation has no learning rate.
KEYS = ("flavor", "model", "dataset", "checkpoint_step", "classes", "train_examples", "test_examples")
NUMBERS = ("active", "dead", "effective_rank")
# Files of earlier versions have none of these.
LATER_NUMBERS = ("nonzero", "always_zero")
_NEEDED = {
    REPRESENTATION: {*KEYS, "train_seed", "run", *NUMBERS, "similarities", "map"},
    CONFUSIONS: {*KEYS, "train_seed", *ConfusionRow._fields, "label", "predicted_label"},
}
# Confusions on the page, of each flavor.
MOST_CONFUSIONS = 8

# By training seed and run.
Runs = Mapping[tuple[int, int], float]


@dataclass(frozen=True)
class Measured:
    """Numbers of a result of the summary, by name and run."""

    result: RateResult
    runs: Mapping[str, Runs]

    def mean(self, name: str) -> Estimate:
        return estimate((seed, value) for (seed, _), value in self.runs[name].items())


@dataclass(frozen=True)
class MeasuredRows(Measured):
    """Also the rows of the files that the numbers come from."""

    rows: pd.DataFrame

    @property
    def first_runs(self) -> list[dict[str, Any]]:
        """The row of run 0 of each training, which has the similarities that give a CKA."""
        return self.rows.loc[self.rows["run"] == 0].to_dict("records")


def read_measured(experiment: Experiment, suffix: str, summary: Sequence[RateResult]) -> list[MeasuredRows]:
    """Return what files of a suffix (REPRESENTATION, CONFUSIONS) hold of the results of a summary."""
    tables = []
    for path in sorted(experiment.results.glob(f"*{suffix}")):
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError):
            continue
        if len(table) and _NEEDED[suffix] <= set(table):
            tables.append(table.assign(pictures=path.name.removesuffix(suffix) + PICTURES))
    if not tables:
        return []
    # A sweep that a retry cut into other tasks has a trajectory in two files.
    rows: Any = pd.concat(tables, ignore_index=True)
    of = [name for name in (*KEYS, "train_seed", "run", "lr") if name in rows]
    rows = rows[rows["pictures"] == rows.groupby(of, dropna=False)["pictures"].transform("last")]
    by_key, found = dict(iter(rows.groupby(list(KEYS)))), []
    for result in main_results(summary):
        rows = by_key.get(tuple(getattr(result, key) for key in KEYS))
        if rows is not None:
            rows = rows if suffix == REPRESENTATION else rows[rows["lr"].fillna(0) == (result.lr or 0)]
            found.append(MeasuredRows(result, _activity(rows) if suffix == REPRESENTATION else _later(rows), rows))
    return found


def _activity(rows: pd.DataFrame) -> dict[str, Runs]:
    numbers: Any = rows.set_index(["train_seed", "run"])
    names = [name for name in (*NUMBERS, *LATER_NUMBERS) if name in numbers and numbers[name].notna().any()]
    return {name: numbers[name].dropna().to_dict() for name in names}


def _later(rows: pd.DataFrame) -> dict[str, Runs]:
    """Return the share of wrong answers that name a class learned after the right one."""
    wrong = wrong_answers(rows)
    later = wrong["answers"].where(wrong["predicted"] > wrong["position"], 0)
    sums: Any = wrong.assign(later=later).groupby(["train_seed", "run"])[["later", "answers"]].sum()
    return {"later": (sums["later"] / sums["answers"]).to_dict()} if len(sums) else {}


def wrong_answers(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[(rows["predicted"] >= 0) & (rows["predicted"] != rows["position"])]


def confusion_matrix(rows: pd.DataFrame, classes: int, cells: int) -> np.ndarray:
    """Return what share of the answers to each group of classes names each group, float64 [cells, cells].

    Groups are neighbours in the order of learning; with fewer classes than cells, each is a group.
    """
    answered: Any = rows[rows["predicted"] >= 0]
    cells = min(cells, classes)
    counts = np.zeros((cells, cells))
    groups = [answered[name].to_numpy() * cells // classes for name in ("position", "predicted")]
    np.add.at(counts, tuple(groups), answered["answers"].to_numpy())
    return counts / np.maximum(1, counts.sum(axis=1, keepdims=True))


class Confusion(NamedTuple):
    """How many of a class's test examples, over all runs, were taken for another class. Pictures: PNG in base 64."""

    label: int
    predicted_label: int
    answers: int
    of: int
    picture: str
    predicted_picture: str


def worst_confusions(experiment: Experiment, rows: pd.DataFrame) -> list[Confusion]:
    """Return the pairs of classes that were confused most often; none where their pictures are gone."""
    try:
        table = pd.read_parquet(experiment.results / rows["pictures"].iloc[0], columns=["label", "picture"])
    except (OSError, ValueError):
        return []
    pairs: Any = wrong_answers(rows).groupby(["label", "predicted_label"])["answers"].sum()
    totals: Any = rows.groupby("label")["answers"].sum()
    pictures: Any = table.set_index("label")["picture"].map(lambda png: b64encode(png).decode())
    worst = pairs.nlargest(MOST_CONFUSIONS).items()
    return [
        Confusion(label, other, answers, totals[label], pictures[label], pictures[other])
        for (label, other), answers in worst
    ]


def cka_frame(items: Sequence[MeasuredRows]) -> pd.DataFrame:
    """Return the CKA of every two checkpoints of a flavor, a line each: they saw the same images."""
    rows = [row for item in items for row in item.first_runs]
    lines = []
    for one, other in combinations(rows, 2):
        if all(one[key] == other[key] for key in KEYS if key not in ("model", "checkpoint_step")):
            ends = [each[key] for each in (one, other) for key in ("model", "checkpoint_step", "train_seed")]
            lines.append([one["flavor"], *ends, float(one["similarities"] @ other["similarities"])])
    names = ["model", "checkpoint_step", "train_seed", "model_2", "checkpoint_step_2", "train_seed_2"]
    return pd.DataFrame(lines, columns=["flavor", *names, "cka"])


def cka_matrices(table: pd.DataFrame) -> list[tuple[list[tuple], dict[tuple, float]]]:
    """Return for each flavor its checkpoints (model, step, seed) and the CKA of each two of them, by both."""
    matrices = []
    for _, of_flavor in table.groupby("flavor", sort=False):
        lines = [(tuple(line[1:4]), tuple(line[4:7]), line[7]) for line in of_flavor.itertuples(index=False, name=None)]
        values = {pair: cka for one, other, cka in lines for pair in ((one, other), (other, one))}
        matrices.append((list(dict.fromkeys(one for one, _ in values)), values))
    return matrices


def measured_frame(items: Sequence[Measured], *more: str) -> pd.DataFrame:
    """Return numbers as a table: a mean and half the width of its 95% interval each. more: fields of the results."""
    lines = []
    for item in items:
        line = {key: getattr(item.result, key) for key in (*KEYS, *more)}
        for name, value in ((name, item.mean(name)) for name in item.runs):
            line["runs"] = max(value.runs, line.get("runs", 0))  # Files of an earlier version have fewer numbers.
            line |= {name: value.mean, f"{name}_ci95": value.half_width}
        lines.append(line)
    return pd.DataFrame(lines)


def in_words(value: Estimate) -> str:
    """Return mean and 95% interval, as `0.159 ± 0.002`, of larger numbers as `41.3 ± 0.2`."""
    digits = 3 if abs(value.mean) < 10 else 1
    half = "" if math.isnan(value.half_width) else f" ± {value.half_width:.{digits}f}"
    return f"{value.mean:.{digits}f}{half}"
