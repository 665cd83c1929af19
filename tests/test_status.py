"""The status is honest: where scheduler and job disagree, or one is silent, the less hopeful word is shown."""

import io
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from anml.cli.status import _failures, _table
from anml.config.profile import ClusterProfile
from anml.config.training import TrainConfig
from anml.experiment import Experiment
from anml.jobs.job_status import JobStatus
from anml.jobs.launch import Launch, record
from anml.jobs.plan import Job, Plan
from anml.jobs.schedulers.base import SchedulerState
from anml.jobs.status import JobReport, _combine, job_reports


def running(age: float = 0.0, host: str = "elsewhere", pid: int = 1) -> Callable[[], JobStatus]:
    """Return what makes the status when the test runs: the suite may have been collected long before."""

    def make() -> JobStatus:
        now = time.time() - age
        return JobStatus("running", attempt=1, started=now, updated=now, host=host, pid=pid)

    return make


@pytest.mark.parametrize(
    ("status", "known", "expected"),
    [
        (JobStatus(), SchedulerState("1", "PENDING", "Resources"), ("pending", "Resources")),
        (JobStatus(), SchedulerState("1", "PENDING", "DependencyNeverSatisfied"), ("failed", "waits for ever")),
        (JobStatus(), SchedulerState("1", "CANCELLED", "DependencyNeverSatisfied"), ("skipped", "needs")),
        (JobStatus("requeued", attempt=1), SchedulerState("1", "PENDING", "BeginTime"), ("pending", "requeued")),
        (running(), SchedulerState("1", "RUNNING"), ("running", "")),
        (running(), SchedulerState("1", "FAILED", "NonZeroExitCode"), ("failed", "FAILED")),
        (running(), SchedulerState("1", "TIMEOUT", "TimeLimit"), ("failed", "TIMEOUT")),
        (running(), SchedulerState("1", "CANCELLED", "None"), ("cancelled", "cancelled")),
        (running(), SchedulerState("1", "COMPLETED", "None"), ("failed", "never said")),
        (JobStatus("done"), SchedulerState("1", "COMPLETED", "None"), ("done", "")),
        (JobStatus("failed", "disk full"), None, ("failed", "disk full")),
        (running(age=3600), None, ("lost", "silent")),
        (running(host=socket.gethostname(), pid=2**22 - 3), None, ("failed", "process is gone")),
        (running(host=socket.gethostname(), pid=os.getpid()), None, ("running", "")),
    ],
)
def test_state_and_reason(
    status: JobStatus | Callable[[], JobStatus], known: SchedulerState | None, expected: tuple[str, str]
) -> None:
    status = status if isinstance(status, JobStatus) else status()
    state, reason = _combine(status, known, submitted=True)
    assert state == expected[0]
    assert expected[1] in reason


def test_job_that_was_never_submitted_says_so() -> None:
    assert _combine(JobStatus(), None, submitted=False) == ("pending", "never submitted")


def test_job_that_slurm_has_forgotten_and_that_said_nothing_has_failed_and_its_dependents_are_skipped(
    tmp_path: Path,
) -> None:
    """Slurm forgets a job some minutes after its end; what it never said, nobody will say."""
    jobs = (Job("a", "train", ()), Job("b", "evaluate", (), ("a",)), Job("r", "report", (), ("a", "b"), after_any=True))
    profile = ClusterProfile(name="x", scheduler="slurm")
    config = TrainConfig(dataset="glyphs", model="anml")
    launch = Launch(config, Experiment(tmp_path), profile, "disabled", Plan(jobs))
    record(launch, {"a": "1", "b": "2", "r": "3"})
    reports = job_reports(launch, Forgetful())  # type: ignore[arg-type]
    assert [report.state for report in reports] == ["failed", "skipped", "failed"]


def test_names_of_jobs_are_whole_in_a_narrow_table(tmp_path: Path) -> None:
    """The seed is at their end: without it, no row of the table would tell which it is about."""
    names = [f"unfrozen-oracle-step-000060-seed-{seed}" for seed in (1, 2)]
    reports = [JobReport(Job(name, "evaluate", ()), None, "pending", "x " * 40, JobStatus()) for name in names]
    written = io.StringIO()
    console = Console(width=80, file=written)
    console.print(_table(reports))
    text = written.getvalue()
    assert all(name in text for name in names)


def test_the_log_of_a_failed_job_is_shown_as_a_terminal_would(tmp_path: Path) -> None:
    """A progress bar writes its line a thousand times over, which would hide the error."""
    job = Job("a", "train", ())
    log = Experiment(tmp_path).job("a").log
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"\r{number}%" for number in range(101)) + "\n\x1b[31mout of memory\x1b[0m\n")
    config = TrainConfig(dataset="glyphs", model="anml")
    launch = Launch(config, Experiment(tmp_path), ClusterProfile(name="x", scheduler="local"), "disabled", Plan((job,)))
    _, tail = _failures(launch, [JobReport(job, None, "failed", "", JobStatus("failed"))])
    assert str(tail) == "  100%\n  out of memory"


class Forgetful:
    """A scheduler that knows no job any more."""

    def states(self) -> dict:
        return {}
