"""What was chosen on held-out classes, and how much a choice on the evaluation classes themselves would flatter."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from anml.config.evaluation import EvalConfig
from anml.config.training import TrainConfig
from anml.report.labels import checkpoint
from anml.report.statistics import grouped
from anml.report.tables import RateResult
from anml.report.text import accuracy_at_rate, aligned

HEADING = "Chosen on held-out classes, then scored: mean ± 95% interval of the mean @ the chosen learning rate"
NOTE = "best here: the best of all candidates on these very classes; flatters: by how much that is higher"


class ChosenResult(NamedTuple):
    """A result whose rate was not chosen on it. biased: the best of all on the same runs; None where not evaluated."""

    result: RateResult
    biased: RateResult | None

    @property
    def flatters(self) -> float | None:
        return self.biased.test_acc - self.result.test_acc if self.biased else None


def chosen_results(config: TrainConfig | None, by_classes: Sequence[RateResult]) -> list[ChosenResult]:
    """Return the results of flavors that choose, for every number of classes scored.

    by_classes: the best rate for every flavor, checkpoint and number of classes.
    """
    chosen = []
    flavors = config.eval if config else {}
    for name, flavor in flavors.items():
        if flavor.choose:
            swept = [other for other, candidate in flavors.items() if _is_sweep_of(candidate, flavor)]
            candidates = [result for result in by_classes if result.flavor in swept and result.checkpoint_step]
            for result in [result for result in by_classes if result.flavor == name]:
                same = [r for r in candidates if _is_same(r, result, flavor.choose.takes_checkpoint)]
                chosen.append(ChosenResult(result, max(same, key=lambda r: r.test_acc, default=None)))
    return chosen


def _is_sweep_of(candidate: EvalConfig, flavor: EvalConfig) -> bool:
    """Say whether a flavor does the same with every rate, on the evaluation classes themselves."""
    free = ("choose", "race", "measure", "lr", "classes", "eval_freq")
    return candidate.choose is None and candidate == flavor.model_copy(
        update={key: getattr(candidate, key) for key in free}
    )


def _is_same(candidate: RateResult, result: RateResult, any_step: bool) -> bool:
    keys = ("model", "dataset", "classes", "train_examples", "test_examples", "runs", "seeds")
    keys += () if any_step else ("checkpoint_step",)
    return all(getattr(candidate, key) == getattr(result, key) for key in keys)


def chosen_table(chosen: Sequence[ChosenResult], unit: str) -> list[str]:
    """Return the lines of a table for a terminal, none where nothing was chosen."""
    if not chosen:
        return []
    lines = [HEADING, *[NOTE] * any(item.biased for item in chosen), ""]
    for (flavor, model, step), items in grouped(chosen, _sweep).items():
        columns = [["classes", *(f"{item.result.classes:,}" for item in items)]]
        columns.append(["chosen", *(accuracy_at_rate(item.result) for item in items)])
        if any(item.biased for item in items):
            columns.append(["best here", *(accuracy_at_rate(item.biased) if item.biased else "-" for item in items)])
            columns.append(["flatters", *("-" if i.flatters is None else f"{i.flatters:+.3f}" for i in items)])
        lines += [f"{flavor}, {model}, {checkpoint(step, unit)}", *aligned(columns), ""]
    return lines


def _sweep(item: ChosenResult) -> tuple[str, str, int]:
    return item.result.flavor, item.result.model, item.result.checkpoint_step


def chosen_frame(chosen: Sequence[ChosenResult]) -> pd.DataFrame:
    """Return the results as a table, the columns of the biased one empty where it is not known."""
    keys = ("flavor", "model", "dataset", "checkpoint_step", "train_examples", "test_examples", "classes", "lr",
            "test_acc", "test_ci95", "runs", "seeds")  # fmt: skip
    of_biased = ("flavor", "checkpoint_step", "lr", "test_acc")
    return pd.DataFrame(
        {
            **{key: getattr(item.result, key) for key in keys},
            **{f"best_here_{key}": item.biased and getattr(item.biased, key) for key in of_biased},
            "flatters": item.flatters,
        }
        for item in chosen
    )
