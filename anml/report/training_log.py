"""What training wrote down: `metrics/train*.jsonl`, one line per logged step."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from anml.experiment import Experiment

MEASURES = ("loss", "accuracy", "val_accuracy")


def read_training(experiment: Experiment) -> dict[str, pd.DataFrame]:
    """Return the log of each training as columns step, loss, accuracy and maybe val_accuracy, by seed ("": the only).

    Values that are not finite (a training that diverged) are NaN.
    """
    logs = {}
    for path in sorted(experiment.metrics().parent.glob("train*.jsonl"), key=_seed_order):
        lines = _read_lines(path)
        if lines:
            table = pd.DataFrame(lines).reindex(columns=["step", *MEASURES]).astype(float)
            table = table.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)
            logs[_seed(path)] = table.replace([np.inf, -np.inf], np.nan).dropna(axis="columns", how="all")
    return logs


def _seed(path: Path) -> str:
    return path.stem.removeprefix("train").removeprefix("-seed-")


def _seed_order(path: Path) -> tuple[int, str]:
    return (len(path.stem), path.stem)  # seed-10 comes behind seed-9.


def _read_lines(path: Path) -> list[dict[str, float]]:
    """Read the lines that are whole: a training that is writing or was killed may leave half a last line."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "step" in entry:
            lines.append(entry)
    return lines
