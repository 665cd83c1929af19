"""Writes an experiment's report: table, figures, page."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from anml.config.facts import is_validation
from anml.config.load import load_experiment_config
from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.status import read_jobs
from anml.report import labels, tables
from anml.report.figures import draw_classes, draw_rates, draw_training, read_training
from anml.report.page import ReportContent, publish, render_page
from anml.report.style import FLAVORS, figure_style, find_looks, save_png
from anml.report.tables import RateResult
from anml.report.text import accuracy_table, last_checkpoint

FIGURES = ("accuracy-vs-lr.png", "accuracy-vs-classes.png", "training.png")


@dataclass(frozen=True)
class Summary:
    """What a report says in short: the best learning rate of every sweep. page: where the report is."""

    results: tuple[RateResult, ...]
    page: Path

    def best_accuracies(self) -> dict[str, float | str]:
        """Return accuracy and learning rate of every flavor at the last checkpoint, for the largest setting.

        On held-out background classes (only where nothing else was evaluated) it is called validation_acc. Of several
        models, the numbers are those of the best one at the flavor, and its name is there.
        """
        best = last_checkpoint(self.results)
        kind = {True: "validation_acc", False: "test_acc"}
        values: dict[str, float | str] = {}
        values |= {f"{kind[is_validation(result.dataset)]}/{result.flavor}": result.test_acc for result in best}
        values |= {f"best_lr/{result.flavor}": result.lr for result in best if result.lr is not None}
        if len({result.model for result in self.results}) > 1:
            values |= {f"best_model/{result.flavor}": result.model for result in best}
        return values


def write_report(experiment: Experiment) -> Summary:
    """Write `report/` of an experiment as far as its results go. Each file is replaced as a whole, the page last."""
    experiment = Experiment(experiment.root.absolute())
    config, notices = read_config(experiment)
    rows, problems = tables.read_scores(experiment)
    results = tables.rate_results(rows, tuple(config.eval) if config else ())
    summary, by_classes = tables.best_rates(results), tables.best_by_classes(rows)
    logs = read_training(experiment)
    notices += problems + (tables.missing_results(config, rows) if config else [])
    unit, noun = labels.unit(config), labels.images(next((result.dataset for result in summary), ""))
    looks = find_looks([*(config.eval if config else ()), *(result.flavor for result in results)], FLAVORS)
    drawers = (
        lambda: draw_rates(results, looks, unit, noun),
        lambda: draw_classes(rows, summary, looks, unit, noun),
        lambda: draw_training(logs, config.checkpoint_steps if config else (), unit),
    )

    experiment.report.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=experiment.root, prefix=".report.") as name:
        folder = Path(name)
        figures = _draw(folder, drawers)
        tables.write_csv(folder / "summary.csv", tables.as_frame(summary))
        tables.write_csv(folder / "by-classes.csv", tables.as_frame(by_classes, tables.BY_CLASSES_COLUMNS))
        (folder / "accuracy.txt").write_text(accuracy_table(summary, unit) + "\n", encoding="utf-8")
        jobs = read_jobs(experiment)
        content = ReportContent(experiment, config, results, summary, by_classes, logs, jobs, figures, notices)
        (folder / "index.html").write_text(render_page(content), encoding="utf-8")
        publish(folder, experiment.report, "index.html")
    return Summary(tuple(summary), experiment.report / "index.html")


def read_config(experiment: Experiment) -> tuple[TrainConfig | None, list[str]]:
    """Return an experiment's config, or None and a sentence that says why there is none."""
    try:
        return load_experiment_config(experiment.config_file).config, []
    except ConfigError as error:
        return None, [f"config.yml could not be read: {error}"]


def _draw(folder: Path, drawers: Sequence[Callable[[], Figure | None]]) -> dict[str, int]:
    """Save every figure that there is something to draw for. Returns names and the widths to show them at."""
    with figure_style():
        figures = [(name, draw()) for name, draw in zip(FIGURES, drawers, strict=True)]
        return {name: save_png(figure, folder / name) for name, figure in figures if figure is not None}
