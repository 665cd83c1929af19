"""Grid Engine: real daemons run real jobs, which do next to nothing."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anml.config.profile import PROFILES, load_profile
from anml.config.training import TrainConfig
from anml.errors import ConfigError, SubmissionError
from anml.experiment import Experiment
from anml.jobs.launch import Launch, create_experiment
from anml.jobs.plan import Job, Plan
from anml.jobs.schedulers.gridengine import GridEngineScheduler
from anml.jobs.submission import run_launch
from tests.gridengine.cell import Cell, absent, private_cell

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(absent()), reason=f"{absent()} not found (packages gridengine-master, -exec, -client)"),
]

# A job named `slow` runs until it is stopped or mended; odd tasks of an array fail until they are mended.
WORK = """
import sys, time
from pathlib import Path
from anml.errors import DataError
from anml.experiment import Experiment
from anml.jobs.job import array_task, run_job

root, name = (sys.argv[sys.argv.index(option) + 1] for option in ("--run-dir", "--job"))
mended = Path(root, "mended")

def work(context):
    if (array_task() or 0) % 2 and not mended.exists():
        raise DataError("no data here")
    while name == "slow" and not context.stop() and not mended.exists():
        time.sleep(0.05)
    return not context.stop()

sys.exit(run_job(Experiment(Path(root)), name, array_task(), work, max_requeues=3))
"""
ARGV = ("-c", WORK)


@pytest.fixture(scope="module")
def cell() -> Iterator[Cell]:
    with tempfile.TemporaryDirectory(prefix="anml-ge-") as folder, private_cell(Path(folder) / "cell") as cell:
        yield cell


@pytest.fixture
def launch(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Experiment]:
    """Launch jobs with a profile."""
    for name in cell.env.keys() - os.environ.keys():
        monkeypatch.setenv(name, cell.env[name])

    def run(*jobs: Job, profile: str = "", group: str = "g") -> Experiment:
        path = tmp_path / "mine.yml"
        path.write_text(f"scheduler: gridengine\ndevice: cpu\nlatency_wait: 1\nsignal_seconds: 10\n{profile}")
        experiment = Experiment(tmp_path / "experiments" / "p" / group)
        config = TrainConfig(dataset="glyphs", model="anml", project="p", group=group)
        decided = Launch(config, experiment, load_profile(str(path), PROFILES), "disabled", Plan(jobs))
        create_experiment(decided, experiment.root.parent.parent)
        run_launch(decided)
        return experiment

    return run


def status(experiment: Experiment, name: str, task: int | None = None) -> dict:
    file = experiment.job(name, task).status
    return json.loads(file.read_text()) if file.exists() else {"state": "", "attempt": 0}


def wait_for(experiment: Experiment, name: str, state: str, attempt: int = 1) -> None:
    deadline = time.monotonic() + 120
    while status(experiment, name)["state"] != state or status(experiment, name)["attempt"] < attempt:
        assert time.monotonic() < deadline, json.dumps(status(experiment, name))
        time.sleep(0.1)


def submitted(experiment: Experiment, name: str) -> str:
    return json.loads(experiment.plan_file.read_text())["submitted"][name]["id"]


def test_jobs_wait_for_success_tasks_fail_and_a_retry_runs_these_alone(launch, run: Callable) -> None:
    sweep = Job("sweep", "evaluate", ARGV, ("train",), tasks=4)
    late = Job("late", "evaluate", ARGV, ("sweep",))
    report = Job("report", "report", ARGV, ("train", "sweep", "late"), after_any=True)
    experiment = launch(Job("train", "train", ARGV), sweep, late, report)
    wait_for(experiment, "report", "done")
    shown = run("-m", "anml", "status", experiment.root)
    assert (shown.returncode, "no data here" in shown.stdout, "skipped" in shown.stdout) == (1, True, True), shown
    (experiment.root / "mended").touch()
    again = run("-m", "anml", "retry", experiment.root)
    assert again.returncode == 0, again.stderr
    assert len(submitted(experiment, "sweep").split(",")) == 2
    wait_for(experiment, "report", "done", attempt=2)
    assert run("-m", "anml", "status", experiment.root).returncode == 0
    assert [status(experiment, "sweep", task)["attempt"] for task in range(4)] == [1, 2, 1, 2]
    assert [status(experiment, name)["attempt"] for name in ("train", "late")] == [1, 1]
    assert "no data here" in experiment.job("sweep", 1).log.read_text()


def test_a_running_job_is_cancelled_after_it_has_saved_and_retried(launch, run: Callable, cell: Cell) -> None:
    slow, report = Job("slow", "train", ARGV), Job("report", "report", ARGV, ("slow",), after_any=True)
    experiment = launch(slow, report)
    wait_for(experiment, "slow", "running")
    shown = run("-m", "anml", "status", experiment.root)
    assert (shown.returncode, "running" in shown.stdout, "pending" in shown.stdout) == (0, True, True)
    assert "slow" in run("-m", "anml", "cancel", experiment.root).stdout
    wait_for(experiment, "slow", "interrupted")
    (experiment.root / "mended").touch()
    again = run("-m", "anml", "retry", experiment.root)
    assert again.returncode == 0, again.stderr
    wait_for(experiment, "report", "done")
    assert status(experiment, "slow")["attempt"] == 2


def test_a_training_saves_and_is_requeued_before_its_time_limit(launch, run: Callable) -> None:
    experiment = launch(Job("slow", "train", ARGV), profile="sbatch: {train: {l: h_rt=35}}\n")
    id_ = submitted(experiment, "slow")
    wait_for(experiment, "slow", "requeued")
    (experiment.root / "mended").touch()
    wait_for(experiment, "slow", "done", attempt=2)
    assert submitted(experiment, "slow") == id_
    assert run("-m", "anml", "status", experiment.root).returncode == 0


def test_accounts_tell_how_a_killed_job_ended(launch, run: Callable) -> None:
    experiment = launch(Job("slow", "train", ARGV))
    wait_for(experiment, "slow", "running")
    os.kill(status(experiment, "slow")["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while "exit status 137" not in (shown := run("-m", "anml", "status", experiment.root).stdout):
        assert time.monotonic() < deadline, shown
    assert "failed" in shown


def test_a_launch_of_which_a_job_is_refused_is_taken_back(launch, cell: Cell) -> None:
    jobs = Job("slow", "train", ARGV), Job("sweep", "evaluate", ARGV, ("slow",))
    with pytest.raises(SubmissionError, match="nowhere"):
        launch(*jobs, profile="sbatch: {evaluate: {q: nowhere}}\n", group="refused")
    deadline = time.monotonic() + 60
    while cell.call("qstat"):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_options_are_those_of_qsub_and_what_the_launcher_decides_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("scheduler: gridengine\nsbatch: {all: {q: all.q, pe: smp 4}, train: {l: 'h_rt=1:00:00,gpu=1'}}\n")
    profile = GridEngineScheduler.with_options(load_profile(str(path), PROFILES), ["--q=long.q"], [])
    scheduler = GridEngineScheduler(Experiment(tmp_path / "p" / "g"), profile, "disabled")
    scheduler.job_options = {"train": {"exclude": "n1,n2"}}
    words = scheduler.command(Job("train", "train", (), tasks=9), ("7", "8,9"), [0, 1, 2, 5])
    assert words[:2] == ["sh", "-c"]
    assert words[2].count("-hold_jid 7,8,9") == 2
    first = words[2].split(" && ")[0]
    assert "-q long.q -pe smp 4 -l 'h_rt=1:00:00,gpu=1,h=!n1&!n2,s_rt=3480'" in first
    assert "-t 1-3 " in first
    assert GridEngineScheduler.gpus(profile, "train") == 1
    with pytest.raises(ConfigError, match="hold-jid"):
        GridEngineScheduler.with_options(profile, ["--hold_jid=3"], [])
    with pytest.raises(ConfigError, match="h_rt=60"):
        GridEngineScheduler.with_options(profile, ["--l=h_rt=0:1:00"], [])


def test_a_cluster_is_checked_by_a_job(launch, run: Callable, tmp_path: Path) -> None:
    launch(group="none")
    checked = run("-m", "anml", "clusters", "check", tmp_path / "mine.yml", ANML_EXPERIMENTS=str(tmp_path / "e"))
    assert checked.returncode == 0, checked.stdout
    assert "Grid Engine answers" in checked.stdout
