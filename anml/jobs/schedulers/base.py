"""The tiny interface that all schedulers share, and the part of a job's script that is the same everywhere."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from anml.config.profile import ClusterProfile
from anml.experiment import Experiment
from anml.jobs.plan import Job, Plan

# The environment variable that tells an array task its number; the local scheduler sets it as Slurm does.
TASK_VARIABLE = "SLURM_ARRAY_TASK_ID"


@dataclass(frozen=True)
class SchedulerState:
    """What a scheduler says of a job or of one task of it, in its own words."""

    id: str
    state: str
    reason: str = ""

    @property
    def is_live(self) -> bool:
        """Say whether the job still waits or runs."""
        return self.state in (
            "PENDING",
            "RUNNING",
            "CONFIGURING",
            "COMPLETING",
            "SUSPENDED",
            "REQUEUED",
            "REQUEUE_HOLD",
        )


# By job name, then by task (None: not an array).
States: TypeAlias = dict[str, dict[int | None, SchedulerState]]


class Scheduler(Protocol):
    """Renders and runs the jobs of one experiment."""

    def render(self, job: Job) -> str:
        """Return the job's script. Pure."""
        ...

    def command(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> list[str]:
        """Return the command line that submits tasks of a job after the jobs with the given ids. Pure."""
        ...

    def submit(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> str:
        """Submit tasks of a job whose script is written and return their id. Raises SubmissionError."""
        ...

    def finish(self, plan: Plan) -> None:
        """Run what was submitted to its end, where nothing else does (Slurm: nothing to do)."""
        ...

    def states(self) -> States:
        """Return what the scheduler knows of the experiment's jobs. Raises SubmissionError when it cannot be asked."""
        ...

    def live_ids(self) -> dict[str, list[str]]:
        """Return the ids of all that waits or runs, by job name. Raises SubmissionError."""
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
    if profile.scheduler == "slurm" and profile.requeue and job.kind != "report":
        argv += ["--max-requeues", str(profile.max_requeues)]
    lines = [
        # Ignored until python handles it: the warning before the time limit would else end a job that is starting.
        "trap '' USR1",
        # On a machine that others use as well, threads that spin while they wait cost up to four times the speed.
        'export PYTHONUNBUFFERED=1 OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"',
        *profile.setup,
        f"cd {shlex.quote(str(experiment.code))} || exit 1",
    ]
    lines.append(f"exec {shlex.join([profile.python or sys.executable, *argv])}")
    return "\n".join(lines) + "\n"
