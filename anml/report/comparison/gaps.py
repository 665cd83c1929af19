"""What learning in sequence costs: how far an oracle is ahead of its sequential flavor, run by run."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from anml.report.comparison.contender import Contender
from anml.report.comparison.tables import WHO, Column, Table, who
from anml.report.interval import Estimate, estimate


@dataclass(frozen=True)
class Gap:
    """Accuracy of an oracle minus that of its sequential flavor, by the place of the experiment.

    The mean over the runs that both have, of one evaluation seed: a run has the same classes and examples in both, so
    that the interval of the differences is narrower than those of the accuracies.
    """

    sequential: str
    oracle: str
    differences: dict[int, Estimate]

    @property
    def name(self) -> str:
        """Return `olft-oracle - olft`."""
        return f"{self.oracle} - {self.sequential}"


def gaps_of(table: Table) -> list[Gap]:
    """Return the gap of every sequential flavor to every oracle of it."""
    found = []
    for columns in table.pairs:
        for sequential in (column for column in columns if not column.is_oracle):
            found += [_gap(sequential, oracle) for oracle in columns if oracle.is_oracle]
    return [gap for gap in found if gap.differences]


def _gap(sequential: Column, oracle: Column) -> Gap:
    differences = {}
    for place in sorted(sequential.cells.keys() & oracle.cells.keys()):
        low, high = sequential.cells[place], oracle.cells[place]
        both = sorted(low.runs.keys() & high.runs.keys()) if low.seed == high.seed else ()
        if both:
            differences[place] = estimate((seed, high.runs[seed, run] - low.runs[seed, run]) for seed, run in both)
    return Gap(sequential.name, oracle.name, differences)


def gaps_frame(contenders: Sequence[Contender], tables: Sequence[Table]) -> pd.DataFrame:
    """Return a line per gap and experiment."""
    columns = {
        "difference": "mean", "std": "std", "ci95": "half_width", "interval_over": "over", "runs": "runs",
        "seeds": "seeds",
    }  # fmt: skip
    lines = [
        {
            **who(contenders[place]),
            "model": contenders[place].model,
            **table.amount._asdict(),
            "sequential": gap.sequential,
            "oracle": gap.oracle,
            **{name: getattr(value, field) for name, field in columns.items()},
        }
        for table in tables
        for gap in gaps_of(table)
        for place, value in gap.differences.items()
    ]
    return pd.DataFrame(
        lines,
        columns=[
            *WHO,
            "model",
            "dataset",
            "classes",
            "train_examples",
            "test_examples",
            "sequential",
            "oracle",
            *columns,
        ],
    )
