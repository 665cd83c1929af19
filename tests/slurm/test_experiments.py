"""Whole experiments on a real Slurm, and what may befall them there."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slurm

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 240.0

TINY = {
    "dataset": "glyphs",
    "train_classes": 20,
    "num_batches": 3,
    "remember_size": 8,
    "epochs": 4,
    "eval_steps": [2, 4],
    "save_freq": 2,
    "model": "sanml",
    "model_args": {"rln_chs": 4, "num_classes": 20},
    "eval": {"olft": {"classes": 3, "train_examples": 3, "test_examples": 2, "runs": 2, "lr": [0.001, 0.01]}},
}


class Bench:
    """Launches experiments on the dev cluster and watches them."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.folder = folder
        self.env = env | {"ANML_EXPERIMENTS": str(folder / "experiments")}

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command line of the project."""
        return subprocess.run(
            [sys.executable, *arguments], cwd=REPOSITORY, env=self.env | environment,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def slurm(self, *command: str) -> str:
        """Run a Slurm command that must succeed."""
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=True).stdout

    def profile(self, **changes: object) -> str:
        """Write a profile like the dev cluster's own, with changes; returns its path."""
        base = yaml.safe_load((REPOSITORY / "slurm/dev-cluster/dggpu.yml").read_text())
        path = self.folder / "profile.yml"
        path.write_text(yaml.safe_dump(base | changes))
        return str(path)

    def launch(
        self, *options: str, config: dict | None = None, group: str = "g", project: str = "p", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run launch_train.py with a small config."""
        path = self.folder / "config.yml"
        path.write_text(yaml.safe_dump(config or TINY))
        if "--cluster" not in options:
            options = (*options, "--cluster", "slurm/dev-cluster/dggpu.yml")
        return self.python(
            "launch_train.py", "-c", str(path), "--project", project, "--group", group, "--wandb", "disabled", *options,
            **environment,
        )  # fmt: skip

    def root(self, group: str = "g", project: str = "p") -> Path:
        """Return an experiment's folder."""
        return self.folder / "experiments" / project / group

    def status(self, job: str, group: str = "g") -> dict:
        """Return what a job says of itself."""
        path = self.root(group) / "jobs" / job / "status.json"
        return json.loads(path.read_text()) if path.exists() else {"state": "pending", "done": 0}

    def id_of(self, job: str, group: str = "g") -> str:
        """Return a job's Slurm id."""
        return json.loads((self.root(group) / "plan.json").read_text())["submitted"][job]["id"]

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"never happened: {what}\n{self.slurm('squeue', '--states=all')}"
            time.sleep(0.3)

    def wait_for_queue(self) -> None:
        """Wait until no job waits or runs."""
        self.wait(lambda: not self.slurm("squeue", "--noheader").strip(), "an empty queue")

    def wait_for_training(self, job: str, steps: int = 1) -> None:
        """Wait until a training is under way."""
        self.wait(
            lambda: self.status(job)["state"] == "running" and self.status(job)["done"] >= steps, f"{job} running"
        )


@pytest.fixture
def bench(dev_cluster, tmp_path: Path):
    """A bench whose jobs are gone when the test ends."""
    bench = Bench(dev_cluster.env, tmp_path)
    yield bench
    live = bench.slurm("squeue", "--noheader", "--format=%A").split()
    if live:
        bench.slurm("scancel", *live)
        bench.wait_for_queue()


def long_training(steps: int) -> dict:
    """A config whose training takes long enough to be disturbed."""
    return TINY | {"epochs": steps, "eval_steps": [steps], "save_freq": 20, "log_freq": 5, "eval": {}}


def model_hash(root: Path, step: int) -> str:
    """Return the checksum of a checkpoint's model and training state."""
    folder = root / "checkpoints" / f"step-{step:06d}"
    files = [(folder / name).read_bytes() for name in ("model.safetensors", "training.safetensors")]
    return hashlib.sha256(b"".join(files)).hexdigest()


def undisturbed_hash(bench: Bench, steps: int) -> str:
    """Return the checksum of the same training run in one go, with the same number of threads."""
    config = bench.folder / "config.yml"
    folder = bench.folder / "undisturbed"
    done = bench.python("train_anml.py", "-c", str(config), "--run-dir", str(folder), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return model_hash(folder, steps)


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


def test_names_with_blanks_and_shell_characters_are_harmless(bench: Bench) -> None:
    project, group = "a b;touch x", "it's $HOME & `id` 100%j"
    assert bench.launch(project=project, group=group).returncode == 0
    bench.wait_for_queue()
    root = bench.root(group, project)
    assert json.loads((root / "jobs/report/status.json").read_text())["state"] == "done"
    assert "loss" in (root / "jobs/train-step-000002/log.txt").read_text()


def test_sweep_larger_than_max_array_size_is_cut_into_arrays(bench: Bench) -> None:
    profile = bench.profile(points_per_job=1, max_array_size=3)
    launched = bench.launch("--cluster", profile, config=TINY | {"epochs": 2, "eval_steps": [2]})
    assert launched.returncode == 0, launched.stderr
    bench.wait_for_queue()
    assert sorted(p.name for p in (bench.root() / "results").glob("*.csv")) == [
        f"olft-step-000002-task-{task:04d}.csv" for task in range(4)
    ]
    assert bench.status("report")["state"] == "done"


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


def test_cancelled_training_is_finished_by_retry(bench: Bench) -> None:
    bench.launch(config=long_training(400))
    bench.wait_for_training("train-step-000400", steps=30)
    cancelled = bench.python("-m", "anml", "cancel", "p/g")
    assert "train-step-000400" in cancelled.stdout
    bench.wait_for_queue()
    assert bench.status("train-step-000400")["state"] in ("interrupted", "running")
    assert bench.python("-m", "anml", "retry", "p/g").returncode == 0
    bench.wait_for_queue()
    assert bench.status("train-step-000400")["state"] == "done"
    assert model_hash(bench.root(), 400) == undisturbed_hash(bench, 400)


def test_killed_process_is_told_as_failed_and_finished_by_retry(bench: Bench) -> None:
    bench.launch(config=long_training(400))
    bench.wait_for_training("train-step-000400", steps=30)
    os.kill(bench.status("train-step-000400")["pid"], signal.SIGKILL)
    bench.wait_for_queue()
    shown = bench.python("-m", "anml", "status", "p/g")
    assert "failed" in shown.stdout
    bench.python("-m", "anml", "retry", "p/g")
    bench.wait_for_queue()
    assert model_hash(bench.root(), 400) == undisturbed_hash(bench, 400)


def test_requeued_training_continues_bit_for_bit(bench: Bench) -> None:
    bench.launch(config=long_training(400))
    bench.wait_for_training("train-step-000400", steps=30)
    id_before = bench.id_of("train-step-000400")
    bench.slurm("scontrol", "requeue", id_before)
    bench.wait_for_queue()
    status = bench.status("train-step-000400")
    assert (status["state"], status["attempt"]) == ("done", 2)
    assert model_hash(bench.root(), 400) == undisturbed_hash(bench, 400)


def test_time_limit_makes_training_save_requeue_itself_and_finish(bench: Bench) -> None:
    # Slurm looks at its watch every 30 seconds and warns 30 seconds ahead: the warning comes before a minute is over.
    config = long_training(60) | {"remember_size": 64, "num_batches": 10, "model_args": {"rln_chs": 16}}
    steps = 10 * round(5.5 * steps_per_second(bench, config))
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


def test_submission_survives_a_restart_of_the_controller(bench: Bench, dev_cluster) -> None:
    dev_cluster.stop_controller()
    restart = threading.Timer(12.0, dev_cluster.start_controller)
    restart.start()
    launched = bench.launch(config=TINY | {"epochs": 2, "eval_steps": [2]})
    restart.join()
    assert launched.returncode == 0, launched.stderr
    bench.wait_for_queue()
    names = bench.slurm("squeue", "--states=all", "--noheader", "--format=%j").split()
    ours = [name for name in names if name.endswith(mark_of(bench))]
    assert len(ours) == len(set(ours)) == 3
    assert bench.status("report")["state"] == "done"


def mark_of(bench: Bench) -> str:
    """Return the mark in the names of the experiment's jobs."""
    return hashlib.sha256(str(bench.root().resolve()).encode()).hexdigest()[:8]


def refusing_sbatch(folder: Path) -> Path:
    """Write an sbatch that refuses the third submission, and passes the others on."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    script = bin_folder / "sbatch"
    script.write_text(
        f'#!/bin/bash\necho x >> "{folder}/calls"\nif [ "$(wc -l < "{folder}/calls")" = 3 ]; then\n'
        '  echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1\nfi\n'
        f'exec {shutil.which("sbatch")} "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return bin_folder


def test_refused_third_job_takes_the_others_back_and_can_be_completed(bench: Bench) -> None:
    path = f"{refusing_sbatch(bench.folder)}:{os.environ['PATH']}"
    refused = bench.launch(PATH=path)
    assert refused.returncode == 1
    assert "QOSMaxSubmitJobPerUserLimit" in refused.stderr
    assert "Traceback" not in refused.stderr
    bench.wait_for_queue()
    assert bench.launch().returncode == 0
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


def test_check_of_the_dev_profile_finds_nothing_wrong(bench: Bench) -> None:
    checked = bench.python("-m", "anml", "clusters", "check", bench.profile(python=sys.executable))
    assert checked.returncode == 0, checked.stdout


def test_check_names_a_partition_that_does_not_exist_and_too_large_arrays(bench: Bench) -> None:
    profile = bench.profile(python=sys.executable, max_array_size=99999, sbatch={"all": {"partition": "nowhere"}})
    checked = bench.python("-m", "anml", "clusters", "check", profile)
    assert checked.returncode == 1
    assert "invalid partition" in checked.stdout.lower()
    assert "max_array_size is 99999" in checked.stdout
