"""Weights & Biases: one group per launch, one run per training and per evaluation job.

The local files (metrics/*.jsonl, results/*.csv) are the truth; W&B receives a copy. The mode is decided once, at
launch: a process whose online start has failed cannot log offline either.
"""

import hashlib
import netrc
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from anml.atomic import read_json
from anml.config.profile import WandbMode
from anml.config.training import TrainConfig
from anml.experiment import Experiment

# How long to wait for the W&B service before going on without it.
INIT_TIMEOUT_SECONDS = 60.0


def default_mode() -> WandbMode:
    """Return the mode when none is asked for: WANDB_MODE, else online where an account is set up, else offline."""
    wanted = os.environ.get("WANDB_MODE", "")
    if wanted in ("online", "offline", "disabled"):
        return wanted
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    file = os.environ.get("NETRC", str(Path("~/.netrc").expanduser()))
    has_login = False
    with suppress(OSError, netrc.NetrcParseError):
        has_login = netrc.netrc(file).authenticators(host) is not None
    return "online" if os.environ.get("WANDB_API_KEY") or has_login else "offline"


class Tracker:
    """One W&B run, whose id follows from the launch and its name: a requeued or resumed job continues its own run."""

    def __init__(self, experiment: Experiment, config: TrainConfig, name: str, job_type: str, mode: WandbMode) -> None:
        self.run = None
        if mode == "disabled":
            return
        import wandb  # Takes a second and a half.

        # By the launch, because another machine may have a group of the same name.
        launch = read_json(experiment.environment_file).get("launch_id", str(experiment.root))
        experiment.wandb_dir.mkdir(parents=True, exist_ok=True)
        try:
            self.run = wandb.init(
                project=experiment.project,
                entity=config.entity,
                group=experiment.group,
                job_type=job_type,
                name=f"{experiment.group}/{name}",
                id=hashlib.sha256(f"{launch}/{name}".encode()).hexdigest()[:16],
                resume="allow" if mode == "online" else None,
                config=config.model_dump(mode="json"),
                dir=experiment.wandb_dir,
                reinit="create_new",  # Trainings of one process have a run each.
                mode=mode,
                settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_SECONDS),
            )
        except wandb.Error as error:
            # The job goes on: W&B holds copies only. In offline mode this process would fail too.
            print(f"W&B cannot be reached ({error}); going on without it. The local files are complete.", flush=True)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log values at a step. The step is always explicit: offline, wandb counts from 0 again after a resume."""
        if self.run is not None:
            self.run.log(values, step=step)

    def catch_up(self, lines: Iterable[dict[str, Any]]) -> None:
        """Log the lines of earlier jobs that this run lacks: one that was killed has not passed on its latest."""
        first = self.run.step if self.run else 0
        for line in lines:
            if line["step"] >= first:
                self.log({key: value for key, value in line.items() if key != "step"}, line["step"])

    def summary(self, values: dict[str, Any]) -> None:
        if self.run is not None:
            self.run.summary.update(values)

    def finish(self, exit_code: int = 0) -> None:
        """End the run and wait until its files are written (or sent)."""
        if self.run is not None:
            self.run.finish(exit_code=exit_code)
