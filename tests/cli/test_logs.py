"""`python -m anml logs`: what jobs print, without looking for the file."""

import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from anml.config.profile import ClusterProfile
from anml.experiment import Experiment
from anml.jobs.job_status import JobStatus, write_status
from anml.jobs.launch import Launch, record
from anml.jobs.plan import Job, Plan
from anml.jobs.process import this_process
from tests.report.conftest import SMALL, start_experiment


@pytest.fixture
def experiment(experiments: Path) -> Experiment:
    """Return an experiment of a training, and of an evaluation in two tasks, with logs."""
    builder = start_experiment(experiments / "p" / "g", SMALL)
    plan = Plan((Job("train", "train", ()), Job("olft", "evaluate", (), ("train",), tasks=2)))
    profile = ClusterProfile(name="x", scheduler="local")
    record(Launch(builder.config, builder.experiment, profile, "disabled", plan), {})
    for name, task in (("train", None), ("olft", 0), ("olft", 1)):
        folder = builder.experiment.job(name, task)
        write_status(folder.status, JobStatus("done"))
        folder.log.write_text("".join(f"{name} {task} line {number}\n" for number in range(30)))
    return builder.experiment


@pytest.mark.parametrize(
    ("job", "shown"),
    [("train", ["train None"] * 30), ("olft[1]", ["olft 1"] * 30), ("olft", ["olft 0", "olft 1"] * 30)],
)
def test_the_log_of_a_job_or_task_is_printed_whole(command, experiment, job: str, shown: list[str]) -> None:
    printed = command("logs", "p/g", job)
    lines = [line.partition(" line")[0] for line in printed.out.splitlines() if " line " in line]
    assert (printed.code, sorted(lines)) == (0, sorted(shown))


def test_without_a_job_the_end_of_every_log_is_printed(command, experiment) -> None:
    printed = command("logs", "p/g").out
    assert [f"==> {label}: " in printed for label in ("train", "olft[0]", "olft[1]")] == [True] * 3
    assert (printed.count("line 29"), printed.count("line 2\n")) == (3, 0)


def test_a_job_that_is_not_there_is_told_with_those_there_are(command, experiment) -> None:
    printed = command("logs", "p/g", "trian")
    assert (printed.code, "did you mean 'train'" in printed.err) == (2, True)


def test_a_log_is_followed_until_its_job_has_ended(command, experiment, monkeypatch) -> None:
    monkeypatch.setattr("anml.cli.logs.ASK_SECONDS", 0.2)
    monkeypatch.setattr("anml.cli.logs.READ_SECONDS", 0.05)
    folder = experiment.job("train")
    write_status(folder.status, JobStatus("running", updated=time.time(), **asdict(this_process())))

    def go_on() -> None:
        time.sleep(0.5)
        with folder.log.open("a") as log:
            log.write("the last word\n")
        write_status(folder.status, JobStatus("done"))

    job = threading.Thread(target=go_on)
    job.start()
    printed = command("logs", "p/g", "train", "-f").out
    job.join()
    assert printed.splitlines()[-2:] == ["train None line 29", "the last word"]
