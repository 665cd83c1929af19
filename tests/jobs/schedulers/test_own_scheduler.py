"""A scheduler from outside the package: a class in a file, which a profile names. Its jobs are real processes."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from anml.config.profile import PROFILES, load_profile
from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.launch import Launch, create_experiment
from anml.jobs.plan import Job, Plan
from anml.jobs.schedulers import scheduler_class
from anml.jobs.submission import run_launch

BACKGROUND = '''
import os, signal
from anml.jobs.schedulers import Scheduler, SchedulerState

WAIT = """
for id in {after}; do
  while [ ! -e {queue}/$id.code ]; do sleep 0.05; done
  {any} || [ "$(cat {queue}/$id.code)" = 0 ] || {{ echo 1 > $ID.code; exit; }}
done
code=0
for task in {tasks}; do BACKGROUND_TASK=${{task#none}} bash {script} >> $ID.log 2>&1 || code=1; done
echo $code > $ID.code
"""


class Background(Scheduler):
    task_variable = "BACKGROUND_TASK"

    def command(self, job, after, tasks):
        numbers = " ".join("none" if task is None else str(task) for task in tasks)
        script = self.experiment.job(job.name).script
        queue = self.experiment.root / "queue"
        any_ = "true" if job.after_any else "false"
        values = {"after": " ".join(after), "any": any_, "tasks": numbers, "script": script, "queue": queue}
        return ["bash", "-c", WAIT.format(**values)]

    def submit(self, job, after, tasks):
        queue = self.experiment.root / "queue"
        queue.mkdir(exist_ok=True)
        id_ = f"{job.name}.{len(list(queue.glob('*.pid')))}"
        environment = os.environ | {"ID": str(queue / id_)}
        pid = os.posix_spawnp("bash", self.command(job, after, tasks), environment, setsid=True)
        (queue / f"{id_}.pid").write_text(str(pid))
        return id_

    def queue(self):
        for file in (self.experiment.root / "queue").glob("*.pid"):
            if not file.with_suffix(".code").exists():
                yield file.stem.rpartition(".")[0], None, SchedulerState(file.stem, "running")

    def cancel(self, ids):
        for id_ in ids:
            file = self.experiment.root / "queue" / f"{id_}.pid"
            os.killpg(int(file.read_text()), signal.SIGTERM)
            file.with_suffix(".code").write_text("1")
'''

WORK = """
import sys, time
from pathlib import Path
from anml.errors import DataError
from anml.experiment import Experiment
from anml.jobs.job import array_task, run_job

root, name = (sys.argv[sys.argv.index(option) + 1] for option in ("--run-dir", "--job"))

def work(context):
    if array_task() == 1 and not Path(root, "mended").exists():
        raise DataError("no data here")
    while name == "slow" and not context.stop():
        time.sleep(0.05)
    return not context.stop()

sys.exit(run_job(Experiment(Path(root)), name, array_task(), work))
"""


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    (tmp_path / "background.py").write_text(BACKGROUND)
    path = tmp_path / "mine.yml"
    path.write_text("scheduler: ./background.py:Background\ndevice: cpu\n")
    return path


@pytest.fixture
def launch(tmp_path: Path, profile: Path) -> Callable[..., Experiment]:
    """Launch jobs with the profile."""

    def run(*jobs: Job) -> Experiment:
        experiment = Experiment(tmp_path / "experiments" / "p" / "g")
        config = TrainConfig(dataset="glyphs", model="anml", project="p", group="g")
        chosen = load_profile(str(profile), PROFILES)
        decided = Launch(config, experiment, chosen, "disabled", Plan(jobs))
        create_experiment(decided, experiment.root.parent.parent)
        run_launch(decided)
        return experiment

    return run


def status(experiment: Experiment, name: str, task: int | None = None) -> dict:
    file = experiment.job(name, task).status
    return json.loads(file.read_text()) if file.exists() else {"state": ""}


def wait_for(experiment: Experiment, name: str, state: str) -> None:
    deadline = time.monotonic() + 60
    while status(experiment, name)["state"] != state:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_launch_fails_and_is_completed_by_retry(launch, run: Callable) -> None:
    argv = ("-c", WORK)
    sweep = Job("sweep", "evaluate", argv, ("train",), tasks=2)
    report = Job("report", "report", argv, ("train", "sweep"), after_any=True)
    experiment = launch(Job("train", "train", argv), sweep, report)
    wait_for(experiment, "report", "done")
    shown = run("-m", "anml", "status", experiment.root)
    assert (shown.returncode, "no data here" in shown.stdout) == (1, True)
    (experiment.root / "mended").touch()
    again = run("-m", "anml", "retry", experiment.root)
    assert again.returncode == 0
    assert [line.split()[1] for line in again.stdout.splitlines() if line.startswith("  ")] == ["sweep", "report"]
    deadline = time.monotonic() + 60
    while status(experiment, "report")["attempt"] < 2 or status(experiment, "report")["state"] != "done":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert run("-m", "anml", "status", experiment.root).returncode == 0
    assert [status(experiment, "sweep", task)["attempt"] for task in (0, 1)] == [1, 2]
    assert status(experiment, "train")["attempt"] == 1


def test_a_running_job_is_cancelled(launch, run: Callable) -> None:
    experiment = launch(Job("slow", "train", ("-c", WORK)))
    wait_for(experiment, "slow", "running")
    assert "slow" in run("-m", "anml", "cancel", experiment.root).stdout
    wait_for(experiment, "slow", "interrupted")


def test_a_dry_run_shows_its_scripts_and_other_options_are_refused(run: Callable, profile: Path, experiments) -> None:
    arguments = ("launch_train.py", "-c", "configs/quickstart.yml", "--project", "p", "--cluster", profile, "--dry-run")
    shown = run(*arguments)
    assert (shown.returncode, f"ANML_SCHEDULER={profile.parent}/background.py:Background" in shown.stdout) == (0, True)
    refused = run(*arguments, "--mem=3G")
    assert (refused.returncode, "--mem=3G" in refused.stderr) == (2, True)


def test_queued_jobs_and_commands_use_the_copy_of_its_file(launch, profile: Path, run: Callable) -> None:
    experiment = launch(Job("train", "train", ("-c", WORK)))
    (profile.parent / "background.py").write_text("raise RuntimeError")
    assert (experiment.code / "user_code" / "background.py").read_text() == BACKGROUND
    wait_for(experiment, "train", "done")
    (profile.parent / "background.py").unlink()
    assert run("-m", "anml", "status", experiment.root).returncode == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Mine = 3", ["mine.py:Mine", "anml.jobs.schedulers.Scheduler"]),
        (
            "from anml.jobs.schedulers import Scheduler\nclass Mine(Scheduler): pass",
            ["mine.py:Mine", "cancel, command, queue, submit, task_variable"],
        ),
        ("", ["mine.py", "Mine"]),
    ],
)
def test_a_class_that_is_no_scheduler_is_refused_with_what_is_missing(tmp_path: Path, text: str, words: list) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        scheduler_class(f"{tmp_path}/mine.py:Mine")
    assert all(word in str(caught.value) for word in words)
