"""The page of one experiment: what was run, the accuracies, the figures, and what went wrong."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from anml.atomic import read_json
from anml.config.facts import is_validation
from anml.config.training import TrainConfig
from anml.experiment import Experiment
from anml.jobs.job_status import duration
from anml.jobs.status import BAD, JobOutcome, count_states, overall_state
from anml.report import labels
from anml.report.figures import MOST_COLUMNS, MOST_ROWS, TrainingLog
from anml.report.statistics import grouped
from anml.report.tables import PAGE_COLUMNS, POOLED, RateResult, main_results
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
    results: Sequence[RateResult]
    summary: Sequence[RateResult]
    by_classes: Sequence[RateResult]
    logs: Sequence[TrainingLog]
    jobs: Sequence[JobOutcome]
    figures: Mapping[str, int]
    notices: Sequence[str]


def templates() -> Environment:
    """Return the templates. They escape everything: names and logs may hold any text."""
    folder = Path(__file__).parent / "templates"
    return Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def render_page(content: ReportContent) -> str:
    experiment, config, summary = content.experiment, content.config, content.summary
    dataset = config.dataset if config else next((result.dataset for result in summary), "")
    bad = [job for job in content.jobs if job.state in BAD]
    grids = accuracy_grids(summary)
    context: dict[str, Any] = {
        "experiment": experiment,
        "sentence": labels.sentence(config) if config else "",
        "unit": labels.unit(config),
        "noun": labels.images(dataset),
        "checkpoint": labels.checkpoint,
        "count": labels.count,
        "accuracy": accuracy,
        "is_validation": is_validation,
        "grids": grids,
        "interval_note": interval_note(main_results(summary)),
        "has_models": len({result.model for result in summary}) > 1,
        "has_seeds": any(result.train_seed == POOLED for result in summary),
        "results": content.results,
        "columns": PAGE_COLUMNS,
        "best": set(summary),
        "trajectories": _scored_on_the_way(content.by_classes),
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


def _scored_on_the_way(by_classes: Sequence[RateResult]) -> list[list[RateResult]]:
    """Return the results after fewer classes, of each sweep whose trajectories were scored more than once."""
    names = ("flavor", "model", "dataset", "checkpoint_step", "train_examples", "test_examples")
    sweeps = grouped(by_classes, lambda result: tuple(getattr(result, name) for name in names))
    return [sweep for sweep in sweeps.values() if len(sweep) > 1]


def interval_note(results: Sequence[RateResult]) -> str:
    """Return what the intervals of results are over."""
    over = {result.interval_over for result in results}
    pooled = [result.seeds > 1 for result in results]
    if not any(pooled):
        return "over runs: it tells how much classes and examples matter, not how much trainings differ"
    if over == {"seeds"}:
        return "over the trained seeds' means, which the number is the mean of"
    if over == {"runs"} and all(pooled):
        return "over all runs of all trained seeds (it takes three seeds to tell how much trainings differ)"
    return "over the trained seeds' means where there are three or more, else over all their runs"


def _job_lines(experiment: Experiment, jobs: Sequence[JobOutcome]) -> list[dict[str, Any]]:
    """Return the lines of the table of jobs, all tasks of an array together, those that did not succeed first."""
    lines = [
        {
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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def publish(new: Path, output: Path, page: str) -> None:
    """Move all files of the folder `new` into `output`, the page last, so that a reader never meets half a report.

    Figures that the earlier page shows and the new one does not are removed.
    """
    earlier = set(re.findall(r'<img src="([^"/]+\.png)"', _text(output / page)))
    files = sorted(new.iterdir(), key=lambda path: path.name == page)
    for path in files:
        os.replace(path, output / path.name)
    for address in earlier - {quote(path.name) for path in files}:
        (output / Path(unquote(address)).name).unlink(missing_ok=True)
