"""The page of one experiment: what was run, the accuracies, the figures, and what went wrong."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from anml.atomic import read_json
from anml.config.training import TrainConfig
from anml.experiment import Experiment
from anml.report import wording
from anml.report.grid import accuracy_grids
from anml.report.jobs import BAD, JobOutcome, count_states, overall_state
from anml.report.tables import POOLED, SWEEP

# A sweep that fails as a whole fails a hundred times for one reason.
MOST_TAILS = 5


@dataclass(frozen=True)
class Findings:
    """Everything a page is made of. config: None when config.yml cannot be read. figures: names of the files made."""

    experiment: Experiment
    config: TrainConfig | None
    points: pd.DataFrame
    summary: pd.DataFrame
    logs: Mapping[str, pd.DataFrame]
    jobs: Sequence[JobOutcome]
    figures: Sequence[str]
    notices: Sequence[str]

    @property
    def dataset(self) -> str:
        """Name of the data set, as far as it is known."""
        return self.config.dataset if self.config else next(iter(self.summary["dataset"]), "")


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


def render_page(findings: Findings) -> str:
    """Return the page as HTML."""
    experiment, config, summary = findings.experiment, findings.config, findings.summary
    bad = [job for job in findings.jobs if job.state in BAD]
    context: dict[str, Any] = {
        "experiment": experiment,
        "sentence": wording.sentence(config) if config else "",
        "unit": wording.unit(config),
        "noun": wording.images(findings.dataset),
        "checkpoint": wording.checkpoint,
        "grids": accuracy_grids(summary),
        "interval_note": _interval_note(summary),
        "has_seeds": POOLED in set(summary["train_seed"]),
        "points": _marked(findings.points, summary),
        "figures": findings.figures,
        "last_logged": _last_logged(findings.logs),
        "state": overall_state(findings.jobs),
        "failed": [job for job in bad if job.state != "skipped"],
        "skipped": [job for job in bad if job.state == "skipped"],
        "most_tails": MOST_TAILS,
        "log_address": lambda job: _log_address(experiment, job),
        "notices": findings.notices,
        "jobs": _job_lines(experiment, findings.jobs),
        "environment": read_json(experiment.environment_file) or {},
        "command": shlex.join,
        "config_text": _text(experiment.config_file),
    }
    return templates().get_template("report.html").render(context)


def _interval_note(summary: pd.DataFrame) -> str:
    """Return what the intervals are over."""
    pooled = summary[summary["train_seed"] == POOLED]
    if pooled.empty:
        return "over runs: it tells how much classes and examples matter, not how much trainings differ"
    over = set(pooled["interval_over"])
    if over == {"seeds"}:
        return "over the trained seeds' means, which the number is the mean of"
    if over == {"runs"}:
        return "over all runs of all trained seeds (it takes three seeds to tell how much trainings differ)"
    return "over the trained seeds' means where there are three or more, else over all their runs"


def _marked(points: pd.DataFrame, summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of the full table; `best` marks those that the summary chose."""
    key = ["train_seed", *SWEEP, "lr"]
    marks = points.merge(summary[key], on=key, how="left", indicator="best")
    return marks.assign(best=marks["best"] == "both").to_dict("records")  # type: ignore[return-value]


def _last_logged(logs: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Return the last line of each training's log, with its seed."""
    return [{"seed": seed, **log.iloc[-1].dropna().to_dict()} for seed, log in logs.items()]


def _job_lines(experiment: Experiment, jobs: Sequence[JobOutcome]) -> list[JobLine]:
    lines = []
    for name, group in groupby(jobs, key=lambda job: job.name):
        tasks = list(group)
        line = JobLine(
            name=name if tasks[0].task is None else f"{name} ({len(tasks)} tasks)",
            states=count_states(tasks),
            is_bad=any(task.state in BAD for task in tasks),
            run_time=wording.duration(sum(task.status.elapsed for task in tasks)),
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
