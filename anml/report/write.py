"""The report of one experiment: what was run, the accuracies, the figures, and what went wrong."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from anml.atomic import read_json
from anml.config.facts import is_validation
from anml.config.load import load_experiment_config
from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.job_status import duration
from anml.jobs.launch import read_plan_file
from anml.jobs.status import BAD, JobOutcome, count_states, overall_state, read_jobs
from anml.report import labels, tables
from anml.report.chosen import ChosenResult, chosen_frame, chosen_results, chosen_table
from anml.report.figures import (
    MOST_COLUMNS,
    MOST_ROWS,
    TrainingLog,
    draw_classes,
    draw_order,
    draw_rates,
    draw_training,
    read_training,
)
from anml.report.forgetting import Forgetting, by_class_frame, read_forgetting, scored_throughout
from anml.report.measure_figures import draw_confusions, draw_forgetting, draw_maps, shown_confusions
from anml.report.measures import (
    MeasuredRows,
    Runs,
    cka_frame,
    cka_matrices,
    in_words,
    measured_frame,
    read_measured,
    worst_confusions,
)
from anml.report.page import read_text, render, replacing
from anml.report.statistics import grouped
from anml.report.style import FLAVORS, figure_style, find_looks, save_png
from anml.report.tables import RateResult
from anml.report.text import accuracy_grids, accuracy_table, interval_note, last_checkpoint
from anml.results import CONFUSIONS, REPRESENTATION, ResultRow

FIGURES = (
    "accuracy-vs-lr", "accuracy-vs-classes", "accuracy-by-order", "forgetting", "confusions", "representation",
    "representation-tsne", "training",
)  # fmt: skip
# A sweep that fails as a whole fails a hundred times for one reason.
MOST_TAILS = 5


@dataclass(frozen=True)
class Report:
    """An experiment's results. config: None when config.yml cannot be read; notices: what could not be read."""

    experiment: Experiment
    config: TrainConfig | None
    rows: list[ResultRow]
    notices: list[str]

    @property
    def page(self) -> Path:
        return self.experiment.report / "index.html"

    @property
    def flavors(self) -> tuple[str, ...]:
        """Flavors of the config, in its order."""
        return tuple(self.config.eval) if self.config else ()

    @cached_property
    def results(self) -> list[RateResult]:
        """The result of every learning rate."""
        return tables.rate_results(self.rows, self.flavors)

    @cached_property
    def summary(self) -> list[RateResult]:
        """The best learning rate of every sweep."""
        return tables.best_rates(self.results)

    @cached_property
    def forgetting(self) -> list[Forgetting]:
        """What flavors that learn in sequence forget, at their best rates."""
        return read_forgetting(self.experiment, scored_throughout(self.summary, self.rows))

    @cached_property
    def representations(self) -> list[MeasuredRows]:
        return read_measured(self.experiment, REPRESENTATION, self.summary)

    @cached_property
    def confusions(self) -> list[MeasuredRows]:
        """Which classes were taken for which, at the best rates."""
        return read_measured(self.experiment, CONFUSIONS, self.summary)

    def measures(self, result: RateResult) -> dict[str, Runs]:
        """Return what there is besides the accuracy of a result, run by run."""
        found: dict[str, Runs] = {}
        for item in (*self.forgetting, *self.representations, *self.confusions):
            if (item.result.sweep, item.result.lr) == (result.sweep, result.lr):
                found |= item.runs
        return found

    @property
    def choose_checkpoints(self) -> list[str]:
        """Flavors that choose a checkpoint, which need not be the last."""
        flavors = self.config.eval.items() if self.config else ()
        return [name for name, flavor in flavors if flavor.choose and flavor.choose.takes_checkpoint]

    @property
    def unit(self) -> str:
        return labels.unit(self.config)

    @property
    def noun(self) -> str:
        """What examples are called."""
        return labels.images(self.config.dataset if self.config else self.rows[0].dataset if self.rows else "")

    def best_accuracies(self) -> dict[str, float | str]:
        """Return accuracy and learning rate of every flavor at the last checkpoint, for the largest setting.

        On held-out background classes (only where nothing else was evaluated) it is called validation_acc. Of several
        models, the numbers are those of the best one at the flavor, and its name is there.
        """
        best = last_checkpoint(self.summary, self.choose_checkpoints)
        kind = {True: "validation_acc", False: "test_acc"}
        values: dict[str, float | str] = {}
        values |= {f"{kind[is_validation(result.dataset)]}/{result.flavor}": result.test_acc for result in best}
        values |= {f"best_lr/{result.flavor}": result.lr for result in best if result.lr is not None}
        if len({result.model for result in self.summary}) > 1:
            values |= {f"best_model/{result.flavor}": result.model for result in best}
        return values


def read_report(experiment: Experiment) -> Report:
    notices = []
    try:
        config = load_experiment_config(experiment.config_file).config
    except ConfigError as error:
        config, notices = None, [f"config.yml could not be read: {error}"]
    rows, problems = tables.read_scores(experiment)
    return Report(experiment, config, rows, notices + problems)


def write_report(experiment: Experiment) -> Report:
    """Write `report/` of an experiment as far as its results go. Each file is replaced as a whole, the page last."""
    report = read_report(Experiment(experiment.root.absolute()))
    logs, by_classes = (
        read_training(experiment, report.config.trainings if report.config else ()),
        tables.best_by_classes(report.rows),
    )
    with replacing(report.experiment.report, report.page.name) as folder:
        figures = _draw(folder, report, logs)
        frames = {"summary": tables.as_frame(report.summary)}
        frames["by-classes"] = tables.as_frame(by_classes, tables.BY_CLASSES_COLUMNS)
        if report.forgetting:
            scorings = [item.scorings for item in report.forgetting]
            frames["forgetting"] = measured_frame(report.forgetting, "lr").assign(scorings=scorings)
            by_class_frame(report.forgetting).to_parquet(folder / "forgetting.parquet", index=False)
        if report.representations:
            frames["representation"] = measured_frame(report.representations)
            frames["cka"] = cka_frame(report.representations)
        if report.confusions:
            frames["confusions"] = measured_frame(report.confusions, "lr")
        if chosen := chosen_results(report.config, by_classes):
            frames["chosen"] = chosen_frame(chosen)
        for name, frame in frames.items():
            tables.write_csv(folder / f"{name}.csv", tables.with_varied(frame, report.config))
        # Beside the report: a results/*.parquet holds the classes of the CSV of its name.
        tables.tidy(report.rows, report.config).to_parquet(folder / "results.parquet", index=False)
        lines = [*chosen_table(chosen, report.unit), accuracy_table(report.summary, report.unit), ""]
        (folder / "accuracy.txt").write_text("\n".join(lines), encoding="utf-8")
        page = _render(report, logs, by_classes, chosen, figures)
        (folder / report.page.name).write_text(page, encoding="utf-8")
    return report


def draw_figure(report: Report, name: str, logs: Sequence[TrainingLog]) -> Figure | None:
    """Draw one of FIGURES; None where there is nothing to draw. logs: of the trainings."""
    results, unit, noun = report.results, report.unit, report.noun
    looks = find_looks([*report.flavors, *(result.flavor for result in results)], FLAVORS)
    with figure_style():
        if name == "accuracy-vs-lr":
            return draw_rates(results, looks, unit, noun)
        if name == "accuracy-vs-classes":
            return draw_classes(report.rows, report.summary, looks, unit, noun)
        if name == "accuracy-by-order":
            return draw_order({item.result: item.by_order for item in report.forgetting}, looks, unit, noun)
        if name == "forgetting":
            return draw_forgetting(report.forgetting)
        if name == "confusions":
            return draw_confusions(report.confusions)
        if name.startswith("representation"):
            return draw_maps(report.representations, unit, name.partition("-")[2] or "map")
        return draw_training(logs, report.config.checkpoint_steps if report.config else (), unit)


def _draw(folder: Path, report: Report, logs: Sequence[TrainingLog]) -> dict[str, int]:
    """Save every figure that there is something to draw for. Returns names and the widths to show them at."""
    widths = {}
    for name in FIGURES:
        if figure := draw_figure(report, name, logs):
            with figure_style():
                widths[f"{name}.png"] = save_png(figure, folder / f"{name}.png")
    return widths


def _render(
    report: Report, logs: Sequence[TrainingLog], by_classes: Sequence[RateResult], chosen: Sequence[ChosenResult],
    figures: dict[str, int],
) -> str:  # fmt: skip
    """Return the page. figures: names, and the widths in pixels to show them at."""
    experiment, config, jobs = report.experiment, report.config, read_jobs(report.experiment)
    bad = [job for job in jobs if job.state in BAD]
    # The report's own job ends after it has written this.
    ended = [job.status.ended for job in jobs if job.job.kind != "report" and job.status.ended]
    grids = accuracy_grids(report.summary)
    curves = grouped(by_classes, lambda result: replace(result.sweep, classes=0))
    return render(
        "report.html",
        snapshots=read_plan_file(experiment).get("snapshots", {}),
        report=report,
        ended=datetime.fromtimestamp(max(ended), UTC) if ended else None,
        notices=report.notices + (tables.missing_results(config, report.rows) if config else []),
        is_validation=is_validation,
        grids=grids,
        chosen=chosen,
        has_biased=any(item.biased for item in chosen),
        stopped=tables.read_stopped(experiment),
        reused=tables.read_reused(experiment),
        codes=Counter(row.code for row in tables.finals(report.rows)),
        interval_note=interval_note(tables.main_results(report.summary)),
        has_models=len({result.model for result in report.summary}) > 1,
        has_held_out=any(is_validation(result.dataset) for result in report.summary),
        has_seeds=any(result.train_seed == tables.POOLED for result in report.summary),
        confusions=[(item, worst_confusions(experiment, item.rows)) for item in shown_confusions(report.confusions)],
        cka=cka_matrices(cka_frame(report.representations)),
        in_words=in_words,
        columns=tables.PAGE_COLUMNS,
        best=set(report.summary),
        trajectories=[curve for curve in curves.values() if len(curve) > 1],
        figures=figures,
        is_choice=len(grids) > MOST_ROWS or any(len(grid.steps) > MOST_COLUMNS for grid in grids),
        last_logged=[{"name": log.name, **log.lines[-1]} for log in logs],
        state=overall_state(jobs),
        failed=[job for job in bad if job.state != "skipped"],
        skipped=[job for job in bad if job.state == "skipped"],
        most_tails=MOST_TAILS,
        log_address=lambda job: _log_address(experiment, job),
        jobs=_job_lines(experiment, jobs),
        environment=read_json(experiment.environment_file),
        command=shlex.join,
        config_text=read_text(experiment.config_file),
    )


def _job_lines(experiment: Experiment, jobs: Sequence[JobOutcome]) -> list[dict[str, Any]]:
    """Return the lines of the table of jobs, all tasks of an array together, those that did not succeed first."""
    lines = [
        {
            "job": name,
            "name": name if tasks[0].task is None else f"{name} ({len(tasks)} tasks)",
            "states": count_states(tasks),
            "is_bad": any(task.state in BAD for task in tasks),
            "run_time": duration(sum(task.status.elapsed for task in tasks)),
            "attempts": max(task.status.attempt for task in tasks),
            "log": _log_address(experiment, tasks[0]) if len(tasks) == 1 else "",
        }
        for name, tasks in grouped(jobs, lambda job: job.name).items()
    ]
    return sorted(lines, key=lambda line: not line["is_bad"])


def _log_address(experiment: Experiment, job: JobOutcome) -> str:
    """Return the address of a job's log relative to the page, empty when there is none."""
    log = job.folder.log
    return f"../{log.relative_to(experiment.root).as_posix()}" if log.is_file() else ""
