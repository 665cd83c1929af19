"""The tiny interface that all schedulers share, and the part of a job's script that is the same everywhere."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from anml.config.profile import ClusterProfile
from anml.experiment import Experiment
from anml.plan import Job, Plan

# The environment variable that tells an array task its number; the local scheduler sets it as Slurm does.
TASK_VARIABLE = "SLURM_ARRAY_TASK_ID"


@dataclass(frozen=True)
class SchedulerState:
    """What a scheduler says of a job. state: its own word, "" when it does not know the job (any more)."""

    state: str = ""
    reason: str = ""


class Scheduler(Protocol):
    """Renders and runs jobs."""

    def render(self, job: Job) -> str:
        """Return the job's script. Pure."""
        ...

    def command(self, job: Job, after: Sequence[str]) -> list[str]:
        """Return the command line that submits the job after the jobs with the given ids. Pure."""
        ...

    def submit(self, job: Job, after: Sequence[str]) -> str:
        """Submit a job whose script is written and return its id. Raises SubmissionError."""
        ...

    def finish(self, plan: Plan) -> None:
        """Run what was submitted to its end, where nothing else does (Slurm: nothing to do)."""
        ...

    def states(self, ids: Mapping[str, str]) -> dict[str, dict[int | None, SchedulerState]]:
        """Return the states of the jobs with the given ids: by job name and task."""
        ...

    def cancel(self, ids: Sequence[str]) -> None:
        """End jobs."""
        ...


def script_body(job: Job, experiment: Experiment, profile: ClusterProfile, wandb_mode: str) -> str:
    """Return the shell lines that run a job out of the experiment's own copy of the code.

    `exec` puts python in the shell's place, so that signals from the scheduler reach it.
    """
    run_dir = str(experiment.root)
    argv = [*job.argv, "--run-dir", run_dir, "--job", job.name, "--cluster-device", profile.device]
    argv += ["--wandb", wandb_mode, "--min-free-gb", f"{profile.min_free_gb:g}"]
    lines = [*profile.setup, "export PYTHONUNBUFFERED=1", f"cd {shlex.quote(str(experiment.code))} || exit 1"]
    lines.append(f"exec {shlex.join([profile.python or sys.executable, *argv])}")
    return "\n".join(lines) + "\n"
