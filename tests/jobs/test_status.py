"""One verdict on each job: where scheduler and job disagree, or one is silent, the worse state counts."""

import io
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from anml.atomic import write_text
from anml.cli.status import _failures, _page, _table
from anml.config.profile import ClusterProfile, Device, JobOptions
from anml.config.training import TrainConfig
from anml.experiment import Experiment
from anml.jobs.job_status import JobStatus, write_status
from anml.jobs.launch import Launch, record
from anml.jobs.plan import Job, Plan
from anml.jobs.schedulers import SchedulerState
from anml.jobs.schedulers.slurm import SlurmScheduler
from anml.jobs.status import JobOutcome, gpu_hours, read_jobs, verdict


def running(age: float = 0.0, host: str = "elsewhere", pid: int = 1) -> Callable[[], JobStatus]:
    """Return what makes the status when the test runs: the suite may have been collected long before."""

    def make() -> JobStatus:
        now = time.time() - age
        return JobStatus("running", attempt=1, started=now, updated=now, host=host, pid=pid)

    return make


@pytest.mark.parametrize(
    ("status", "known", "expected"),
    [
        (JobStatus(), SchedulerState("1", "waiting", "Resources"), ("pending", "Resources")),
        (JobStatus(), SchedulerState("1", "waiting in vain", "NeverSatisfied"), ("failed", "NeverSatisfied")),
        (JobStatus(), SchedulerState("1", "skipped", "NeverSatisfied"), ("skipped", "NeverSatisfied")),
        (JobStatus("requeued", attempt=1), SchedulerState("1", "waiting", "BeginTime"), ("pending", "requeued")),
        (running(), SchedulerState("1", "running"), ("running", "")),
        (running(), SchedulerState("1", "running", "suspended"), ("running", "suspended")),
        (JobStatus(), SchedulerState("1", "running"), ("running", "starting")),
        (running(), SchedulerState("1", "failed", "TIMEOUT (TimeLimit)"), ("failed", "TIMEOUT (TimeLimit)")),
        (running(), SchedulerState("1", "cancelled"), ("cancelled", "cancelled")),
        (running(), SchedulerState("1", "completed"), ("failed", "completed")),
        (JobStatus("done"), SchedulerState("1", "completed"), ("done", "")),
        (JobStatus("done"), SchedulerState("1", "ending", "completing"), ("done", "")),
        (JobStatus("interrupted", "SIGTERM"), SchedulerState("1", "ending", "completing"), ("interrupted", "SIGTERM")),
        (running(), SchedulerState("1", "ending", "completing"), ("running", "completing")),
        (JobStatus("failed", "disk full"), None, ("failed", "disk full")),
        (JobStatus("interrupted", "SIGTERM"), None, ("interrupted", "SIGTERM")),
        (running(age=3600), None, ("failed", "60 min|1 h 00 min")),
        (running(host=socket.gethostname(), pid=2**22 - 3), None, ("failed", "process is gone")),
        (running(host=socket.gethostname(), pid=os.getpid()), None, ("running", "")),
    ],
)
def test_state_and_reason(
    status: JobStatus | Callable[[], JobStatus], known: SchedulerState | None, expected: tuple[str, str]
) -> None:
    state, reason = verdict(status if isinstance(status, JobStatus) else status(), known)
    assert state == expected[0]
    assert re.search(expected[1].replace("(", r"\(").replace(")", r"\)"), reason)


def test_job_that_was_never_submitted_says_so() -> None:
    assert verdict(JobStatus(), None, is_submitted=False) == ("pending", "never submitted")


def test_job_that_slurm_has_forgotten_and_that_said_nothing_has_failed_and_its_dependents_are_skipped(
    tmp_path: Path,
) -> None:
    """Slurm forgets a job some minutes after its end; what it never said, nobody will say."""
    launch = launch_of(tmp_path, "slurm")
    record(launch, {"a": "1", "b": "2", "r": "3"})
    outcomes = read_jobs(launch.experiment, Forgetful(launch.experiment, launch.profile, "disabled"))
    assert [outcome.state for outcome in outcomes] == ["failed", "skipped", "failed"]


def test_a_job_behind_an_interrupted_one_waits_here_for_retry_and_is_dropped_by_slurm(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "local")
    record(launch, {"a": "a"})
    write_status(launch.experiment.job("a").status, JobStatus("interrupted", attempt=1))
    local = launch.make_scheduler()
    assert [outcome.state for outcome in read_jobs(launch.experiment, local)] == ["interrupted", "pending", "pending"]
    assert [outcome.state for outcome in read_jobs(launch.experiment)] == ["interrupted", "skipped"]


def launch_of(root: Path, scheduler: str) -> Launch:
    """Return a launch of three jobs, each behind the one before."""
    jobs = (Job("a", "train", ()), Job("b", "evaluate", (), ("a",)), Job("r", "report", (), ("a", "b"), after_any=True))
    config = TrainConfig(dataset="glyphs", model="anml")
    return Launch(config, Experiment(root), ClusterProfile(name="x", scheduler=scheduler), "disabled", Plan(jobs))


@pytest.mark.parametrize(
    ("gres", "device", "hours"),
    [("gpu:2", "cuda", 4), ("gpu:a100:2", "rocm", 4), ("gpu", "cuda", 2), ("", "cuda", 0), ("gpu:2", "cpu", 0)],
)
def test_gpu_hours_are_of_the_gpus_asked_for(tmp_path: Path, gres: str, device: Device, hours: float) -> None:
    launch = launch_of(tmp_path, "slurm")
    profile = launch.profile.model_copy(update={"device": device, "sbatch": JobOptions(train={"gres": gres})})
    launch = replace(launch, profile=profile)
    job = launch.plan.jobs[0]
    outcome = JobOutcome(job, None, "done", "", JobStatus("done", busy_seconds=7200), launch.experiment.job("a"))
    assert gpu_hours(launch, [outcome]) == hours


def test_names_of_jobs_are_whole_in_a_narrow_table(tmp_path: Path) -> None:
    """The seed is at their end: without it, no row of the table would tell which it is about."""
    names = [f"unfrozen-oracle-step-000060-seed-{seed}" for seed in (1, 2)]
    folder = Experiment(tmp_path).job("a")
    reports = [JobOutcome(Job(name, "evaluate", ()), None, "pending", "x " * 40, JobStatus(), folder) for name in names]
    written = io.StringIO()
    console = Console(width=80, file=written)
    console.print(_table(reports))
    text = written.getvalue()
    assert all(name in text for name in names)


def test_a_very_long_name_leaves_place_for_the_state(tmp_path: Path) -> None:
    job, folder = Job("olft-step-002000-train-method-" + "x" * 100, "evaluate", ()), Experiment(tmp_path).job("a")
    written = io.StringIO()
    console = Console(width=80, file=written)
    console.print(_table([JobOutcome(job, None, "cancelled", "use retry", JobStatus(), folder)]))
    assert all(word in written.getvalue() for word in ("cancelled", "use retry"))


def test_the_log_of_a_failed_job_is_shown_as_a_terminal_would(tmp_path: Path) -> None:
    """A progress bar writes its line a thousand times over, which would hide the error."""
    job = Job("a", "train", ())
    log = Experiment(tmp_path).job("a").log
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"\r{number}%" for number in range(101)) + "\n\x1b[31mout of memory\x1b[0m\n")
    config = TrainConfig(dataset="glyphs", model="anml")
    launch = Launch(config, Experiment(tmp_path), ClusterProfile(name="x", scheduler="local"), "disabled", Plan((job,)))
    _, tail = _failures([JobOutcome(job, None, "failed", "", JobStatus("failed"), launch.experiment.job("a"))])
    assert str(tail) == "  100%\n  out of memory"


def test_a_report_older_than_the_results_is_told(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "local")
    record(launch, {})
    page, results = launch.experiment.report / "index.html", launch.experiment.results / "olft-step-000001.csv"
    for age, file in enumerate((page, results)):
        write_text(file, "")
        os.utime(file, (1e9 + age, 1e9 + age))
    assert "older than its jobs" in status_page(launch)
    os.utime(page)
    assert "older than its jobs" not in status_page(launch)


def status_page(launch: Launch) -> str:
    written = io.StringIO()
    Console(width=1000, file=written).print(_page(launch, read_jobs(launch.experiment)))
    return written.getvalue()


class Forgetful(SlurmScheduler):
    """Slurm, some minutes after all jobs have ended."""

    def queue(self) -> Iterator:
        return iter(())
