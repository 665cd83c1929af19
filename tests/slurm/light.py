"""Light jobs on the development cluster: they do nothing until they are let go, so that tests can watch them."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from anml.config.profile import PROFILES, load_profile
from anml.config.training import TrainConfig
from anml.experiment import Experiment
from anml.jobs.launch import Launch, create_experiment
from anml.jobs.plan import Job, Plan
from anml.jobs.schedulers.slurm import SlurmScheduler
from anml.jobs.status import read_jobs
from anml.jobs.submission import run_launch
from tests.slurm.bench import REPOSITORY

# A job that runs until it is let go, or asked to end.
WORK = """
import os, sys, time
from pathlib import Path
from anml.experiment import Experiment
from anml.jobs.job import array_task, run_job

root, name = (sys.argv[sys.argv.index(option) + 1] for option in ("--run-dir", "--job"))

def work(context):
    while not Path(root, "go").exists() and not context.stop():
        with Path(root, "order").open("a") as order:
            print(os.getpid(), file=order)
        time.sleep(0.05)
    time.sleep(3 * Path(root, "slow to end").exists())
    return not context.stop()

task = array_task() if "--points-per-job" in sys.argv else None
sys.exit(run_job(Experiment(Path(root)), name, task, work, max_requeues=5))
"""
TRAIN = Job("train", "train", ("-c", WORK))
SWEEP = Job("sweep", "evaluate", ("-c", WORK, "--points-per-job", "1"), ("train",), tasks=3)
REPORT = Job("report", "report", ("-c", WORK), ("train", "sweep"), after_any=True)


class Cluster:
    """Launches a plan of light jobs in this process, and watches them; commands may be replaced by wrappers."""

    def __init__(self, env: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.env, self.folder, self.monkeypatch = env, folder, monkeypatch
        self.experiment = Experiment(folder / "experiments" / "p" / "g")
        self.profile = load_profile(str(REPOSITORY / "slurm/dev-cluster/dggpu.yml"), PROFILES)

    def launch(self, *jobs: Job) -> dict[str, str]:
        """Launch, or launch again; returns the ids of what was submitted."""
        config = TrainConfig(dataset="glyphs", model="anml", project="p", group="g")
        decided = Launch(config, self.experiment, self.profile, "disabled", Plan(jobs))
        create_experiment(decided, self.folder / "experiments")
        submitted: dict[str, str] = {}
        run_launch(decided, submitted.update)
        return submitted

    @property
    def scheduler(self) -> SlurmScheduler:
        return SlurmScheduler(self.experiment, self.profile, "disabled")

    def states(self) -> dict[str, str]:
        return {outcome.label: outcome.state for outcome in read_jobs(self.experiment, self.scheduler)}

    def slurm(self, *command: str) -> str:
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=True).stdout

    def ids(self) -> list[str]:
        """Return the ids of the experiment's jobs, as Slurm lists them."""
        rows = self.slurm("squeue", "--all", "--states=all", "--noheader", "--format=%F|%j").split()
        ours = {id_ for id_, name in (row.split("|") for row in rows) if name.endswith(self.scheduler.mark)}
        return sorted(ours, key=int)

    def let_go(self) -> None:
        (self.experiment.root / "go").touch()

    def wait(self, condition: Callable[[], object], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.slurm("squeue", "--all", "--states=all")
            time.sleep(0.2)

    def wait_for(self, name: str, state: str) -> None:
        self.wait(lambda: self.status(name).get("state") == state)

    def status(self, name: str) -> dict:
        file = self.experiment.job(name).status
        return json.loads(file.read_text()) if file.exists() else {}

    def wrap(self, command: str, *lines: str) -> None:
        """Put a script in the place of a command; $REAL is the command itself."""
        script = self.folder / "bin" / command
        script.parent.mkdir(exist_ok=True)
        real = f"REAL={shutil.which(command, path=self.env['PATH'])}"
        script.write_text("\n".join(["#!/bin/bash", real, *lines, ""]))
        script.chmod(0o755)
        self.monkeypatch.setenv("PATH", f"{script.parent}:{self.env['PATH']}")
