"""Two launches never submit one experiment at once, and one that was killed stands in nobody's way."""

import json
import os
import socket
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from anml.config.profile import ClusterProfile
from anml.config.training import TrainConfig
from anml.errors import SubmissionError
from anml.experiment import Experiment
from anml.jobs.launch import Launch
from anml.jobs.plan import Plan
from anml.jobs.submission import run_launch
from anml.process import this_process


def launch(root: Path) -> None:
    """Submit an experiment that has no jobs."""
    config = TrainConfig(dataset="glyphs", model="anml")
    run_launch(Launch(config, Experiment(root), ClusterProfile(name="x", scheduler="local"), "disabled", Plan(())))


def ended() -> int:
    """Return the id of a process that has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


@pytest.mark.parametrize(
    "changes", [{"pid_started": 1.0}, {"boot": "another"}, {"pid_started": 0.0, "boot": "", "pid": "ended"}],
    ids=["its id is another's now", "restarted", "earlier version"],
)  # fmt: skip
def test_the_lock_of_a_launch_that_was_killed_is_taken_over(tmp_path: Path, changes: dict) -> None:
    changes = {name: ended() if value == "ended" else value for name, value in changes.items()}
    lock = tmp_path / ".submitting.json"
    lock.write_text(json.dumps(asdict(replace(this_process(), **changes))))
    launch(tmp_path)
    assert not lock.exists()


@pytest.mark.parametrize("owner", [None, {"host": "laptop", "pid": 4242}, "earlier version"])
def test_a_launch_waits_for_no_other_and_names_its_owner(tmp_path: Path, owner: dict | str | None) -> None:
    record = owner or asdict(this_process())
    if owner == "earlier version":
        record = {"host": socket.gethostname(), "pid": os.getpid()}
    lock = tmp_path / ".submitting.json"
    lock.write_text(json.dumps(record))
    with pytest.raises(SubmissionError, match=rf"process {record['pid']} on {record['host']}"):  # type: ignore[index]
        launch(tmp_path)
    assert lock.exists()
