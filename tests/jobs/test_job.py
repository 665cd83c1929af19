"""The frame of a job: exit codes, status, and when it requeues itself."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from anml.jobs import job_status
from anml.jobs.job_status import CopyError, JobStatus, StatusFile, read_status, reopen, write_status

RUN = """
import os, signal, sys, time
from pathlib import Path
from anml.errors import DataError
from anml.experiment import Experiment
from anml.jobs.job import run_job

def work(context):
    what = sys.argv[2]
    if what == "user-error":
        raise DataError("no data here")
    if what == "crash":
        raise ZeroDivisionError("oops")
    if what == "wait":
        while not Path(sys.argv[1], "go").exists() and not context.stop():
            time.sleep(0.02)
        return not context.stop()
    if what.startswith("progress"):
        context.progress(0, 9, "steps")
        context.progress(1, 9, "steps")
    if "SIG" in what:
        os.kill(os.getpid(), getattr(signal, what.split()[-1]))
        return not context.stop()
    return True

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGUSR1):
        kill(pid, number)

late = Late() if sys.argv[2] == "warned late" else None
sys.exit(run_job(Experiment(Path(sys.argv[1])), "a", None, work, max_requeues=3))
"""


class Outcome:
    """How a job ended: its exit code, status file, output, and what it asked of scontrol."""

    def __init__(self, root: Path, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.errors = done.returncode, done.stderr
        self.status = json.loads((root / "jobs/a/status.json").read_text())
        calls = root / "scontrol-calls"
        self.requeued = calls.read_text().split() if calls.exists() else []


@pytest.fixture
def run_work(tmp_path: Path):
    """Run one kind of work as a job, with an scontrol that writes down what it is asked for."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/scontrol-calls"\n')
    scontrol.chmod(0o755)

    def run(what: str, **environment: str) -> Outcome:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        path = f"{scontrol.parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(tmp_path), what], capture_output=True, text=True, check=False,
            env=kept | {"PATH": path, "ANML_SCHEDULER": "slurm"} | environment,
        )  # fmt: skip
        return Outcome(tmp_path, done)

    return run


def test_finished_work_is_done(run_work) -> None:
    outcome = run_work("nothing")
    assert (outcome.code, outcome.status["state"]) == (0, "done")


def test_a_warning_that_comes_as_python_ends_leaves_finished_work_done(run_work) -> None:
    outcome = run_work("warned late")
    assert (outcome.code, outcome.status["state"]) == (0, "done")


def test_a_report_that_does_not_tell_of_a_job_is_taken_back(run_work, tmp_path: Path) -> None:
    report = tmp_path / "jobs/report/status.json"
    write_status(report, JobStatus(state="done", attempt=3))
    run_work("nothing")
    assert (read_status(report).state, read_status(report).message) == ("cancelled", "a has ended after it: use retry")


def test_a_report_that_is_at_work_leaves_when_it_is_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    report = "import sys, time; from anml.jobs.job_status import StatusFile; from pathlib import Path\n"
    report += "status = StatusFile(Path(sys.argv[1])); print(flush=True); sys.stdin.read(1); status.end('done')"
    with subprocess.Popen([sys.executable, "-c", report, file], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        reopen(file, "why")
        process.communicate("x")
    assert (process.returncode, read_status(file).state, read_status(file).message) == (75, "cancelled", "why")


@pytest.mark.parametrize(("job_id", "code"), [("12", 0), ("", 1)])
def test_a_job_that_is_done_is_not_done_again_by_a_scheduler(run_work, tmp_path: Path, job_id, code) -> None:
    """A second copy, or once more after a node was lost; a person may run a script again."""
    write_status(tmp_path / "jobs/a/status.json", JobStatus(state="done", attempt=1))
    assert run_work("crash", SLURM_JOB_ID=job_id).code == code


def test_known_error_is_told_without_a_traceback(run_work) -> None:
    outcome = run_work("user-error")
    assert (outcome.code, outcome.status["state"], outcome.status["message"]) == (1, "failed", "no data here")
    assert "Traceback" not in outcome.errors


def test_crash_leaves_its_traceback_in_the_log(run_work) -> None:
    outcome = run_work("crash")
    assert (outcome.code, outcome.status["message"]) == (1, "ZeroDivisionError: oops")
    assert "Traceback" in outcome.errors


def test_warning_before_the_time_limit_requeues_the_job(run_work) -> None:
    outcome = run_work("SIGUSR1", SLURM_JOB_ID="12")
    assert (outcome.requeued, outcome.status["state"]) == (["requeue", "12"], "requeued")


def test_array_task_requeues_itself_and_not_the_whole_array(run_work) -> None:
    outcome = run_work("SIGUSR1", SLURM_JOB_ID="12", SLURM_ARRAY_JOB_ID="10", SLURM_ARRAY_TASK_ID="2")
    assert outcome.requeued == ["requeue", "10_2"]


def test_attempts_that_do_not_get_on_are_not_requeued_for_ever(run_work) -> None:
    for attempt in (1, 2, 3):
        assert run_work("SIGUSR1", SLURM_JOB_ID="12").status["fruitless"] == attempt
    outcome = run_work("SIGUSR1", SLURM_JOB_ID="12")
    assert (len(outcome.requeued), outcome.status["state"], outcome.code) == (6, "failed", 1)
    assert "max_requeues" in outcome.status["message"]


def test_preemptions_do_not_use_up_the_requeues_of_a_job_that_gets_on(run_work) -> None:
    for _ in range(5):
        status = run_work("progress, SIGUSR1", SLURM_JOB_ID="12", SLURM_RESTART_COUNT="99").status
        assert (status["state"], status["fruitless"]) == ("requeued", 0)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_being_cancelled_or_preempted_requeues_nothing(run_work, name: str) -> None:
    outcome = run_work(name, SLURM_JOB_ID="12")
    assert (outcome.requeued, outcome.status["state"]) == ([], "interrupted")
    assert signal.Signals[name].name in outcome.status["message"]


@pytest.mark.parametrize(
    "environment", [{}, {"ANML_SCHEDULER": "local", "SLURM_JOB_ID": "12"}, {"ANML_SCHEDULER": "", "SLURM_JOB_ID": "12"}]
)
def test_what_is_no_job_of_slurm_is_not_requeued(run_work, environment: dict[str, str]) -> None:
    outcome = run_work("SIGUSR1", **environment)
    assert (outcome.requeued, outcome.status["state"]) == ([], "interrupted")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return what starts the job as Slurm does, beside others; what still runs at the end is ended."""
    started: list[subprocess.Popen[str]] = []

    def run(**environment: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        command = [sys.executable, "-c", RUN, str(tmp_path), "wait"]
        environment = kept | {"ANML_SCHEDULER": "slurm"} | environment
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_for(root: Path, **fields: object) -> None:
    """Wait until the status has these values."""
    file, end = root / "jobs/a/status.json", time.monotonic() + 30
    while not file.exists() or not fields.items() <= json.loads(file.read_text()).items():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_copy_of_a_running_job_leaves_and_touches_nothing(tmp_path: Path, start) -> None:
    first = start(SLURM_JOB_ID="12")
    wait_for(tmp_path, state="running", pid=first.pid)
    _, words = start(SLURM_JOB_ID="13").communicate(timeout=30)
    assert f"process {first.pid} on " in words
    (tmp_path / "go").touch()
    assert first.wait(timeout=30) == 0
    wait_for(tmp_path, state="done", pid=first.pid, attempt=1)


@pytest.mark.slow
def test_an_attempt_whose_node_seemed_lost_leaves_to_the_next_one(tmp_path: Path, start) -> None:
    first = start(SLURM_JOB_ID="12")
    wait_for(tmp_path, state="running", pid=first.pid)
    os.kill(first.pid, signal.SIGSTOP)
    second = start(SLURM_JOB_ID="12", SLURM_RESTART_COUNT="1")
    wait_for(tmp_path, pid=second.pid, attempt=2)
    os.kill(first.pid, signal.SIGCONT)
    _, words = first.communicate(timeout=30)
    assert (first.returncode, "another process has taken this job over" in words) == (75, True)
    (tmp_path / "go").touch()
    assert second.wait(timeout=30) == 0
    wait_for(tmp_path, state="done", pid=second.pid, attempt=2)


def test_a_submission_that_came_through_late_leaves_to_the_later_one(tmp_path: Path, start) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"submitted": {"a": {"id": "14"}}}))
    _, words = start(SLURM_JOB_ID="13").communicate(timeout=30)
    assert "submitted again later, as 14" in words
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize("beats", [True, False])
def test_a_job_on_another_machine_is_known_by_its_heartbeat(tmp_path: Path, monkeypatch, beats: bool) -> None:
    monkeypatch.setattr(job_status, "LATENCY_SECONDS", 1.0)
    file = tmp_path / "status.json"
    elsewhere = JobStatus("running", attempt=1, host="elsewhere", pid=7, job_id="12", updated=time.time())
    write_status(file, elsewhere)
    if beats:
        threading.Timer(0.3, write_status, (file, replace(elsewhere, updated=time.time() + 1))).start()
        with pytest.raises(CopyError, match="process 7 on elsewhere"):
            StatusFile(file, "13")
    else:
        StatusFile(file, "13").end("done")
        assert read_status(file).attempt == 2


def test_an_attempt_takes_the_job_over_from_one_on_another_machine_that_writes_once_more(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(job_status, "LATENCY_SECONDS", 1.0)
    file = tmp_path / "status.json"
    elsewhere = JobStatus("running", attempt=1, host="elsewhere", pid=7, job_id="12", updated=time.time())
    write_status(file, elsewhere)
    threading.Timer(0.3, write_status, (file, elsewhere)).start()
    began = time.monotonic()
    status = StatusFile(file, "12")
    assert time.monotonic() - began > 1
    assert (read_status(file).pid, read_status(file).attempt) == (os.getpid(), 2)
    status.end("done")
