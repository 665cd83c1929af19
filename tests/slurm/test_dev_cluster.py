"""The dev cluster is a real Slurm: what the scheduler backend builds on happens here as on a large one."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.slurm.cluster import DevCluster

pytestmark = pytest.mark.slurm

SOON = 20.0  # seconds; a requeued job waits 6 of them
NOTE_SIGNALS = 'trap "echo warned" USR1; trap "echo asked to end; exit 0" TERM; while :; do sleep 0.1; done'


class Jobs:
    """Submits shell commands to the cluster and reads back what became of them."""

    def __init__(self, cluster: DevCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder

    def slurm(self, *argv: str) -> str:
        """Run a Slurm client command."""
        done = subprocess.run(argv, env=self.cluster.env, cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, command: str, *options: str) -> str:
        """Submit a command for bash, which appends its output to one log per job; its id."""
        fixed = ("--parsable", "--open-mode=append", f"--output={self.folder}/%A.log")
        script = self.folder / f"{time.monotonic_ns()}.sh"
        script.write_text(f"#!/bin/bash\n{command}\n")
        return self.slurm("sbatch", *fixed, *options, str(script)).partition(";")[0]

    def field(self, job: str, name: str) -> str:
        """One field of `scontrol show job`; of the first task for an array."""
        found = re.search(rf"\b{name}=(\S*)", self.slurm("scontrol", "show", "job", "--oneliner", job))
        assert found
        return found[1]

    def log(self, job: str) -> list[str]:
        """The lines of its log so far."""
        log = self.folder / f"{job}.log"
        return log.read_text().splitlines() if log.exists() else []

    def wait(self, job: str, state: str) -> None:
        """Wait until it is in a state."""
        until(lambda: self.field(job, "JobState") == state)

    def wait_logged(self, job: str, line: str) -> None:
        """Wait until its log has a line."""
        until(lambda: line in self.log(job))


def until(condition: Callable[[], bool], seconds: float = SOON) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.1)


@pytest.fixture
def jobs(dev_cluster: DevCluster, tmp_path: Path) -> Jobs:
    return Jobs(dev_cluster, tmp_path)


@pytest.fixture(scope="module", autouse=True)
def warned_job(dev_cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Jobs, str]:
    """Submitted before the first test, looked at in the last: Slurm compares time limits only every 30 seconds."""
    jobs = Jobs(dev_cluster, tmp_path_factory.mktemp("warned"))
    return jobs, jobs.submit(NOTE_SIGNALS, "--time=1", "--signal=B:USR1@60")


def test_nodes_are_up_with_their_gpus(jobs: Jobs) -> None:
    rows = jobs.slurm("sinfo", "--noheader", "--Node", "--format=%N %P %G").splitlines()
    expected = {"dg1 dggpu* gpu:4", "dg2 dggpu* gpu:4", "dg1 preempt gpu:4", "dg2 preempt gpu:4", "bd1 bdgpu gpu:4"}
    assert set(rows) == expected
    until(lambda: set(jobs.slurm("sinfo", "--noheader", "--Node", "--format=%T").split()) <= {"idle", "mixed"})


@pytest.mark.parametrize(
    ("partition", "variable"), [("dggpu", "CUDA_VISIBLE_DEVICES"), ("bdgpu", "ROCR_VISIBLE_DEVICES")]
)
def test_jobs_share_a_node_each_with_its_own_gpu(jobs: Jobs, partition: str, variable: str) -> None:
    command = "env | grep -o '^[A-Z]*_VISIBLE_DEVICES=.'; touch $SLURM_JOB_ID; until [ -e enough ]; do sleep 0.1; done"
    node = {"dggpu": "dg2", "bdgpu": "bd1"}[partition]
    ids = [jobs.submit(command, f"--partition={partition}", f"--nodelist={node}", "--gres=gpu:1") for _ in range(4)]
    until(lambda: all((jobs.folder / job).exists() for job in ids))
    (jobs.folder / "enough").touch()
    assert sorted(line for job in ids for line in jobs.log(job)) == [f"{variable}={number}" for number in range(4)]


def test_dependents_start_in_order(jobs: Jobs) -> None:
    first = jobs.submit("sleep 1; date +%s%N")
    second = jobs.submit("date +%s%N", f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes")
    last = jobs.submit("date +%s%N", f"--dependency=afterany:{first}:{second}")
    assert jobs.field(last, "JobState") == "PENDING"
    jobs.wait(last, "COMPLETED")
    times = [int(jobs.log(job)[0]) for job in (first, second, last)]
    assert times == sorted(times)


def test_a_failure_ends_its_afterok_dependents_and_releases_the_afterany_ones(jobs: Jobs) -> None:
    broken = jobs.submit("exit 3")
    doomed = jobs.submit("true", f"--dependency=afterok:{broken}", "--kill-on-invalid-dep=yes")
    report = jobs.submit("true", f"--dependency=afterany:{broken}:{doomed}")
    jobs.wait(report, "COMPLETED")
    assert [jobs.field(broken, name) for name in ("JobState", "ExitCode")] == ["FAILED", "3:0"]
    assert [jobs.field(doomed, name) for name in ("JobState", "Reason")] == ["CANCELLED", "DependencyNeverSatisfied"]


def test_an_array_runs_every_task_before_its_dependent(jobs: Jobs) -> None:
    array = jobs.submit("sleep 0.2; echo task $SLURM_ARRAY_TASK_ID", "--array=0-3%2")
    after = jobs.submit("true", f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes")
    jobs.wait(after, "COMPLETED")
    assert sorted(jobs.log(array)) == [f"task {number}" for number in range(4)]


def test_a_job_can_requeue_itself_and_its_dependents_wait(jobs: Jobs) -> None:
    command = "echo run ${SLURM_RESTART_COUNT:-0}; [ ${SLURM_RESTART_COUNT:-0} = 1 ] || scontrol requeue $SLURM_JOB_ID"
    job = jobs.submit(f"{command} && exit 0; exit 5", "--requeue")
    after = jobs.submit("true", f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes")
    jobs.wait(after, "COMPLETED")
    assert [line for line in jobs.log(job) if line.startswith("run")] == ["run 0", "run 1"]
    assert jobs.field(job, "Restarts") == "1"


def test_preemption_sends_term_and_requeues(jobs: Jobs) -> None:
    low = jobs.submit(f"echo started; {NOTE_SIGNALS}", "--partition=preempt", "--nodelist=dg2", "--gres=gpu:4")
    jobs.wait_logged(low, "started")
    high = jobs.submit("true", "--nodelist=dg2", "--gres=gpu:4")
    jobs.wait(high, "COMPLETED")
    assert "asked to end" in jobs.log(low)
    until(lambda: jobs.field(low, "Restarts") == "1")
    jobs.slurm("scancel", low)


def test_a_lost_node_requeues_its_job(jobs: Jobs) -> None:
    job = jobs.submit(f"echo started; {NOTE_SIGNALS}", "--partition=bdgpu")
    jobs.wait_logged(job, "started")
    jobs.cluster.stop_node("bd1")
    jobs.cluster.start_node("bd1")
    until(lambda: int(jobs.field(job, "Restarts")) >= 1, seconds=120)
    # The shell may live just long enough to tell of its child's death.
    assert not {"warned", "asked to end"} & set(jobs.log(job)), "a power cut sends no signal"
    jobs.slurm("scancel", job)


def test_the_queue_outlives_the_controller(jobs: Jobs) -> None:
    job = jobs.submit("true", "--hold")
    jobs.cluster.stop_controller()
    assert jobs.cluster.run("status").returncode == 1
    jobs.cluster.start_controller()
    jobs.slurm("scontrol", "release", job)
    jobs.wait(job, "COMPLETED")


def test_up_twice_is_up_once(dev_cluster: DevCluster) -> None:
    before = dev_cluster.call("status").splitlines()[:5]
    assert dev_cluster.call("up").startswith("already up")
    assert dev_cluster.call("status").splitlines()[:5] == before


def test_a_second_cluster_comes_and_goes_without_touching_the_first(dev_cluster: DevCluster) -> None:
    second = type(dev_cluster)(dev_cluster.state.with_name(f"{dev_cluster.state.name}-2"))
    second.call("up", "--max-array-size", "5")
    jobs = Jobs(second, second.state)
    jobs.submit("setsid sleep 1000 & touch runs; wait")
    until((second.state / "runs").exists)
    assert "Invalid job array" in refusal(second, "--array=5")
    assert second.call("down") == "down\n"
    assert second.call("down") == "already down\n"
    assert not second.state.exists()
    assert not processes_with(f"SLURM_CONF={second.state}")
    dev_cluster.call("status")


def test_refuses_a_path_that_slurm_cannot_take_and_a_folder_of_others(dev_cluster: DevCluster, tmp_path: Path) -> None:
    blank = type(dev_cluster)(tmp_path / "a folder").run("up")
    assert blank.returncode == 2
    assert "no blanks" in blank.stderr
    precious = tmp_path / "precious.txt"
    precious.touch()
    assert [type(dev_cluster)(tmp_path).run(command).returncode for command in ("up", "down")] == [2, 2]
    assert precious.exists()


def test_the_warning_signal_comes_before_the_time_limit(warned_job: tuple[Jobs, str]) -> None:
    jobs, job = warned_job
    until(lambda: "warned" in jobs.log(job), seconds=45)
    jobs.slurm("scancel", job)


def refusal(cluster: DevCluster, option: str) -> str:
    """What sbatch says when it refuses a job with this option."""
    argv = ["sbatch", option, "--output=/dev/null", "--wrap=true"]
    done = subprocess.run(argv, env=cluster.env, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    return done.stderr


def processes_with(variable: str) -> list[str]:
    """The ids of processes whose environment has this text."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [environ.parent.name] if variable.encode() in environ.read_bytes() else []
        except OSError:
            continue
    return found
