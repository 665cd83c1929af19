"""What the end of a local launch tells a person."""

import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from anml.cli import launch as cli_launch
from anml.experiment import Experiment
from anml.jobs.job_status import JobStatus, write_status
from anml.jobs.plan import Job, Plan


@pytest.mark.parametrize(("state", "told"), [("running", True), ("interrupted", False)])
def test_a_stopped_launcher_tells_of_what_goes_on_without_it(tmp_path, monkeypatch, capsys, state, told):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    experiment = Experiment(tmp_path / "p" / "g")
    write_status(experiment.job("a").status, JobStatus(state, host=socket.gethostname(), pid=os.getpid()))
    plan = Plan((Job("a", "train", (), ()), Job("b", "train", (), ("a",))))
    launch: Any = SimpleNamespace(experiment=experiment, plan=plan, profile=SimpleNamespace(scheduler="local"))
    monkeypatch.setattr(cli_launch, "run_launch", stop)
    with pytest.raises(KeyboardInterrupt):
        cli_launch.run_and_report(launch)
    assert ("Not stopped, another launcher started it: a. " in capsys.readouterr().out) == told
