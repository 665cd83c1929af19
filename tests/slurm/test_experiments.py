"""Whole experiments on a real Slurm, and what may befall them there."""

import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.slurm.bench import REPOSITORY, TINY, Bench, long_training, model_hash

pytestmark = pytest.mark.slurm
SHORT = TINY | {"epochs": 2, "eval_steps": [2]}  # One training, one evaluation, the report.


@pytest.mark.parametrize("partition", ["dggpu", "bdgpu"])
def test_pipeline_runs_in_dependency_order(bench: Bench, partition: str) -> None:
    launched = bench.launch("--cluster", f"slurm/dev-cluster/{partition}.yml")
    assert launched.returncode == 0, launched.stderr
    bench.wait_for_queue()
    train, evaluation, report = (bench.status(job) for job in ("train-step-000002", "olft-step-000002", "report"))
    assert [s["state"] for s in (train, evaluation, report)] == ["done"] * 3
    assert train["ended"] <= evaluation["started"]
    assert bench.status("olft-step-000004")["ended"] <= report["started"]
    assert (bench.root() / "report" / "index.html").is_file()


def test_a_choice_waits_for_every_task_of_the_sweep_that_it_chooses_from(bench: Bench) -> None:
    evaluation = TINY["eval"]["olft"] | {"choose": {"on": "validation", "by": ["lr", "checkpoint"]}}
    launched = bench.launch("--cluster", bench.profile(points_per_job=2), config=TINY | {"eval": {"olft": evaluation}})
    assert launched.returncode == 0, launched.stderr
    bench.wait_for_queue()
    chosen = bench.status("olft-step-000004")
    sweeps = [bench.status(f"olft-validation-step-00000{step}/task-000{task}") for step in (2, 4) for task in (0, 1)]
    assert [status["state"] for status in (*sweeps, chosen, bench.status("report"))] == ["done"] * 6
    assert max(status["ended"] for status in sweeps) <= chosen["started"]


def test_names_with_blanks_and_shell_characters_are_harmless(bench: Bench) -> None:
    project, group = "a b;touch x", "it's $HOME & `id` 100%j"
    assert bench.launch(config=SHORT, project=project, group=group).returncode == 0
    bench.wait_for_queue()
    root = bench.root(group, project)
    assert json.loads((root / "jobs/report/status.json").read_text())["state"] == "done"
    assert "loss" in (root / "jobs/train-step-000002/log.txt").read_text()


def test_sweep_larger_than_the_clusters_max_array_size_is_cut_into_arrays(dev_cluster, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="anml-") as folder:
        small = type(dev_cluster)(Path(folder) / "small")
        small.call("up", "--max-array-size", "4")
        try:
            bench = Bench(small.env, tmp_path)
            evaluation = TINY["eval"]["olft"] | {"runs": 3}
            config = TINY | {"epochs": 2, "eval_steps": [2], "eval": {"olft": evaluation}}
            launched = bench.launch("--cluster", bench.profile(points_per_job=1, max_array_size=4), config=config)
            assert launched.returncode == 0, launched.stderr
            bench.wait_for_queue()
        finally:
            small.call("down")
    results = sorted(p.name for p in (bench.root() / "results").glob("*.csv"))
    assert results == [f"olft-step-000002-task-{task:04d}.csv" for task in range(6)]
    assert bench.status("report")["state"] == "done"


def test_a_launch_of_a_thousand_points_is_a_few_submissions(bench: Bench) -> None:
    evaluation = TINY["eval"]["olft"] | {"runs": 10, "lr": [0.0001 * number for number in range(1, 101)]}
    config = TINY | {"epochs": 2, "eval_steps": [2], "eval": {"olft": evaluation}}
    path = write_sbatch(bench.folder, [f'echo x >> "{bench.folder}/calls"', f'exec {shutil.which("sbatch")} "$@"'])
    profile = bench.profile(points_per_job=1)
    options = ("--cluster", profile, "--hold")
    launched = bench.launch(*options, config=config, PATH=f"{path}:{os.environ['PATH']}")
    assert launched.returncode == 0, launched.stderr
    assert (bench.folder / "calls").read_text().count("x") <= 10
    assert len(bench.slurm("squeue", "--array", "--noheader").splitlines()) == 1002


def test_failed_training_keeps_dependents_from_running_and_is_reported(bench: Bench) -> None:
    launched = bench.launch("--cluster", bench.profile(device="cuda"))
    assert launched.returncode == 0, launched.stderr
    bench.wait_for_queue()
    assert "this profile is for CUDA" in bench.status("train-step-000002")["message"]
    assert not (bench.root() / "results").exists()
    assert "this profile is for CUDA" in (bench.root() / "report" / "index.html").read_text()
    shown = bench.python("-m", "anml", "status", "p/g")
    assert shown.returncode == 1
    assert "this profile is for CUDA" in shown.stdout


def test_rocm_profile_without_rocm_fails_with_the_right_words(bench: Bench) -> None:
    bench.launch("--cluster", bench.profile(device="rocm"), config=TINY | {"eval": {}, "eval_steps": [2], "epochs": 2})
    bench.wait_for_queue()
    assert "environment-rocm.yml" in bench.status("train-step-000002")["message"]


def test_cancelled_training_is_finished_by_retry(bench: Bench, undisturbed: dict) -> None:
    bench.launch(config=long_training(200))
    bench.wait_for_training("train-step-000200", steps=30)
    cancelled = bench.python("-m", "anml", "cancel", "p/g")
    assert "train-step-000200" in cancelled.stdout
    bench.wait_for_queue()
    assert bench.status("train-step-000200")["state"] in ("interrupted", "running")
    assert bench.python("-m", "anml", "retry", "p/g").returncode == 0
    bench.wait_for_queue()
    assert bench.status("train-step-000200")["state"] == "done"
    assert model_hash(bench.root(), 200) == undisturbed[200]


def test_killed_process_is_told_as_failed_and_finished_by_retry(bench: Bench, undisturbed: dict) -> None:
    bench.launch(config=long_training(200))
    bench.wait_for_training("train-step-000200", steps=30)
    os.kill(bench.status("train-step-000200")["pid"], signal.SIGKILL)
    bench.wait_for_queue()
    shown = bench.python("-m", "anml", "status", "p/g")
    assert "failed" in shown.stdout
    bench.python("-m", "anml", "retry", "p/g")
    bench.wait_for_queue()
    assert model_hash(bench.root(), 200) == undisturbed[200]


def test_requeued_training_continues_bit_for_bit(bench: Bench, undisturbed: dict) -> None:
    bench.launch(config=long_training(200))
    bench.wait_for_training("train-step-000200", steps=30)
    id_before = bench.id_of("train-step-000200")
    bench.slurm("scontrol", "requeue", id_before)
    bench.wait_for_queue()
    status = bench.status("train-step-000200")
    assert (status["state"], status["attempt"]) == ("done", 2)
    assert model_hash(bench.root(), 200) == undisturbed[200]


def test_time_limit_makes_training_save_requeue_itself_and_finish(bench: Bench) -> None:
    # Slurm looks at its watch every 30 seconds and warns 30 seconds ahead: the warning comes before a minute is over.
    config = long_training(60) | {"model_args": {"rln_chs": 16}}
    steps = 10 * round(7 * steps_per_second(bench, config))
    config |= {"epochs": steps, "eval_steps": [steps], "save_freq": 100000}
    bench.launch("--cluster", bench.profile(signal_seconds=30), "--time=00:01:00", config=config)
    bench.wait_for_queue()
    job = f"train-step-{steps:06d}"
    assert bench.status(job)["state"] == "done"
    assert bench.status(job)["attempt"] > 1
    assert "SIGUSR1" in (bench.root() / "jobs" / job / "log.txt").read_text()
    assert bench.status("report")["started"] >= bench.status(job)["ended"]


def steps_per_second(bench: Bench, config: dict) -> float:
    """Measure how fast this machine trains just now."""
    path = bench.folder / "speed.yml"
    path.write_text(yaml.safe_dump(config))
    folder = bench.folder / "speed"
    bench.python("train_anml.py", "-c", str(path), "--run-dir", str(folder), OMP_NUM_THREADS="1")
    lines = (folder / "metrics" / "train.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["steps_per_second"]


def test_submission_survives_a_controller_that_stops_amid_it(bench: Bench, dev_cluster) -> None:
    path = f"{stopping_sbatch(bench.folder, dev_cluster)}:{os.environ['PATH']}"
    launched = bench.launch(config=SHORT, PATH=path)
    assert launched.returncode == 0, launched.stderr
    bench.wait_for_queue()
    names = bench.slurm("squeue", "--states=all", "--noheader", "--format=%j").split()
    ours = [name for name in names if name.endswith(mark_of(bench))]
    assert len(ours) == len(set(ours)) == 3
    assert bench.status("report")["state"] == "done"


def stopping_sbatch(folder: Path, dev_cluster) -> Path:
    """Write an sbatch that stops the controller before the second submission; it is back some seconds later."""
    command, state = f"{sys.executable} {REPOSITORY / 'slurm/dev-cluster/dev_cluster.py'}", dev_cluster.state
    lines = [
        f'echo x >> "{folder}/calls"',
        f'if [ "$(wc -l < "{folder}/calls")" = 2 ]; then',
        f"  {command} stop-controller --state {state}",
        f"  (sleep 12; {command} start-controller --state {state}) > /dev/null 2>&1 &",
        "fi",
        f'exec {shutil.which("sbatch")} "$@"',
    ]
    return write_sbatch(folder, lines)


def mark_of(bench: Bench) -> str:
    """Return the mark in the names of the experiment's jobs."""
    return hashlib.sha256(str(bench.root().resolve()).encode()).hexdigest()[:8]


def refusing_sbatch(folder: Path) -> Path:
    """Write an sbatch that refuses the third submission, and passes the others on."""
    lines = [
        f'echo x >> "{folder}/calls"',
        f'if [ "$(wc -l < "{folder}/calls")" = 3 ]; then',
        '  echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1',
        "fi",
        f'exec {shutil.which("sbatch")} "$@"',
    ]
    return write_sbatch(folder, lines)


def write_sbatch(folder: Path, lines: list[str]) -> Path:
    """Write a stand-in for sbatch; returns the folder to put in front of PATH."""
    script = folder / "bin" / "sbatch"
    script.parent.mkdir()
    script.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    script.chmod(0o755)
    return script.parent


def test_refused_third_job_takes_the_others_back_and_can_be_completed(bench: Bench) -> None:
    path = f"{refusing_sbatch(bench.folder)}:{os.environ['PATH']}"
    refused = bench.launch(config=SHORT, PATH=path)
    assert refused.returncode == 1
    assert "QOSMaxSubmitJobPerUserLimit" in refused.stderr
    assert "Traceback" not in refused.stderr
    bench.wait_for_queue()
    assert bench.launch(config=SHORT).returncode == 0
    bench.wait_for_queue()
    assert bench.status("report")["state"] == "done"


def test_launching_the_same_group_twice_submits_nothing_twice(bench: Bench) -> None:
    bench.launch(config=long_training(400))
    again = bench.launch(config=long_training(400))
    assert "Nothing to submit" in again.stdout
    other = bench.launch(config=long_training(500))
    assert other.returncode == 2
    assert "another config" in other.stderr


def test_pending_job_is_shown_with_its_reason(bench: Bench) -> None:
    bench.launch(config=long_training(400))
    shown = bench.python("-m", "anml", "status", "p/g", COLUMNS="160")
    assert shown.returncode == 0
    assert "Dependency" in shown.stdout


def test_check_of_the_dev_profile_finds_nothing_wrong_and_is_not_misled_by_noise(bench: Bench) -> None:
    setup = ["echo welcome  # to all", "trap 'echo [1, 2]' EXIT", "if false; then\n  nothing\nfi"]
    checked = bench.python("-m", "anml", "clusters", "check", bench.profile(python=sys.executable, setup=setup))
    assert checked.returncode == 0, checked.stdout
    assert "starts after the setup lines" in checked.stdout
    assert "accepts train jobs" in checked.stdout


def test_check_runs_the_setup_on_a_node_and_names_the_line_that_fails(bench: Bench) -> None:
    setup = ["true", 'test -z "$SLURM_JOB_ID"', "touch too-far"]
    checked = bench.python("-m", "anml", "clusters", "check", bench.profile(python=sys.executable, setup=setup))
    assert checked.returncode == 1
    assert "line 2 of profile profile failed: test -z" in checked.stdout


def test_check_names_a_partition_that_does_not_exist_and_too_large_arrays(bench: Bench) -> None:
    profile = bench.profile(python=sys.executable, max_array_size=99999, sbatch={"all": {"partition": "nowhere"}})
    checked = bench.python("-m", "anml", "clusters", "check", profile)
    assert checked.returncode == 1
    assert "invalid partition" in checked.stdout.lower()
    assert "max_array_size is 99999" in checked.stdout
