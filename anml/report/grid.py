"""The accuracy table: flavors down, checkpoints across, one grid per setting (classes and examples per class)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from anml.report.tables import SETTING, main_rows


@dataclass(frozen=True)
class Setting:
    """How much is learned and tested: classes, and examples of each class."""

    classes: int
    train_examples: int
    test_examples: int

    @property
    def label(self) -> str:
        """The setting in words."""
        return f"{self.classes} classes, {self.train_examples} examples of each to learn, {self.test_examples} to test"


@dataclass(frozen=True)
class Accuracy:
    """Mean test accuracy ± 95% interval at the best learning rate (None: nothing is learned by gradient steps)."""

    mean: float
    half_width: float
    lr: float | None
    train: float
    runs: int
    over: str

    @property
    def value(self) -> str:
        """Mean and interval, as `0.734 ± 0.021`."""
        return f"{self.mean:.3f}" + ("" if math.isnan(self.half_width) else f" ± {self.half_width:.3f}")

    @property
    def text(self) -> str:
        """Mean, interval and learning rate, as `0.734 ± 0.021 @ 0.001`."""
        return self.value + ("" if self.lr is None else f" @ {self.lr:g}")


@dataclass(frozen=True)
class AccuracyGrid:
    """One setting's accuracies: `cells[flavor][step]`; step 0 is the untrained network, shown last."""

    setting: Setting
    steps: tuple[int, ...]
    cells: dict[str, dict[int, Accuracy]]

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the classes learned."""
        return 1 / self.setting.classes

    @property
    def runs(self) -> str:
        """Number of runs behind each mean, in words."""
        return number_of_runs([cell.runs for row in self.cells.values() for cell in row.values()])


def accuracy_grids(summary: pd.DataFrame) -> list[AccuracyGrid]:
    """Return a grid per setting, most classes first, pooled over trainings where there are several."""
    grids = []
    for key, rows in main_rows(summary).groupby(SETTING, sort=False):
        cells: dict[str, dict[int, Accuracy]] = {}
        for row in rows.to_dict("records"):
            cells.setdefault(str(row["flavor"]), {})[int(row["checkpoint_step"])] = _accuracy(row)
        steps = sorted({step for row in cells.values() for step in row})
        trained_first = tuple([step for step in steps if step] + [step for step in steps if not step])
        grids.append(AccuracyGrid(Setting(*(int(value) for value in key)), trained_first, cells))
    return grids


def last_checkpoint(summary: pd.DataFrame) -> tuple[Setting | None, int, dict[str, Accuracy]]:
    """Return the accuracies by flavor at the last checkpoint, for the setting with the most classes, and these two."""
    grids = accuracy_grids(summary)
    if not grids:
        return None, 0, {}
    last = max(grids[0].steps)
    return grids[0].setting, last, {name: row[last] for name, row in grids[0].cells.items() if last in row}


def _accuracy(row: dict) -> Accuracy:
    lr = None if pd.isna(row["lr"]) else float(row["lr"])
    mean, half_width, train = (float(row[name]) for name in ("test_acc", "test_ci95", "train_acc"))
    return Accuracy(mean, half_width, lr, train, int(row["runs"]), str(row["interval_over"]))


def number_of_runs(counts: Sequence[int]) -> str:
    """Return `10 runs`, or `7 to 10 runs` where some are missing."""
    low, high = min(counts), max(counts)
    amount = f"{low}" if low == high else f"{low} to {high}"
    return f"{amount} run{'' if high == 1 else 's'}"
