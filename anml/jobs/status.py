"""How the jobs of an experiment ended: what their status files say, and what follows for those that cannot say."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from anml.atomic import read_json
from anml.config.profile import ClusterProfile
from anml.experiment import Experiment, JobFolder
from anml.jobs.job_status import SILENCE_SECONDS, JobStatus, State, read_status, unmet_need
from anml.jobs.launch import Launch, read_plan_file
from anml.jobs.plan import Job, Plan
from anml.jobs.schedulers.base import Scheduler, SchedulerState, States
from anml.process import this_process

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
    everything_ended = report.state == "running" and report.process == this_process()
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


# What became of an experiment's jobs, put together from the scheduler's word and the jobs' own.


@dataclass(frozen=True)
class JobReport:
    """One line of the status: a job, or one task of an array."""

    job: Job
    task: int | None
    state: str
    reason: str
    status: JobStatus

    @property
    def label(self) -> str:
        """The job's name, with its task."""
        return self.job.label(self.task)

    @property
    def has_failed(self) -> bool:
        """Say whether the job ended without doing its work."""
        return self.state in ("failed", "skipped", "cancelled", "lost")


def job_reports(launch: Launch, scheduler: Scheduler) -> list[JobReport]:
    """Return the state of every job and task. Raises SubmissionError when the scheduler cannot be asked."""
    states = scheduler.states()
    submitted = read_plan_file(launch.experiment).get("submitted", {})
    forgets = launch.profile.scheduler == "slurm"
    reports: list[JobReport] = []
    for job in launch.plan.jobs:
        # Dependencies come first in a plan, so what became of them is known.
        failed = {r.job.name for r in reports if r.has_failed}
        needs = next((name for name in job.after if not job.after_any and name in failed), "")
        for task in job.task_numbers:
            status = read_status(launch.experiment.job(job.name, task).status)
            known = _scheduler_state(states, job, task)
            state, reason = _combine(status, known, job.name in submitted)
            if forgets and known is None and job.name in submitted and state in ("pending", "running", "lost"):
                state, reason = _forgotten(needs)
            reports.append(JobReport(job, task, state, reason, status))
    return reports


def _forgotten(needs: str) -> tuple[str, str]:
    """Word the end of a job that said nothing and that Slurm, some minutes after its end, does not know any more."""
    if needs:
        return "skipped", unmet_need(needs)
    return "failed", "ended without a word, and the scheduler has forgotten it: see its log"


def gpu_hours(launch: Launch, reports: Sequence[JobReport]) -> float:
    """Return the hours that jobs have held GPUs: run time x GPUs that the profile asks for (`gres: gpu:2`)."""
    return sum(report.status.elapsed * _gpus(launch.profile, report.job) for report in reports) / 3600


def _gpus(profile: ClusterProfile, job: Job) -> int:
    gres = str(profile.sbatch.for_kind(job.kind).get("gres", ""))
    if profile.device not in ("cuda", "rocm") or not gres.startswith("gpu"):
        return 0
    count = gres.rsplit(":", 1)[-1]
    return int(count) if count.isdigit() else 1


def _scheduler_state(states: States, job: Job, task: int | None) -> SchedulerState | None:
    tasks = states.get(job.name, {})
    return tasks.get(task) or (next(iter(tasks.values())) if len(tasks) == 1 and None in tasks else None)


def _combine(status: JobStatus, known: SchedulerState | None, submitted: bool) -> tuple[str, str]:
    """Return the state to show and why. Where the two disagree, the less hopeful one is shown."""
    if known is not None and known.is_live:
        return _live(status, known)
    if status.state in ("done", "failed", "skipped", "cancelled"):
        return status.state, status.message
    if known is not None:
        return _ended(status, known)
    return _unknown(status, submitted)


def _live(status: JobStatus, known: SchedulerState) -> tuple[str, str]:
    if known.state == "PENDING":
        if known.reason == "DependencyNeverSatisfied":
            return "failed", "waits for ever: a job it needs did not succeed (DependencyNeverSatisfied)"
        again = "requeued, " if status.attempt else ""
        return "pending", f"{again}waiting: {known.reason}"
    if known.state == "RUNNING" and status.state in ("running", "pending", "requeued", "interrupted"):
        return "running", "" if status.state == "running" else "starting"
    return status.state if status.state == "done" else known.state.lower(), known.reason


def _ended(status: JobStatus, known: SchedulerState) -> tuple[str, str]:
    """Word the end of a job that did not say itself how it ended."""
    if known.reason == "DependencyNeverSatisfied":
        return "skipped", "a job it needs did not succeed (DependencyNeverSatisfied)"
    if known.state == "CANCELLED":
        return "cancelled", "cancelled in the scheduler"
    if known.state == "COMPLETED":
        return "failed", "the scheduler calls it completed, but the job never said it was done"
    return (
        "failed",
        f"the scheduler says {known.state} ({known.reason}){': ' + status.message if status.message else ''}",
    )


def _unknown(status: JobStatus, submitted: bool) -> tuple[str, str]:
    """Word the state of a job the scheduler does not know."""
    if status.state == "running":
        if status.has_vanished:
            return "failed", "its process is gone: killed, or the machine was restarted"
        if status.silence > SILENCE_SECONDS:
            minutes = f"{status.silence / 60:.0f} minutes"
            return "lost", f"the scheduler does not know it, and it has been silent for {minutes}"
        return "running", ""
    if status.state == "interrupted":
        return "interrupted", status.message
    if status.has_vanished:
        return "pending", "not started, and the launcher is gone: use retry"
    if submitted and status.attempt == 0:
        return "pending", "not started"
    return "pending", "never submitted" if not submitted else status.message
