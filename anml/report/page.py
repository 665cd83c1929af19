"""The page of one experiment: what was run, the accuracies, the figures, and what went wrong."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from anml.atomic import read_json
from anml.config.facts import is_validation
from anml.config.training import TrainConfig
from anml.experiment import Experiment
from anml.jobs.job_status import duration
from anml.jobs.status import BAD, JobOutcome, count_states, overall_state
from anml.report import labels
from anml.report.curves import ClassCountAccuracy
from anml.report.figures import MOST_COLUMNS, MOST_ROWS, TrainingLog
from anml.report.statistics import grouped
from anml.report.tables import POOLED, RateResult, main_points
from anml.report.text import accuracy, accuracy_grids

# A sweep that fails as a whole fails a hundred times for one reason.
MOST_TAILS = 5


@dataclass(frozen=True)
class ReportContent:
    """Everything a page is made of.

    config: None when config.yml cannot be read. figures: the files made, and the width in pixels to show them at.
    """

    experiment: Experiment
    config: TrainConfig | None
    points: Sequence[RateResult]
    summary: Sequence[RateResult]
    milestones: Sequence[ClassCountAccuracy]
    logs: Sequence[TrainingLog]
    jobs: Sequence[JobOutcome]
    figures: Mapping[str, int]
    notices: Sequence[str]

    @property
    def dataset(self) -> str:
        """Name of the data set, as far as it is known."""
        return self.config.dataset if self.config else next((point.dataset for point in self.summary), "")


@dataclass(frozen=True)
class JobLine:
    """A line of the table of jobs: all tasks of an array together. log: address relative to the page, or empty."""

    name: str
    states: str
    is_bad: bool
    run_time: str
    attempts: int
    log: str


def templates() -> Environment:
    """Return the templates. Everything is escaped: names and logs are whatever their authors liked."""
    folder = Path(__file__).parent / "templates"
    return Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def render_page(content: ReportContent) -> str:
    """Return the page as HTML."""
    experiment, config, summary = content.experiment, content.config, content.summary
    bad = [job for job in content.jobs if job.state in BAD]
    grids = accuracy_grids(summary)
    context: dict[str, Any] = {
        "experiment": experiment,
        "sentence": labels.sentence(config) if config else "",
        "unit": labels.unit(config),
        "noun": labels.images(content.dataset),
        "checkpoint": labels.checkpoint,
        "count": labels.count,
        "accuracy": accuracy,
        "is_validation": is_validation,
        "grids": grids,
        "interval_note": interval_note(main_points(summary)),
        "has_models": len({point.model for point in summary}) > 1,
        "has_seeds": any(point.train_seed == POOLED for point in summary),
        "points": content.points,
        "best": set(summary),
        "trajectories": _trajectories(content.milestones),
        "figures": content.figures,
        "is_choice": len(grids) > MOST_ROWS or any(len(grid.steps) > MOST_COLUMNS for grid in grids),
        "last_logged": [{"name": log.name, **log.lines[-1]} for log in content.logs],
        "state": overall_state(content.jobs),
        "failed": [job for job in bad if job.state != "skipped"],
        "skipped": [job for job in bad if job.state == "skipped"],
        "most_tails": MOST_TAILS,
        "log_address": lambda job: _log_address(experiment, job),
        "notices": content.notices,
        "jobs": _job_lines(experiment, content.jobs),
        "environment": read_json(experiment.environment_file) or {},
        "command": shlex.join,
        "config_text": _text(experiment.config_file),
    }
    return templates().get_template("report.html").render(context)


def _trajectories(milestones: Sequence[ClassCountAccuracy]) -> list[list[ClassCountAccuracy]]:
    """Return the milestones of each sweep whose trajectories were scored more than once."""
    sweeps = grouped(milestones, lambda m: m.sweep)
    return [sweep for sweep in sweeps.values() if len(sweep) > 1]


def interval_note(points: Sequence[RateResult]) -> str:
    """Return what the intervals of points are over."""
    over = {point.interval_over for point in points}
    pooled = [point.seeds > 1 for point in points]
    if not any(pooled):
        return "over runs: it tells how much classes and examples matter, not how much trainings differ"
    if over == {"seeds"}:
        return "over the trained seeds' means, which the number is the mean of"
    if over == {"runs"} and all(pooled):
        return "over all runs of all trained seeds (it takes three seeds to tell how much trainings differ)"
    return "over the trained seeds' means where there are three or more, else over all their runs"


def _job_lines(experiment: Experiment, jobs: Sequence[JobOutcome]) -> list[JobLine]:
    lines = []
    for name, tasks in grouped(jobs, lambda job: job.name).items():
        line = JobLine(
            name=name if tasks[0].task is None else f"{name} ({len(tasks)} tasks)",
            states=count_states(tasks),
            is_bad=any(task.state in BAD for task in tasks),
            run_time=duration(sum(task.status.elapsed for task in tasks)),
            attempts=max(task.status.attempt for task in tasks),
            log=_log_address(experiment, tasks[0]) if len(tasks) == 1 else "",
        )
        lines.append(line)
    return sorted(lines, key=lambda line: not line.is_bad)


def _log_address(experiment: Experiment, job: JobOutcome) -> str:
    """Return the address of a job's log relative to the page, empty when there is none."""
    log = job.folder.log
    return f"../{log.relative_to(experiment.root).as_posix()}" if log.is_file() else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
