"""What a cluster does to experiments that nobody asked for: preemption, dead nodes, two launchers at once."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.slurm.bench import REPOSITORY, TINY, Bench, long_training, model_hash

pytestmark = pytest.mark.slurm


def test_preempted_training_continues_bit_for_bit(bench: Bench, undisturbed: dict) -> None:
    options = {"all": {"partition": "preempt", "ntasks": 1}, "train": {"gres": "gpu:1", "time": "00:20:00"}}
    bench.launch("--cluster", bench.profile(sbatch=options), config=long_training(400))
    bench.wait_for_training("train-step-000400", steps=30)
    bench.slurm("sbatch", "--partition=dggpu", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    bench.wait_for_queue()
    status = bench.status("train-step-000400")
    assert (status["state"], status["attempt"]) == ("done", 2)
    assert model_hash(bench.root(), 400) == undisturbed[400]


def test_training_on_a_node_that_dies_continues_from_its_last_checkpoint(
    bench: Bench, undisturbed: dict, dev_cluster
) -> None:
    bench.launch(config=long_training(200))
    bench.wait_for_training("train-step-000200", steps=30)
    node = bench.slurm("squeue", "--noheader", "--states=running", "--format=%N").split()[0]
    dev_cluster.stop_node(node)
    dev_cluster.start_node(node)
    bench.wait_for_queue()
    assert bench.status("train-step-000200")["state"] == "done"
    assert model_hash(bench.root(), 200) == undisturbed[200]


def test_retry_runs_only_the_failed_task_of_an_array(bench: Bench) -> None:
    config = TINY | {"epochs": 2, "eval_steps": [2]}
    bench.launch("--cluster", bench.profile(points_per_job=2), config=config)
    bench.wait_for_queue()
    status_file = bench.root() / "jobs/olft-step-000002/task-0001/status.json"
    status_file.write_text(json.dumps(json.loads(status_file.read_text()) | {"state": "failed"}))
    assert bench.python("-m", "anml", "retry", "p/g").returncode == 0
    bench.wait_for_queue()
    attempts = [bench.status(f"olft-step-000002/task-{task:04d}")["attempt"] for task in (0, 1)]
    assert attempts == [1, 2]


def test_two_launches_at_once_submit_every_job_once(bench: Bench) -> None:
    path = bench.folder / "config.yml"
    path.write_text(yaml.safe_dump(long_training(400)))
    command = [
        sys.executable,
        "launch_train.py",
        "-c",
        str(path),
        "--project",
        "p",
        "--group",
        "g",
        "--wandb",
        "disabled",
    ]
    command += ["--cluster", "slurm/dev-cluster/dggpu.yml"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": REPOSITORY, "env": bench.env}
    launches = [subprocess.Popen(command, **quiet) for _ in range(2)]
    codes = sorted(launch.wait(timeout=120) for launch in launches)
    assert codes[0] == 0
    names = bench.slurm("squeue", "--noheader", "--format=%j").split()
    assert len(names) == len(set(names)) == 2


def test_squeue_that_fails_is_not_taken_for_an_empty_queue(bench: Bench) -> None:
    bench.launch(config=long_training(400))
    broken = bench.folder / "bin"
    broken.mkdir()
    (broken / "squeue").write_text("#!/bin/sh\necho 'squeue: error: Access/permission denied' >&2\nexit 1\n")
    (broken / "squeue").chmod(0o755)
    path = f"{broken}:{os.environ['PATH']}"
    for command in ("status", "retry", "cancel"):
        asked = bench.python("-m", "anml", command, "p/g", PATH=path)
        assert asked.returncode == 1
        assert "Access/permission denied" in asked.stderr
        assert "Traceback" not in asked.stderr


def test_variables_of_an_outer_slurm_job_do_not_leak_in(bench: Bench) -> None:
    config = TINY | {"epochs": 2, "eval_steps": [2], "eval": {}}
    bench.launch(config=config, SLURM_ARRAY_TASK_ID="7", SLURM_JOB_ID="1", SLURM_RESTART_COUNT="99")
    bench.wait_for_queue()
    assert bench.status("train-step-000002")["state"] == "done"


def test_job_that_dies_without_a_word_is_never_called_pending(bench: Bench) -> None:
    bench.launch("--cluster", bench.profile(python="/nowhere/python"), config=TINY | {"epochs": 2, "eval_steps": [2]})
    bench.wait_for_queue()
    shown = bench.python("-m", "anml", "status", "p/g")
    assert shown.returncode == 1
    assert "pending" not in shown.stdout


def test_an_experiment_that_is_moved_while_it_runs_goes_on_at_its_new_place(bench: Bench, undisturbed: dict) -> None:
    bench.launch(config=long_training(400))
    bench.wait_for_training("train-step-000400", steps=30)
    old, new = bench.root(), bench.root("moved")
    old.rename(new)
    bench.wait_for_queue()
    assert not old.exists()
    retried = bench.python("-m", "anml", "retry", "p/moved")
    assert retried.returncode == 0, retried.stderr
    assert "was moved from" in retried.stdout
    bench.wait_for_queue()
    assert bench.status("report", "moved")["state"] == "done"
    assert model_hash(new, 400) == undisturbed[400]
    assert not old.exists()


def test_a_copy_of_an_experiment_leaves_the_jobs_of_the_original_alone(bench: Bench) -> None:
    bench.launch(config=long_training(400))
    shutil.copytree(bench.root(), bench.root("copy"))
    for command in ("retry", "cancel"):
        asked = bench.python("-m", "anml", command, "p/copy")
        assert (asked.returncode, "is a copy of" in asked.stderr) == (2, True)
    assert len(bench.slurm("squeue", "--noheader").splitlines()) == 2
