"""How the jobs of an experiment ended: what their status files say, and what follows for those that cannot say."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from anml.atomic import read_json
from anml.experiment import Experiment, JobFolder
from anml.job_status import SILENCE_SECONDS, JobStatus, State, read_status, unmet_need
from anml.plan import Job, Plan

GOING: tuple[State, ...] = ("running", "requeued", "pending")
BAD: tuple[State, ...] = ("failed", "cancelled", "interrupted", "skipped")
TAIL_LINES = 20
TAIL_BYTES = 8192
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class JobOutcome:
    """State of one job, or of one task of an array."""

    job: Job
    task: int | None
    state: State
    message: str
    status: JobStatus
    folder: JobFolder

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.name

    @property
    def label(self) -> str:
        """The job's name, with the task's number."""
        return self.job.label(self.task)

    @property
    def log_tail(self) -> str:
        """The last lines of its log."""
        return log_tail(self.folder.log)


def read_jobs(experiment: Experiment) -> list[JobOutcome]:
    """Return the outcome of every job but the report itself, in the order of the plan."""
    report = read_status(experiment.job("report").status)
    # The report job runs when all others have ended, so what still says "running" then was killed.
    everything_ended = report.state == "running" and report.pid == os.getpid()
    outcomes: list[JobOutcome] = []
    for job in _planned(experiment):
        if job.kind != "report":
            needs = () if job.after_any else job.after
            broken = next((o.name for o in outcomes if o.name in needs and o.state in BAD), None)
            outcomes += [_outcome(experiment, job, task, broken, everything_ended) for task in job.task_numbers]
    return outcomes


def _outcome(
    experiment: Experiment, job: Job, task: int | None, broken: str | None, everything_ended: bool
) -> JobOutcome:
    folder = experiment.job(job.name, task)
    status = read_status(folder.status)
    state, message = status.state, status.message
    is_silent = status.silence > SILENCE_SECONDS
    if state == "running" and (everything_ended or is_silent or status.has_vanished):
        state, message = "failed", "ended before it could say why (out of memory, time limit or a lost node?)"
    elif state == "pending" and broken:
        # A scheduler drops such jobs without a word in their status files.
        state, message = "skipped", unmet_need(broken)
    return JobOutcome(job, task, state, message, status, folder)


def _planned(experiment: Experiment) -> list[Job]:
    try:
        return list(Plan.from_json((read_json(experiment.plan_file) or {})["jobs"]).jobs)
    except (KeyError, TypeError):
        return []


def overall_state(outcomes: Sequence[JobOutcome]) -> str:
    """Return the state of an experiment in a few words."""
    bad = sum(outcome.state in BAD for outcome in outcomes)
    going = sum(outcome.state in GOING for outcome in outcomes)
    if bad:
        return f"{bad} of {len(outcomes)} jobs did not succeed" + (f", {going} to go" if going else "")
    if going:
        return f"{going} of {len(outcomes)} jobs to go"
    return "done" if outcomes else "no jobs"


def count_states(outcomes: Iterable[JobOutcome]) -> str:
    """Return how many jobs are in which state, as `97 done, 3 failed`; the best first."""
    states = [outcome.state for outcome in outcomes]
    order = [state for state in ("done", *GOING, *BAD) if state in states]
    if len(states) == 1:
        return states[0]
    return ", ".join(f"{states.count(state)} {state}" for state in order)


def log_tail(path: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log, without the terminal codes and overwritten lines of progress bars."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    shown = [_TERMINAL_CODES.sub("", line.rstrip("\r")).rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return "\n".join([line for line in shown if line][-lines:])
