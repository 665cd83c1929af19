"""Two launches never submit one experiment at once, and one that was killed stands in nobody's way."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from anml.config.profile import ClusterProfile
from anml.config.training import TrainConfig
from anml.errors import SubmissionError
from anml.experiment import Experiment
from anml.jobs.launch import Launch
from anml.jobs.plan import Plan
from anml.jobs.process import this_process
from anml.jobs.submission import one_at_a_time, run_launch

# Goes in many times, and now and then is killed inside. Exit code 1: another was inside, too.
LAUNCHER = """
import os, random, sys, time
from pathlib import Path
from anml.errors import SubmissionError
from anml.experiment import Experiment
from anml.jobs.submission import one_at_a_time

root, inside, entered = Path(sys.argv[1]), Path(sys.argv[1], "inside"), 0
while entered < 50:
    try:
        with one_at_a_time(Experiment(root)):
            try:
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                sys.exit(1)
            time.sleep(random.random() / 1000)
            inside.unlink()
            entered += 1
            if random.random() < 0.1 and os.fork() == 0:
                os._exit(0)  # A child that ends does not end the hold.
    except SubmissionError as error:
        if "process" not in str(error):
            raise
os.kill(os.getpid(), 9) if os.getpid() % 2 else None
"""


def launch(root: Path) -> None:
    """Submit an experiment that has no jobs."""
    config = TrainConfig(dataset="glyphs", model="anml")
    run_launch(Launch(config, Experiment(root), ClusterProfile(name="x", scheduler="local"), "disabled", Plan(())))


def test_of_several_launchers_one_is_inside(tmp_path: Path) -> None:
    launchers = [subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path)]) for _ in range(4)]
    assert {launcher.wait(timeout=60) for launcher in launchers} <= {0, -9}


def test_a_second_launch_is_refused_and_names_the_owner(tmp_path: Path) -> None:
    owner = this_process()
    refused = pytest.raises(SubmissionError, match=rf"process {owner.pid} on {owner.host}")
    with one_at_a_time(Experiment(tmp_path)), refused:
        launch(tmp_path)
    launch(tmp_path)


def test_the_lock_of_a_launch_that_was_killed_is_free(tmp_path: Path) -> None:
    """Also where the owner's process cannot be looked up: on another machine, in another container."""
    (tmp_path / ".submitting.json").write_text(json.dumps(asdict(this_process()) | {"host": "laptop", "pid": 4242}))
    (tmp_path / ".submitting.lock").touch()
    launch(tmp_path)
    assert not (tmp_path / ".submitting.json").exists()
