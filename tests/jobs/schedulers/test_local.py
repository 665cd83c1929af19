"""The machine at hand as a scheduler: order, job limit, failures, cancelling; with plain shell scripts as jobs."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from anml.atomic import write_text
from anml.config.profile import ClusterProfile
from anml.errors import SubmissionError
from anml.experiment import Experiment
from anml.jobs.job_status import read_status
from anml.jobs.plan import Job, Plan
from anml.jobs.process import Process
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

    def another(self) -> LocalScheduler:
        """Return the scheduler of another command."""
        return LocalScheduler(self.experiment, self.scheduler.profile, "disabled")

    def states(self) -> dict[str, str]:
        return {job.name: read_status(self.experiment.job(job.name).status).state for job in self.plan.jobs}

    def order(self) -> list[str]:
        return (self.experiment.root / "order").read_text().split()


def sleeping_job(scripts: Scripts, name: str) -> str:
    """Return a command that sleeps, with the arguments of a job."""
    return f"bash -c 'sleep 60; :' python --run-dir {scripts.experiment.root} --job {name} --wandb disabled"


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


@pytest.mark.parametrize("job_limit", [1, 2])
def test_what_waits_is_looked_at_only_when_another_job_may_start(tmp_path: Path, monkeypatch, job_limit: int) -> None:
    looks, is_ready = list[str](), LocalScheduler._is_ready
    monkeypatch.setattr(
        LocalScheduler, "_is_ready", lambda self, job, plan: looks.append(job.name) or is_ready(self, job, plan)
    )
    Scripts(tmp_path, job_limit).run((job("a"), "sleep 0.5"), (job("b", "a"), "true"))
    assert looks == ["a", "b", "b"]


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
    line = f'echo \'{running}\' | sed "s/\\"pid\\": 0/\\"pid\\": $$/" > {status}; exec {sleeping_job(scripts, "a")}'
    scripts.submit((job("a"), line), (job("b", "a"), ":"), (job("c"), ":"))
    thread = threading.Thread(target=scripts.scheduler.finish, args=(scripts.plan,))
    thread.start()
    wait_until(lambda: "a" in scripts.another().states() and read_status(status).state == "running")
    scripts.another().cancel(["a", "b", "c"])
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert scripts.states() == {"a": "cancelled", "b": "cancelled", "c": "cancelled"}


def test_cancel_ends_a_job_that_is_just_starting(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    started = tmp_path / "started"
    scripts.submit((job("a"), f"touch {started}; sleep 60"))
    thread = threading.Thread(target=scripts.scheduler.finish, args=(scripts.plan,))
    thread.start()
    wait_until(started.exists)
    scripts.another().cancel(["a"])
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert scripts.states() == {"a": "cancelled"}


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
    assert scripts.another().states()["a"][None].is_live


@pytest.fixture
def start() -> Iterator[Callable[[str], int]]:
    """Return a function that starts a command and returns its process id; what still runs at the end is ended."""
    children: list[subprocess.Popen] = []

    def run(command: str) -> int:
        children.append(subprocess.Popen(shlex.split(command), start_new_session=True))
        return children[-1].pid

    yield run
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def record_running(scripts: Scripts, pid: int, **changes: object) -> None:
    """Let job a say that it runs as this process, in the words of an earlier version."""
    record = {"state": "running", "attempt": 1, "host": socket.gethostname(), "pid": pid}
    write_text(scripts.experiment.job("a").status, json.dumps(record | changes))


@pytest.mark.parametrize("whose", ["nobody's", "another experiment's", "another job's", "started later"])
def test_a_stranger_with_the_id_of_a_job_is_neither_waited_for_nor_ended(tmp_path: Path, start, whose: str) -> None:
    scripts = Scripts(tmp_path)
    command = {
        "nobody's": "sleep 60",
        "another experiment's": sleeping_job(Scripts(tmp_path / "other"), "a"),
        "another job's": sleeping_job(scripts, "b"),
        "started later": sleeping_job(scripts, "a"),
    }[whose]
    pid = start(command)
    record_running(scripts, pid)
    if whose == "started later":
        os.utime(scripts.experiment.job("a").status, (1e9, 1e9))
    assert scripts.scheduler.states() == {}
    scripts.scheduler.cancel(["a"])
    time.sleep(0.1)
    assert Process(pid=pid).command_line


def test_a_job_recorded_by_an_earlier_version_is_waited_for_and_ended(tmp_path: Path, start) -> None:
    scripts = Scripts(tmp_path)
    pid = start(sleeping_job(scripts, "a"))
    record_running(scripts, pid)
    wait_until(lambda: "a" in scripts.scheduler.states())
    scripts.scheduler.cancel(scripts.scheduler.live_ids()["a"])
    wait_until(lambda: not Process(pid=pid).command_line)


@pytest.mark.parametrize("state", ["running", "pending"])
def test_what_another_machine_started_is_not_guessed_about(tmp_path: Path, state: str) -> None:
    scripts = Scripts(tmp_path)
    record_running(scripts, os.getpid(), host="laptop", state=state)
    with pytest.raises(SubmissionError, match=rf"a: .*process {os.getpid()} of laptop;"):
        scripts.scheduler.live_ids()
    assert scripts.scheduler.states() == {}


def test_what_fails_between_two_looks_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = Scripts(tmp_path)
    scripts.submit((job("b", "a"), ":"))
    scripts.plan = Plan((job("a"), *scripts.plan.jobs))
    looks = iter(["running"])
    seen = type(scripts.scheduler)._state

    def state(scheduler, name: str, plan: Plan) -> str:
        return next(looks, "failed") if name == "a" else seen(scheduler, name, plan)

    monkeypatch.setattr(type(scripts.scheduler), "_state", state)
    scripts.scheduler.finish(scripts.plan)
    assert scripts.states()["b"] == "skipped"


def test_a_job_of_another_launcher_that_dies_is_not_waited_for_for_ever(tmp_path: Path, start) -> None:
    scripts = Scripts(tmp_path)
    pid = start(sleeping_job(scripts, "a"))
    scripts.submit((job("b", "a"), ":"), (job("r", "a", "b", after_any=True), ":"))
    scripts.plan = Plan((job("a"), *scripts.plan.jobs))
    record_running(scripts, pid)
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    scripts.scheduler.finish(scripts.plan)
    assert (scripts.states()["b"], scripts.states()["r"]) == ("skipped", "done")
