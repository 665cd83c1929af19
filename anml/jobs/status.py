"""What became of the jobs of an experiment: one verdict for each, for the status and for the report.

It is put together from the status files that jobs write, and from what the scheduler says, if it is asked.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anml.experiment import Experiment, JobFolder
from anml.jobs.job_status import ENDED, SILENCE_SECONDS, JobStatus, State, duration, read_status, unmet_need
from anml.jobs.launch import Launch, read_plan_file
from anml.jobs.plan import REPORT, Job, Plan
from anml.jobs.schedulers import Scheduler, SchedulerState, scheduler_class

GOING: tuple[State, ...] = ("running", "requeued", "pending")
BAD: tuple[State, ...] = ("failed", "cancelled", "interrupted", "skipped")
TAIL_LINES = 20
TAIL_BYTES = 8192
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class JobOutcome:
    """State of one job, or of one task of an array. message: why it is so."""

    job: Job
    task: int | None
    state: State
    message: str
    status: JobStatus
    folder: JobFolder

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def label(self) -> str:
        """The job's name, with the task's number."""
        return self.job.label(self.task)

    @property
    def log_tail(self) -> str:
        return log_tail(self.folder.log)


def read_jobs(experiment: Experiment, scheduler: Scheduler | None = None) -> list[JobOutcome]:
    """Return the outcome of every job, in the order of the plan.

    Without a scheduler the status files alone are read, and the report job is left out: it may be the one that asks.
    Raises SubmissionError when the scheduler cannot be asked.
    """
    plan = read_plan_file(experiment)
    states = scheduler.states() if scheduler else {}
    report = read_status(experiment.job(REPORT).status)
    # The report job runs when all others have ended.
    is_this_process = report.presence == "alive" and report.pid == os.getpid()
    everything_ended = scheduler is None and report.state == "running" and is_this_process
    # An interrupted job ends the wait of the jobs behind it, unless a launcher here is to continue it.
    ends_waits = BAD if scheduler is None or scheduler.forgets_ended_jobs else ("failed", "cancelled", "skipped")
    outcomes: list[JobOutcome] = []
    for job in _planned(plan):
        if scheduler is None and job.kind == "report":
            continue
        needs = () if job.after_any else job.after
        lost_need = next((o.name for o in outcomes if o.name in needs and o.state in ends_waits), "")
        is_submitted, answers = job.name in plan.get("submitted", {}), states.get(job.name, {})
        for task in job.task_numbers:
            folder = experiment.job(job.name, task)
            # A scheduler may name an array as a whole while none of its tasks runs.
            answer = answers.get(task) or (answers.get(None) if len(answers) == 1 else None)
            status = read_status(folder.status)
            is_forgotten = scheduler is not None and scheduler.forgets_ended_jobs and answer is None and is_submitted
            has_ended = everything_ended or (is_forgotten and not status.is_writing)
            state, message = verdict(status, answer, lost_need, has_ended, is_submitted)
            outcomes.append(JobOutcome(job, task, state, message, status, folder))
    return outcomes


def _planned(plan: dict[str, Any]) -> Sequence[Job]:
    """Return the jobs in plan.json; none where it is damaged."""
    try:
        return Plan.from_json(plan["jobs"]).jobs
    except (KeyError, TypeError):
        return ()


def verdict(
    status: JobStatus, answer: SchedulerState | None, lost_need: str = "", has_ended: bool = False,
    is_submitted: bool = True,
) -> tuple[State, str]:  # fmt: skip
    """Return the state of a task and why it is so. Where job and scheduler disagree, the worse state counts.

    answer: the scheduler's answer, if it knows the task. lost_need: a job that the task needs and that did not succeed.
    has_ended: whether the task has ended for certain.
    """
    if answer is not None and answer.is_live:
        return _live(status, answer)
    if status.state in ("done", "failed", "skipped", "cancelled"):
        return status.state, status.message
    if answer is not None:
        return _ended(status, answer)
    if status.state == "interrupted":
        return status.state, status.message
    if status.state == "pending" and lost_need:
        return "skipped", unmet_need(lost_need)
    if status.has_vanished and status.state == "running":
        return "failed", "its process is gone: killed, or the machine was restarted"
    if has_ended:
        return "failed", "it ended and did not say why (out of memory, time limit or a lost node?): see its log"
    if status.state == "running" and status.silence > SILENCE_SECONDS:
        return "failed", f"it has not written its status for {duration(status.silence)} (a lost node?): see its log"
    if status.has_vanished:
        return "pending", "not started, and the launcher is gone: use retry"
    if status.state == "pending" and not (is_submitted and status.attempt):
        return "pending", "not started" if is_submitted else "never submitted"
    return status.state, status.message


def _live(status: JobStatus, answer: SchedulerState) -> tuple[State, str]:
    if answer.phase == "waiting in vain":
        return "failed", f"waits for ever: a job it needs did not succeed ({answer.words})"
    if answer.phase == "waiting":
        words = ["requeued"] * (status.attempt > 0) + [f"waiting: {answer.words}" if answer.words else "waiting"]
        return "pending", ", ".join(words)
    if status.state == "done" or (answer.phase == "ending" and status.state in ENDED):
        return status.state, status.message
    return "running", answer.words or ("" if status.state == "running" else "starting")


def _ended(status: JobStatus, answer: SchedulerState) -> tuple[State, str]:
    """Return the verdict on a job that did not write itself how it ended."""
    if answer.phase == "skipped":
        return "skipped", f"a job it needs did not succeed ({answer.words})"
    last_words = f": {status.message}" if status.message else ""
    if answer.phase == "cancelled":
        return "cancelled", f"cancelled in the scheduler{last_words}"
    if answer.phase == "completed":
        return "failed", "the scheduler calls it completed, but the job did not write that it was done"
    return "failed", f"the scheduler says {answer.words}{last_words}"


def overall_state(outcomes: Sequence[JobOutcome]) -> str:
    """Return the state of an experiment in a few words."""
    bad = sum(outcome.state in BAD for outcome in outcomes)
    going = sum(outcome.state in GOING for outcome in outcomes)
    if bad:
        return f"{bad} of {len(outcomes)} jobs did not succeed" + (f", {going} to go" if going else "")
    if going:
        return f"{going} of {len(outcomes)} jobs to go"
    return "done" if outcomes else "no jobs"


def is_report_stale(experiment: Experiment, outcomes: Sequence[JobOutcome]) -> bool:
    """Say whether a job has run, or results were written, after the report."""
    inputs = [outcome.folder.status for outcome in outcomes if outcome.job.kind != "report"]
    inputs += experiment.results.glob("*.csv")
    page = experiment.report / "index.html"
    return page.is_file() and any(file.stat().st_mtime > page.stat().st_mtime for file in inputs if file.is_file())


def count_states(outcomes: Iterable[JobOutcome]) -> str:
    """Return how many jobs are in which state, as `97 done, 3 failed`; the best first."""
    states = [outcome.state for outcome in outcomes]
    if len(states) == 1:
        return states[0]
    return ", ".join(f"{states.count(state)} {state}" for state in ("done", *GOING, *BAD) if state in states)


def gpu_hours(launch: Launch, outcomes: Sequence[JobOutcome]) -> float:
    """Return the hours that jobs have held GPUs: run time x GPUs that the profile asks for."""
    if launch.profile.device not in ("cuda", "rocm"):
        return 0.0
    gpus = scheduler_class(launch.profile.scheduler).gpus
    return sum(o.status.elapsed * gpus(launch.profile, o.job.kind) for o in outcomes) / 3600


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
