"""The frame of a job: exit codes, status, and when it requeues itself."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import os, signal, sys
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
    if what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))
        return not context.stop()
    return True

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


def test_cap_stops_endless_requeueing(run_work) -> None:
    outcome = run_work("SIGUSR1", SLURM_JOB_ID="12", SLURM_RESTART_COUNT="3")
    assert (outcome.requeued, outcome.status["state"], outcome.code) == ([], "failed", 1)
    assert "max_requeues" in outcome.status["message"]


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
