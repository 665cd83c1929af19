"""Pages to browse experiments: `experiments/index.html`, and one for each project.

Report jobs of several experiments may write them at the same time. Each job writes a page, renders it again, and
writes again until nothing has changed in between: the last writer has then seen every report.
"""

import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from anml.atomic import read_json, write_text
from anml.config.facts import is_validation
from anml.config.yaml import read_yaml
from anml.errors import ConfigError
from anml.experiment import Experiment, experiments_folder
from anml.jobs.status import is_report_stale, overall_state, read_jobs
from anml.report.page import read_text, render
from anml.report.tables import RateResult, read_summary
from anml.report.text import last_checkpoint

PAGE = "index.html"
# Every index has it, also those of earlier versions.
_INDEX_MARK = '<body class="index">'
COMPARISON = "comparison.html"
# On a busy cluster some job is always writing; the last look of that job finds what this one missed.
MOST_ATTEMPTS = 10


def write_indexes(experiment: Experiment, in_force: Path | None = None) -> list[str]:
    """Write the index of an experiment's project and the index of all projects, in the folder of experiments.

    in_force: the folder of experiments that a command was given. Returns a sentence for each page that is not written:
    above a copy of an experiment, or in place of a page that is not an index.
    """
    experiments = experiments_folder(experiment, in_force)
    if experiments is None:
        return [f"{experiment.root}: does not lie in the folder of experiments, so the pages above it are not written"
                "; --experiments-dir names another folder"]  # fmt: skip
    project = experiments / experiment.project
    return [
        *_write_until_settled(project / PAGE, lambda: _render([project], is_project=True)),
        *_write_until_settled(experiments / PAGE, lambda: _render(_projects(experiments), is_project=False)),
    ]


def _write_until_settled(path: Path, page: Callable[[], str]) -> list[str]:
    """Write a page, unless something else has its name. Returns a sentence then."""
    if path.exists() and _INDEX_MARK not in read_text(path):
        return [f"{path}: is not a page of ours, so it is left alone; rename it to get an index of experiments"]
    written = ""
    for _ in range(MOST_ATTEMPTS):
        text = page()
        if text == written:
            break
        write_text(path, text)
        written = text
    return []


def _projects(experiments: Path) -> list[Path]:
    return sorted(path for path in experiments.iterdir() if path.is_dir() and not path.name.startswith("."))


def _render(projects: list[Path], is_project: bool) -> str:
    """Return an index of projects as HTML. is_project: the page lies inside the only one, else beside them."""
    tables = [table for table in map(_table, projects) if table["entries"]]
    return render(
        "index.html",
        title=projects[0].name if is_project else "Experiments",
        is_project=is_project,
        is_validation=is_validation,
        comparison=COMPARISON,
        quote=shlex.quote,
        tables=sorted(tables, key=lambda table: table["entries"][0]["launched"], reverse=True),
    )


def _table(project: Path) -> dict[str, Any]:
    """Return a project's experiments, the newest first, and what is known of their comparison."""
    groups = [path for path in sorted(project.iterdir()) if (path / "config.yml").is_file()]
    entries = sorted((describe(Experiment(path)) for path in groups), key=lambda entry: entry["launched"], reverse=True)
    written = _modified(project / COMPARISON)
    return {
        "project": project.name,
        "entries": entries,
        "flavors": list(dict.fromkeys(flavor for entry in entries for flavor in entry["best"])),
        "compared": _minute(datetime.fromtimestamp(written, UTC)) if written else "",
        "can_compare": sum(bool(entry["best"]) for entry in entries) > 1,
        "is_stale": any(entry["reported"] > written for entry in entries),
    }


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0


def _minute(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def describe(experiment: Experiment) -> dict[str, Any]:
    """Return what an index and `anml ls` say of an experiment.

    reported: when its report was written, 0 where there is none. best: test accuracy by flavor at the last checkpoint,
    for the largest setting, of the best of its models. is_stale: its jobs have gone on since the report.
    """
    config, summary = experiment.config_file, experiment.report / "summary.csv"
    model, dataset = _model_and_data(config, _modified(config))
    try:
        launched = datetime.fromisoformat(read_json(experiment.environment_file).get("launched", ""))
    except (ValueError, TypeError):
        launched = datetime.fromtimestamp(_modified(config), UTC)
    jobs = read_jobs(experiment)
    return {
        "group": experiment.group,
        "launched": _minute(launched),
        "model": model,
        "dataset": dataset,
        "state": overall_state(jobs),
        "is_stale": is_report_stale(experiment, jobs),
        "reported": _modified(experiment.report / PAGE),
        "best": _best(summary, _modified(summary)),
    }


# A report job renders the indexes several times, and a project may have hundreds of experiments: what has not changed
# since is not read again.
@cache
def _model_and_data(config: Path, modified: float) -> tuple[str, str]:
    """Return the names of model and data in a config as it is written: an old one may not pass today's checks."""
    try:
        data = read_yaml(config).data
    except ConfigError:
        data = None
    data = data if isinstance(data, dict) else {}
    return str(data.get("model_name") or data.get("model") or ""), str(data.get("dataset") or "")


@cache
def _best(summary: Path, modified: float) -> dict[str, RateResult]:
    try:
        return {result.flavor: result for result in last_checkpoint(read_summary(summary))}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
