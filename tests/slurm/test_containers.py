"""Jobs in a container, with a stand-in for the runtime: in it, as in most images, Slurm's commands are missing."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from anml.config.profile import ClusterProfile, Container
from anml.jobs.plan import Job
from tests.slurm.bench import REPOSITORY, Bench, long_training
from tests.slurm.light import TRAIN, Cluster

pytestmark = pytest.mark.slurm
# Notes its arguments beside the image. The command gets a PATH on which there is nothing.
RUNTIME = """#!/bin/bash
all="$*"
shift
while [[ "$1" == --* ]]; do
    case "$1" in
        --pwd) cd "$2" || exit 1; shift 2 ;;
        --bind) [ -e "$2" ] || exit 255; shift 2 ;;
        *) shift ;;
    esac
done
echo "$all" >> "$1.calls"
shift
exec env PATH=/nowhere "$(type -P "$1")" "${@:2}"
"""
# An srun with pyxis, whose options the srun here does not have.
SRUN = """
while [[ "$1" == --* ]]; do
    [[ "$1" == --container-* ]] || options+=("$1")
    shift
done
exec $REAL "${options[@]}" env PATH=/nowhere "$@"
"""


@pytest.fixture
def in_container(tmp_path: Path) -> dict[str, Any]:
    """Return the keys of a profile whose setup puts the runtime on PATH."""
    runtime = tmp_path / "bin" / "apptainer"
    runtime.parent.mkdir()
    runtime.write_text(RUNTIME)
    runtime.chmod(0o755)
    container = {"image": str(tmp_path / "anml.sif"), "binds": [str(REPOSITORY)]}
    setup = [f"export PATH={shlex.quote(str(runtime.parent))}:$PATH", "export FROM_SETUP=loaded"]
    return {"container": container, "python": sys.executable, "setup": setup}


@pytest.fixture
def profile(bench: Bench, in_container: dict[str, Any]) -> str:
    return bench.profile(**in_container)


def calls(bench: Bench) -> list[str]:
    """Return what the runtime was called with."""
    return Path(f"{bench.folder}/anml.sif.calls").read_text().splitlines()


def test_a_training_in_a_container_saves_and_is_requeued_before_its_time_limit(bench: Bench, profile: str) -> None:
    launched = bench.launch("--cluster", profile, config=long_training(150))
    assert launched.returncode == 0, launched.stderr
    bench.wait_for_training("train-step-000150", steps=10)
    bench.slurm("scancel", "--batch", "--signal=USR1", bench.id_of("train-step-000150"))
    bench.wait_for_queue()
    status = bench.status("train-step-000150")
    assert (status["state"], status["attempt"]) == ("done", 2)
    trainings = [line for line in calls(bench) if "train_anml.py" in line]
    assert len(trainings) == 2
    assert all(f"exec --bind {bench.root()} --bind {REPOSITORY} " in line for line in trainings)
    assert not list(bench.root().glob(".requeue*"))


def test_a_job_that_gets_no_further_in_its_time_is_requeued_with_more(
    cluster: Cluster, in_container: dict[str, Any]
) -> None:
    keys = cluster.profile.model_dump() | in_container | {"escalate": {"time": ["00:40:00"]}}
    cluster.profile = ClusterProfile.model_validate(keys)
    id_ = cluster.launch(TRAIN)["train"]
    cluster.wait_for("train", "running")
    cluster.slurm("scancel", "--batch", "--signal=USR1", id_)
    cluster.wait(lambda: cluster.status("train")["attempt"] == 2)
    assert "TimeLimit=00:40:00" in cluster.slurm("scontrol", "show", "job", id_)


def test_a_job_that_srun_starts_in_a_container_is_requeued_and_can_be_cancelled(cluster: Cluster) -> None:
    cluster.wrap("srun", SRUN)
    container = Container(image="image", runtime="pyxis")
    cluster.profile = cluster.profile.model_copy(update={"container": container, "python": sys.executable})
    ids = cluster.launch(TRAIN, Job("other", "train", TRAIN.argv))
    for name in ids:
        cluster.wait_for(name, "running")
    cluster.slurm("scancel", "--batch", "--signal=USR1", ids["train"])
    cluster.slurm("scancel", ids["other"])
    cluster.wait_for("other", "interrupted")
    cluster.wait(lambda: "Restarts=1" in cluster.slurm("scontrol", "show", "job", ids["train"]))


def test_the_check_of_a_cluster_asks_the_python_in_the_container(bench: Bench, profile: str) -> None:
    done = bench.python("-m", "anml", "clusters", "check", profile)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any("import" in call for call in calls(bench))


@pytest.mark.parametrize("contained", [False, True])
def test_a_shell_is_where_jobs_run(bench: Bench, profile: str, contained: bool) -> None:
    path = profile if contained else bench.profile(setup=["export FROM_SETUP=loaded"])
    command = shlex.join([sys.executable, "-m", "anml", "shell", path, "--cpus-per-task=2", "--gres=gpu:1"])
    lines = 'echo "$SLURM_JOB_NAME $SLURM_CPUS_PER_TASK $SLURM_JOB_PARTITION $FROM_SETUP $CUDA_VISIBLE_DEVICES $PATH"'
    # The variable of a Slurm job that this may run in: srun would look for that job.
    script = f"cd {REPOSITORY}; echo {shlex.quote(lines)} | SLURM_JOB_ID=999999 {command}"
    words = bench.slurm("bash", "-c", script).split()
    assert words[:4] == ["anml-shell", "2", "dggpu", "loaded"]
    assert words[4] in "0123"
    assert (words[5] == "/nowhere") == contained
