"""Writes an experiment's report: table, figures, page."""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from anml.config.facts import is_validation
from anml.config.load import load_experiment_config
from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.status import read_jobs
from anml.report import labels
from anml.report.curves import as_table, best_by_classes
from anml.report.figures import draw_classes, draw_rates, draw_training, read_training
from anml.report.page import ReportContent, render_page
from anml.report.style import figure_style, save_png
from anml.report.tables import (
    RateResult,
    as_frame,
    best_rates,
    missing_results,
    rate_results,
    read_scores,
    write_summary,
)
from anml.report.text import accuracy_table, last_checkpoint

FIGURES = ("accuracy-vs-lr.png", "accuracy-vs-classes.png", "training.png")
# The figures' type is 11 points; shown so it is about as large as the page's small print.
PIXELS_PER_INCH = 96


@dataclass(frozen=True)
class Summary:
    """What a report says in short: the best learning rate of every sweep. page: where the report is."""

    points: tuple[RateResult, ...]
    page: Path

    @property
    def table(self) -> pd.DataFrame:
        """The points as a table, a column per field of SweepPoint."""
        return as_frame(self.points)

    def best_accuracies(self) -> dict[str, float | str]:
        """Return accuracy and learning rate of every flavor at the last checkpoint, for the largest setting.

        On held-out background classes (only where nothing else was evaluated) it is called validation_acc.

        Of several models, those of the one that is best at the flavor, and its name.
        """
        best = last_checkpoint(self.points)
        rates = {f"best_lr/{point.flavor}": point.lr for point in best if point.lr is not None}
        has_several = len({point.model for point in self.points}) > 1
        names = {f"best_model/{point.flavor}": point.model for point in best if has_several}
        kind = {True: "validation_acc", False: "test_acc"}
        accuracies = {f"{kind[is_validation(point.dataset)]}/{point.flavor}": point.test_acc for point in best}
        return accuracies | rates | names


def write_report(experiment: Experiment) -> Summary:
    """Write `report/` of an experiment as far as its results go.

    Each file is replaced as a whole, the page last, so that a reader never meets half a report.
    """
    experiment = Experiment(experiment.root.absolute())
    config, notices = read_config(experiment)
    rows, problems = read_scores(experiment)
    points = rate_results(rows, tuple(config.eval) if config else ())
    summary = best_rates(points)
    logs = read_training(experiment)
    notices += problems + (missing_results(config, rows) if config else [])
    unit, noun = labels.unit(config), labels.images(next((point.dataset for point in summary), ""))
    marks = config.checkpoint_steps if config else ()

    experiment.report.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=experiment.root, prefix=".report.") as name:
        folder = Path(name)
        drawers = (
            lambda: draw_rates(points, unit, noun),
            lambda: draw_classes(rows, summary, unit, noun),
            lambda: draw_training(logs, marks, unit),
        )
        figures = _draw(folder, drawers)
        write_summary(folder / "summary.csv", summary)
        milestones = best_by_classes(rows)
        as_table(milestones).to_csv(folder / "by-classes.csv", index=False, float_format="%.10g", lineterminator="\n")
        (folder / "accuracy.txt").write_text(accuracy_table(summary, unit) + "\n", encoding="utf-8")
        content = ReportContent(
            experiment, config, points, summary, milestones, logs, read_jobs(experiment), figures, notices
        )
        (folder / "index.html").write_text(render_page(content), encoding="utf-8")
        _publish(folder, experiment.report)
    return Summary(tuple(summary), experiment.report / "index.html")


def read_config(experiment: Experiment) -> tuple[TrainConfig | None, list[str]]:
    """Return an experiment's config, or None and a sentence that says why there is none."""
    try:
        return load_experiment_config(experiment.config_file).config, []
    except ConfigError as error:
        return None, [f"config.yml could not be read: {error}"]


def _draw(folder: Path, drawers: Sequence[Callable[[], Figure | None]]) -> dict[str, int]:
    """Save every figure that there is something to draw for. Returns names and the widths to show them at."""
    made = {}
    with figure_style():
        for name, draw in zip(FIGURES, drawers, strict=True):
            figure = draw()
            if figure is not None:
                save_png(figure, folder / name)
                made[name] = round(figure.get_figwidth() * PIXELS_PER_INCH)
    return made


def _publish(folder: Path, report: Path) -> None:
    """Move new files into place, the page last; remove figures that have nothing to show any more."""
    new = sorted(folder.iterdir(), key=lambda path: path.name == "index.html")
    for path in new:
        os.replace(path, report / path.name)
    for name in set(FIGURES) - {path.name for path in new}:
        (report / name).unlink(missing_ok=True)
