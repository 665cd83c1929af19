"""What fails is submitted again with more, and elsewhere."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.slurm.bench import TINY, Bench, long_training
from tests.slurm.cluster import ACCOUNTING

pytestmark = pytest.mark.slurm
ONE_JOB = TINY | {"epochs": 1, "eval_steps": [1], "eval": {}}
JOB = "train-step-000001"


@pytest.fixture
def failed(bench: Bench) -> Bench:
    """Launch a training that fails at once, as on a node whose GPU is broken."""
    profile = bench.profile(device="cuda", escalate={"mem": ["3G", "8G"]})
    assert bench.launch("--cluster", profile, config=ONE_JOB).returncode == 0
    bench.wait_for_queue()
    assert bench.status(JOB)["state"] == "failed"
    return bench


def retry(bench: Bench, *options: str, **environment: str) -> str:
    """Retry the experiment and return what is said of it."""
    done = bench.python("-m", "anml", "retry", "p/g", *options, **environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


def asked(bench: Bench) -> str:
    """Return what Slurm says of the training."""
    return bench.slurm("scontrol", "show", "job", bench.id_of(JOB))


def test_a_retry_multiplies_what_a_job_had(failed: Bench) -> None:
    said = retry(failed, "--mem=2x", "--time=1.5x", "--hold")
    assert f"{JOB}: --mem=4G --time=0-00:30:00 --hold" in said
    assert all(words in asked(failed) for words in ("MinMemoryNode=4G", "TimeLimit=00:30:00"))


def test_a_node_that_failed_a_job_twice_is_left_out(failed: Bench) -> None:
    first = failed.status(JOB)["node"]
    assert "--exclude" not in retry(failed, f"--nodelist={first}")
    failed.wait_for_queue()
    said = retry(failed, "--nodelist=")
    assert f"--exclude={first}" in said
    assert f"{first} failed it twice" in said
    failed.wait_for_queue()
    assert failed.status(JOB)["node"] not in ("", first)


def test_where_every_node_has_failed_a_job_twice_it_runs_there_all_the_same(failed: Bench) -> None:
    file = failed.root() / "jobs" / JOB / "status.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"failed_on": ["dg1", "dg1", "dg2", "dg2"]}))
    assert "no node is left out any more" in retry(failed)
    failed.wait_for_queue()
    assert failed.status(JOB)["attempt"] == 2


def test_what_the_kernel_kills_goes_on_with_more_memory_and_the_jobs_behind_it_wait(bench: Bench) -> None:
    """Slurm without cgroups kills nothing for its memory: here the test does what the kernel would."""
    profile = bench.profile(escalate={"mem": ["3G"]})
    assert bench.launch("--cluster", profile, config=long_training(400)).returncode == 0
    bench.wait_for_training("train-step-000400", steps=30)
    os.kill(bench.status("train-step-000400")["pid"], signal.SIGKILL)
    bench.wait_for_queue()
    states = {job: bench.status(job) for job in ("train-step-000400", "report")}
    assert {job: (status["state"], status["attempt"]) for job, status in states.items()} == {
        "train-step-000400": ("done", 2), "report": ("done", 1),
    }  # fmt: skip
    assert "MinMemoryNode=3G" in bench.slurm("scontrol", "show", "job", bench.id_of("train-step-000400"))


def test_what_ran_out_of_memory_gets_the_next_step(failed: Bench, tmp_path: Path) -> None:
    """Slurm without cgroups kills nothing for its memory: here squeue says that it has.

    Where there is accounting, squeue and the controller have forgotten the job, and sacct says so.
    """
    file = failed.root() / "jobs" / JOB / "status.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"state": "running"}))  # As what is killed leaves it.
    lies = {"squeue": '/usr/bin/squeue "$@" | sed s/FAILED/OUT_OF_MEMORY/'}
    if ACCOUNTING:
        lies = {"squeue": "exit 0", "scontrol": 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'}
        lies["sacct"] = '/usr/bin/sacct "$@" | sed s/FAILED/OUT_OF_MEMORY/'
        # slurmctld tells it to the database a little later.
        failed.wait(lambda: "FAILED" in failed.slurm("sacct", f"--jobs={failed.id_of(JOB)}"), "the end in the books")
    folder = tmp_path / "bin"
    folder.mkdir()
    for command, lie in lies.items():
        (folder / command).write_text(f"#!/bin/bash\n{lie}\n")
        (folder / command).chmod(0o755)
    said = retry(failed, "--hold", PATH=f"{folder}:{os.environ['PATH']}")
    assert f"{JOB}: --mem=3G --hold (OUT_OF_MEMORY" in said
    assert "MinMemoryNode=3G" in asked(failed)
