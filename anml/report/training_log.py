"""What training wrote down: `metrics/train*.jsonl`, one line per logged step."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from anml.config.variation import variation_of, variation_order
from anml.experiment import Experiment


@dataclass(frozen=True)
class LoggedMeasure:
    """Values of one measure and the steps they belong to, in order of step."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class TrainingLog:
    """The log of one training. name: `seed 1`, say; empty when the experiment has only one training."""

    name: str
    lines: tuple[dict[str, float], ...]

    def measure(self, name: str) -> LoggedMeasure:
        """Return the finite values of `loss`, `accuracy` or `val_accuracy`: a diverged training logs others too."""
        kept = [(int(line["step"]), line[name]) for line in self.lines if math.isfinite(line.get(name, math.nan))]
        return LoggedMeasure(tuple(step for step, _ in kept), tuple(value for _, value in kept))


def read_training(experiment: Experiment) -> list[TrainingLog]:
    """Return the logs of all trainings that have logged anything."""
    paths = sorted(experiment.metrics().parent.glob("train*.jsonl"), key=_order)
    logs = [TrainingLog(_name(path), _read_lines(path)) for path in paths]
    return [log for log in logs if log.lines]


def _tag(path: Path) -> str:
    return path.stem.removeprefix("train").removeprefix("-")


def _name(path: Path) -> str:
    try:
        return variation_of(_tag(path)).words
    except ValueError:
        return _tag(path)


def _order(path: Path) -> tuple:
    """Put trainings in order of their inner rates and seeds as numbers, and behind them what names none."""
    try:
        return (0, *variation_order(variation_of(_tag(path))))
    except ValueError:
        return (1, path.stem)


def _read_lines(path: Path) -> tuple[dict[str, float], ...]:
    """Read the lines that are whole: a training that is writing or was killed may leave half a last line."""
    lines = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = {name: float(value) for name, value in json.loads(text).items()}
            lines[line["step"]] = line
        except (ValueError, TypeError, AttributeError, KeyError):
            continue
    return tuple(lines[step] for step in sorted(lines))
