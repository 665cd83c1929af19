"""Pages to browse experiments: `experiments/index.html`, and one for each project.

Report jobs of several experiments may write them at once. Each writes what it finds, looks again, and writes again
until nothing has changed in between: whoever writes last has then seen every report that was there before it.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anml.atomic import read_json, write_text
from anml.config.facts import is_validation
from anml.config.yaml import read_yaml
from anml.errors import ConfigError
from anml.experiment import Experiment, experiments_folder
from anml.jobs.status import overall_state, read_jobs
from anml.report.labels import classes
from anml.report.page import templates
from anml.report.tables import RateResult, read_summary
from anml.report.text import accuracy, last_checkpoint

PAGE = "index.html"
# Every index of ours has it, also those of earlier versions.
_OURS = '<body class="index">'
COMPARISON = "comparison.html"
# Somebody is always writing on a busy cluster; their own last look will find what this one missed.
MOST_ATTEMPTS = 10


@dataclass(frozen=True)
class IndexEntry:
    """One experiment in an index.

    best: test accuracy by flavor at the last checkpoint, for the largest setting, of the best of its models.
    """

    project: str
    group: str
    launched: str
    model: str
    dataset: str
    state: str
    has_report: bool
    best: dict[str, RateResult]


@dataclass(frozen=True)
class ProjectTable:
    """The experiments of a project. compared: when their comparison was written, empty where there is none.

    can_compare: at least two have results. is_stale: a report is newer than the comparison.
    """

    project: str
    entries: list[IndexEntry]
    flavors: list[str]
    compared: str
    can_compare: bool
    is_stale: bool


def write_indexes(experiment: Experiment, in_force: Path | None = None) -> list[str]:
    """Write the index of an experiment's project and the index of all projects, in the folder of experiments.

    in_force: the folder of experiments that a command was given. Returns a sentence for each page that is not written:
    above a copy of an experiment, or in place of a page that is not ours.
    """
    experiments = experiments_folder(experiment, in_force)
    if experiments is None:
        return [f"{experiment.root}: does not lie in the folder of experiments, so the pages above it are not written"
                "; --experiments-dir names another folder"]  # fmt: skip
    project = experiments / experiment.project
    return [
        *_write_until_settled(project / PAGE, lambda: _render([project], depth=1)),
        *_write_until_settled(experiments / PAGE, lambda: _render(_projects(experiments), depth=0)),
    ]


def _write_until_settled(path: Path, render: Callable[[], str]) -> list[str]:
    """Write a page, unless something else has its name. Returns a sentence then."""
    if path.exists() and not (path.is_file() and _OURS in path.read_text(encoding="utf-8", errors="replace")):
        return [f"{path}: is not a page of ours, so it is left alone; rename it to get an index of experiments"]
    page = render()
    for _ in range(MOST_ATTEMPTS):
        write_text(path, page)
        again = render()
        if again == page:
            break
        page = again
    return []


def _projects(experiments: Path) -> list[Path]:
    return sorted(path for path in experiments.iterdir() if path.is_dir() and not path.name.startswith("."))


def _render(projects: list[Path], depth: int) -> str:
    """Return an index of projects as HTML; depth 0: the page lies beside them, 1: inside the only one."""
    tables = [_table(project) for project in projects]
    tables = sorted((table for table in tables if table.entries), key=lambda t: t.entries[0].launched, reverse=True)
    context: dict[str, Any] = {
        "title": projects[0].name if depth else "Experiments",
        "is_project": depth == 1,
        "accuracy": accuracy,
        "classes": classes,
        "is_validation": is_validation,
        "comparison": COMPARISON,
        "quote": shlex.quote,
        "tables": tables,
    }
    return templates().get_template("index.html").render(context)


def _table(project: Path) -> ProjectTable:
    entries = _entries(project)
    written = _modified(project / COMPARISON)
    reported = max((_modified(project / entry.group / "report" / PAGE) for entry in entries), default=0.0)
    return ProjectTable(
        project=project.name,
        entries=entries,
        flavors=_flavors(entries),
        compared=_minute(datetime.fromtimestamp(written, UTC)) if written else "",
        can_compare=sum(bool(entry.best) for entry in entries) > 1,
        is_stale=reported > written,
    )


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _minute(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _entries(project: Path) -> list[IndexEntry]:
    """Return a project's experiments, the newest first."""
    groups = [path for path in sorted(project.iterdir()) if (path / "config.yml").is_file()]
    return sorted((_entry(Experiment(path)) for path in groups), key=lambda entry: entry.launched, reverse=True)


def _flavors(entries: list[IndexEntry]) -> list[str]:
    """Return the flavors of all entries, in the order in which they first come."""
    return list(dict.fromkeys(flavor for entry in entries for flavor in entry.best))


def _entry(experiment: Experiment) -> IndexEntry:
    config = _raw_config(experiment)
    return IndexEntry(
        project=experiment.project,
        group=experiment.group,
        launched=_launched(experiment),
        model=str(config.get("model_name") or config.get("model") or ""),
        dataset=str(config.get("dataset") or ""),
        state=overall_state(read_jobs(experiment)),
        has_report=(experiment.report / PAGE).is_file(),
        best={point.flavor: point for point in _best(experiment)},
    )


def _raw_config(experiment: Experiment) -> dict[str, Any]:
    """Return the config as it is written: an experiment of an older version may no longer pass today's checks."""
    try:
        data = read_yaml(experiment.config_file).data
    except ConfigError:
        return {}
    return data if isinstance(data, dict) else {}


def _launched(experiment: Experiment) -> str:
    """Return when an experiment was launched, as `2025-11-23 14:08`, in UTC."""
    written = str((read_json(experiment.environment_file) or {}).get("launched", ""))
    try:
        time = datetime.fromisoformat(written)
    except ValueError:
        time = datetime.fromtimestamp(experiment.config_file.stat().st_mtime, UTC)
    return _minute(time)


def _best(experiment: Experiment) -> list[RateResult]:
    try:
        return last_checkpoint(read_summary(experiment.report / "summary.csv"))
    except (OSError, ValueError, TypeError, KeyError):
        return []
