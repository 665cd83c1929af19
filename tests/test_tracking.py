"""Real wandb in offline and disabled mode. Online is the same call with another mode; no test talks to the service."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anml.config.training import TrainConfig
from anml.experiment import Experiment
from anml.tracking import Tracker, default_mode

CONFIG = TrainConfig(dataset="glyphs", model="anml", entity=None)

LOG_TWICE = """
import sys
from pathlib import Path
from anml.config.training import TrainConfig
from anml.experiment import Experiment
from anml.tracking import Tracker
config = TrainConfig(dataset="glyphs", model="anml")
tracker = Tracker(Experiment(Path(sys.argv[1])), config, "train", "train", "offline")
tracker.log({"loss": 1.5}, step=int(sys.argv[2]))
tracker.summary({"best_test_acc": 0.75})
tracker.finish()
print(tracker.run.id, tracker.run.group, tracker.run.job_type, tracker.run.project)
"""


def log_in_a_process(root: Path, step: int) -> list[str]:
    """Log one value as a job does, in a process of its own; return what wandb calls the run."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", LOG_TWICE, str(root), str(step)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return done.stdout.split()[-4:]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    experiment = Experiment(tmp_path / "my-project" / "brave-otter-1")
    experiment.root.mkdir(parents=True)
    experiment.environment_file.write_text(json.dumps({"launch_id": "f00d"}))
    return experiment


def test_offline_run_carries_group_job_type_and_project(experiment: Experiment) -> None:
    _, group, job_type, project = log_in_a_process(experiment.root, 10)
    assert (group, job_type, project) == ("brave-otter-1", "train", "my-project")
    assert len(list(experiment.wandb_dir.glob("wandb/offline-run-*/run-*.wandb"))) == 1


@pytest.mark.slow
def test_requeued_job_continues_its_own_run(experiment: Experiment) -> None:
    first, second = log_in_a_process(experiment.root, 10)[0], log_in_a_process(experiment.root, 20)[0]
    assert first == second


def test_disabled_mode_does_not_import_wandb(experiment: Experiment) -> None:
    script = LOG_TWICE.replace('"offline"', '"disabled"').split("print(")[0] + "print('wandb' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(experiment.root), "1"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_disabled_tracker_accepts_everything(experiment: Experiment) -> None:
    tracker = Tracker(experiment, CONFIG, "train", "train", "disabled")
    tracker.log({"loss": 1.0}, step=1)
    tracker.finish()
    assert tracker.run is None


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_environment_variable_chooses_the_mode(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    assert default_mode() == mode


def test_without_an_account_the_mode_is_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert default_mode() == "offline"


def test_with_a_login_the_mode_is_online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert default_mode() == "online"


@pytest.mark.slow
def test_service_that_cannot_be_reached_costs_no_training(experiment: Experiment) -> None:
    script = "import anml.tracking; anml.tracking.INIT_TIMEOUT_SECONDS = 4.0\n" + LOG_TWICE.replace("offline", "online")
    script = script.split("print(")[0] + "print('went on', tracker.run)"
    environment = os.environ | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    done = subprocess.run(
        [sys.executable, "-c", script, str(experiment.root), "1"],
        capture_output=True, text=True, check=False, env=environment, timeout=120,
    )  # fmt: skip
    assert "W&B cannot be reached" in done.stdout
    assert "went on None" in done.stdout
