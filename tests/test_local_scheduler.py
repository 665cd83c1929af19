"""The machine at hand as a scheduler: order, job limit, failures, cancelling; with plain shell scripts as jobs."""

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import FrameType

import pytest

from anml.atomic import write_text
from anml.config.profile import ClusterProfile
from anml.experiment import Experiment
from anml.jobs.job_status import read_status
from anml.jobs.plan import Job, Plan
from anml.jobs.schedulers.local import LocalScheduler

DONE = '{"state": "done", "attempt": 1}'


class Scripts:
    """Runs jobs whose scripts are given as shell lines; a job that reaches its end says so as a real one does."""

    def __init__(self, root: Path, job_limit: int = 1) -> None:
        self.experiment = Experiment(root / "p" / "g")
        self.scheduler = LocalScheduler(
            self.experiment, ClusterProfile(name="x", scheduler="local", job_limit=job_limit), "disabled"
        )

    def run(self, *jobs: tuple[Job, str]) -> dict[str, str]:
        """Run jobs and return their final states."""
        self.submit(*jobs)
        self.scheduler.finish(self.plan)
        return self.states()

    def submit(self, *jobs: tuple[Job, str]) -> None:
        self.plan = Plan(tuple(job for job, _ in jobs))
        for job, line in jobs:
            folder = self.experiment.job(job.name)
            own = f"{folder.root}/${{SLURM_ARRAY_TASK_ID:+$(printf 'task-%04d/' $SLURM_ARRAY_TASK_ID)}}"
            log = self.experiment.root / "order"
            write_text(folder.script, f"{line}\necho {job.name} >> {log}\necho '{DONE}' > {own}status.json\n")
            self.scheduler.submit(job, job.after, job.task_numbers)

    def states(self) -> dict[str, str]:
        return {job.name: read_status(self.experiment.job(job.name).status).state for job in self.plan.jobs}

    def order(self) -> list[str]:
        return (self.experiment.root / "order").read_text().split()


def job(name: str, *after: str, **options: object) -> Job:
    return Job(name, "train", (), after, **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anml.jobs.schedulers.local.POLL_SECONDS", 0.01)


def test_jobs_run_in_dependency_order(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path, job_limit=3)
    scripts.run((job("a"), "sleep 0.2"), (job("b", "a"), "sleep 0.1"), (job("c", "b"), ":"))
    assert scripts.order() == ["a", "b", "c"]


def test_job_limit_holds(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path, job_limit=2)
    times = f"date +'%s.%N 1' >> {tmp_path}/times; sleep 0.3; date +'%s.%N -1' >> {tmp_path}/times"
    scripts.run(*[(job(name), times) for name in "abcde"])
    events = sorted(tuple(map(float, line.split())) for line in (tmp_path / "times").read_text().splitlines())
    running = [sum(change for _, change in events[: i + 1]) for i in range(len(events))]
    assert max(running) == 2


def test_dependents_of_a_failed_job_are_skipped_and_the_report_still_runs(tmp_path: Path) -> None:
    states = Scripts(tmp_path).run(
        (job("a"), "exit 3"), (job("b", "a"), ":"), (job("c", "b"), ":"), (job("r", "a", "b", "c", after_any=True), ":")
    )
    assert states == {"a": "failed", "b": "skipped", "c": "skipped", "r": "done"}


def test_death_by_signal_is_named(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    scripts.run((job("a"), "kill -9 $$"))
    assert read_status(scripts.experiment.job("a").status).message == "killed by SIGKILL"


def test_every_task_of_an_array_runs_with_its_number(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path, job_limit=2)
    scripts.run((job("a", tasks=3), f"echo $SLURM_ARRAY_TASK_ID >> {tmp_path}/tasks"))
    assert sorted((tmp_path / "tasks").read_text().split()) == ["0", "1", "2"]


def test_array_with_a_failed_task_has_failed(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    states = scripts.run((job("a", tasks=2), '[ "$SLURM_ARRAY_TASK_ID" = 0 ] || exit 1'), (job("b", "a"), ":"))
    assert states["b"] == "skipped"


def test_log_is_appended_when_a_job_runs_again(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    for _ in range(2):
        scripts.run((job("a"), "echo hello"))
    assert scripts.experiment.job("a").log.read_text() == "hello\nhello\n"


def test_cancel_ends_what_runs_and_what_waits(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    running = json.dumps({"state": "running", "host": socket.gethostname(), "pid": 0})
    status = scripts.experiment.job("a").status
    line = f'echo \'{running}\' | sed "s/\\"pid\\": 0/\\"pid\\": $$/" > {status}; sleep 60'
    scripts.submit((job("a"), line), (job("b", "a"), ":"), (job("c"), ":"))
    thread = threading.Thread(target=scripts.scheduler.finish, args=(scripts.plan,))
    thread.start()
    deadline = time.monotonic() + 20
    while read_status(status).state != "running" and time.monotonic() < deadline:
        time.sleep(0.02)
    LocalScheduler(scripts.experiment, scripts.scheduler.profile, "disabled").cancel(["a", "b", "c"])
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert scripts.states() == {"a": "cancelled", "b": "cancelled", "c": "cancelled"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["ended", "terminal closed"])
def test_a_launcher_that_is_ended_lets_its_jobs_save_their_work(tmp_path: Path, number: signal.Signals) -> None:
    scripts = Scripts(tmp_path)
    started, saved = tmp_path / "started", tmp_path / "saved"
    line = f"trap 'touch {saved}; exit 75' TERM; touch {started}; for i in $(seq 50); do sleep 0.1; done"
    scripts.submit((job("a"), line), (job("b", "a"), ":"))

    def end_launcher() -> None:
        deadline = time.monotonic() + 20
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    def ignore(_: int, frame: FrameType | None) -> None:
        """Stand for what the signal does otherwise, which is to end the tests."""

    before = signal.signal(number, ignore)
    try:
        threading.Thread(target=end_launcher).start()
        with pytest.raises(KeyboardInterrupt):
            scripts.scheduler.finish(scripts.plan)
        assert signal.getsignal(number) is ignore
    finally:
        signal.signal(number, before)
    assert saved.exists()
    assert scripts.states()["b"] == "pending"


def test_second_launcher_sees_what_the_first_has_queued(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    scripts.submit((job("a"), ":"))
    again = LocalScheduler(scripts.experiment, scripts.scheduler.profile, "disabled")
    assert again.states()["a"][None].is_live
