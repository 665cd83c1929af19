"""Results as tables: every scoring, every point of the sweeps, and the best learning rate of each sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from anml.errors import DataError
from anml.experiment import Experiment
from anml.report.interval import half_width
from anml.results import COLUMNS, read_results

# The train_seed of rows that pool several trainings.
POOLED = "all"
SETTING = ["classes", "train_examples", "test_examples"]
SWEEP = ["flavor", "protocol", "dataset", "checkpoint_step", *SETTING]
TRAJECTORY = [*SWEEP, "lr", "train_seed", "run"]
POINT_COLUMNS = [
    "train_seed", *SWEEP, "lr", "test_acc", "test_std", "test_ci95", "interval_over", "train_acc", "runs", "seeds",
    "chance",
]  # fmt: skip


class Scores(NamedTuple):
    """All rows of all results files (columns of anml.results), and what could not be read."""

    table: pd.DataFrame
    problems: list[str]


class Estimate(NamedTuple):
    """A mean accuracy. std: over runs. half_width: of the 95% interval of the mean, over runs or over seeds' means."""

    mean: float
    std: float
    half_width: float
    runs: int
    seeds: int
    over: Literal["runs", "seeds"]


def read_scores(experiment: Experiment) -> Scores:
    """Read all results of an experiment, the parts of array jobs included. A damaged file is reported, not fatal."""
    rows, problems = [], []
    for path in sorted(experiment.results.glob("*.csv")):
        try:
            rows += read_results([path])
        except (DataError, ValueError, TypeError) as error:
            problems.append(f"{path.name} was left out: {error}")
    table = pd.DataFrame([vars(row) for row in rows], columns=list(COLUMNS))
    # A sweep cut differently on a retry leaves the same scoring in two files.
    table = table.drop_duplicates([*TRAJECTORY, "epoch", "step"], keep="last", ignore_index=True)
    return Scores(table.astype({"lr": float}), problems)


def finals(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the last scoring of each trajectory: the one with the largest step."""
    return scores.sort_values(["step", "epoch"], kind="stable").drop_duplicates(TRAJECTORY, keep="last").sort_index()


def estimate(accuracies: pd.Series, seeds: pd.Series) -> Estimate:
    """Return the mean of runs, each seed counting the same, with its 95% interval.

    From three seeds on the interval is over the seeds' means. Below, it is over runs and says nothing of how much
    trainings differ.
    """
    means = accuracies.groupby(seeds).mean()
    over_seeds = len(means) >= 3
    sample = means if over_seeds else accuracies
    return Estimate(
        mean=float(means.mean()),
        std=float(accuracies.std(ddof=1)),
        half_width=half_width(sample.tolist()),
        runs=len(accuracies),
        seeds=len(means),
        over="seeds" if over_seeds else "runs",
    )


def sweep_points(scores: pd.DataFrame, flavors: Sequence[str] = ()) -> pd.DataFrame:
    """Return a row per learning rate of every sweep (POINT_COLUMNS), for each training and pooled over them.

    flavors: the order of rows; flavors not named come behind.
    """
    ends = finals(scores)
    parts = [ends.assign(pool=ends["train_seed"].astype(str))]
    if ends["train_seed"].nunique() > 1:
        parts.append(ends.assign(pool=POOLED))
    records = [
        _point(group) for part in parts for _, group in part.groupby(["pool", *SWEEP, "lr"], dropna=False, sort=False)
    ]
    return _in_order(pd.DataFrame(records, columns=POINT_COLUMNS), flavors)


def _point(group: pd.DataFrame) -> dict[str, Any]:
    """Return the row of one point; the group's rows are the ends of its runs."""
    first = group.iloc[0]
    test = estimate(group["test_acc"], group["train_seed"])
    return {
        "train_seed": first["pool"],
        **{name: first[name] for name in [*SWEEP, "lr"]},
        "test_acc": test.mean,
        "test_std": test.std,
        "test_ci95": test.half_width,
        "interval_over": test.over,
        "train_acc": estimate(group["train_acc"], group["train_seed"]).mean,
        "runs": test.runs,
        "seeds": test.seeds,
        "chance": 1 / first["classes"],
    }


def _in_order(points: pd.DataFrame, flavors: Sequence[str]) -> pd.DataFrame:
    rank = {name: place for place, name in enumerate([*flavors, *sorted(set(points["flavor"]) - set(flavors))])}

    def key(column: pd.Series) -> pd.Series:
        if column.name == "flavor":
            return column.map(rank)
        return column.map(lambda seed: -1 if seed == POOLED else int(seed)) if column.name == "train_seed" else column

    order = [*SETTING, "flavor", "protocol", "dataset", "checkpoint_step", "train_seed", "lr"]
    ascending = [name != "classes" for name in order]
    return points.sort_values(order, key=key, ascending=ascending, kind="stable", ignore_index=True)


def best_rates(points: pd.DataFrame) -> pd.DataFrame:
    """Return the summary: of every sweep, the learning rate with the highest mean test accuracy.

    Of equal ones the one whose mean is better known, then the smaller. The choice is made on the test accuracy that
    is reported, as in the published tables.
    """
    ranked = points.assign(
        # Sums in another order differ in the last digits, which must not break a tie.
        mean=points["test_acc"].astype(float).round(12),
        spread=(points["test_std"].astype(float) / np.sqrt(points["runs"].astype(float))).fillna(np.inf),
    ).sort_values(["mean", "spread", "lr"], ascending=[False, True, True], kind="stable")
    best = ranked.drop_duplicates(["train_seed", *SWEEP]).index.sort_values()
    return points.loc[best].reset_index(drop=True)


def main_rows(points: pd.DataFrame) -> pd.DataFrame:
    """Return the rows to show first: those pooled over trainings, or all of them when there is one training."""
    pooled = points[points["train_seed"] == POOLED]
    return points if pooled.empty else pooled


def learning_curve(scores: pd.DataFrame, best: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy against classes learned for one flavor at one checkpoint, at the best rates of its sweeps.

    best: that flavor's rows of the summary, one per number of classes. Either one long trajectory was scored on its
    way, or each number of classes has its own sweep: what gives more points is returned, as columns classes_trained,
    test_acc, test_ci95, train_acc, runs.
    """
    longest = best.sort_values("classes").iloc[[-1]]
    on_the_way = scores.merge(longest[[*SWEEP, "lr"]], on=[*SWEEP, "lr"])
    at_the_ends = finals(scores.merge(best[[*SWEEP, "lr"]], on=[*SWEEP, "lr"]))
    counts = [part["classes_trained"].nunique() for part in (on_the_way, at_the_ends)]
    chosen = on_the_way if counts[0] >= counts[1] else at_the_ends
    # I.i.d. learning is scored several times with all classes in play: its end counts.
    chosen = chosen.sort_values("step").drop_duplicates(["train_seed", "run", "classes_trained"], keep="last")
    records = []
    for learned, group in chosen.groupby("classes_trained"):
        test = estimate(group["test_acc"], group["train_seed"])
        train = estimate(group["train_acc"], group["train_seed"])
        records.append((learned, test.mean, test.half_width, train.mean, test.runs))
    return pd.DataFrame(records, columns=["classes_trained", "test_acc", "test_ci95", "train_acc", "runs"])


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV."""
    table.to_csv(path, index=False, float_format="%.10g", lineterminator="\n")


def read_summary(path: Path) -> pd.DataFrame:
    """Read the summary that a report has written. Raises OSError or ValueError."""
    return pd.read_csv(path, dtype={"train_seed": str, "flavor": str, "dataset": str}, keep_default_na=True)
