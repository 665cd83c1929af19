"""What a scheduler is, and which one a profile names. A backend is one class in a file beside this one.

The table of backends is `config.profile.SCHEDULERS`; a user's own is `scheduler: ./FILE.py:CLASS` in a profile.
"""

import math
import os
import shlex
import shutil
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from anml.atomic import LATENCY_VARIABLE, read_json
from anml.config.profile import SCHEDULERS, ClusterProfile, SbatchOptions
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.containers import python_lines
from anml.jobs.job_status import ENDED, read_status
from anml.jobs.plan import Job, JobKind, Plan
from anml.plugins import find_part

# With it, a job script tells python which scheduler runs the job.
SCHEDULER_VARIABLE = "ANML_SCHEDULER"

# skipped: a job that it needs did not succeed. waiting in vain: the same, but the scheduler keeps it. ending: its
# processes are on their way out.
Phase: TypeAlias = Literal[
    "waiting", "waiting in vain", "running", "ending", "completed", "cancelled", "skipped", "failed"
]


@dataclass(frozen=True)
class SchedulerState:
    """What a scheduler says of a job or of one task of it. words: the scheduler's own, for people. user: its owner."""

    id: str
    phase: Phase
    words: str = ""
    user: str = ""

    @property
    def is_live(self) -> bool:
        return self.phase in ("waiting", "waiting in vain", "running", "ending")


# What a queue has: name of the job, task (None: not an array), state.
Entry: TypeAlias = tuple[str, int | None, SchedulerState]
# By job name, then by task.
States: TypeAlias = dict[str, dict[int | None, SchedulerState]]


@dataclass(frozen=True)
class CheckResult:
    """What the check of one property of a cluster has found."""

    ok: bool
    what: str


class Scheduler(ABC):
    """Renders and runs the jobs of one experiment.

    Before the time limit, a scheduler that can warn sends SIGUSR1: a training then saves its work, and calls `requeue`.
    """

    # The environment variable that tells an array task its number.
    task_variable: ClassVar[str]
    # Whether the launch runs the jobs itself, in `finish`, and waits for their end.
    runs_here: ClassVar[bool] = False
    # Whether `states` no longer names a job that has ended.
    forgets_ended_jobs: ClassVar[bool] = False
    # Whether `requeue` works.
    can_requeue: ClassVar[bool] = False
    # So many jobs that differ in their training alone are submitted by `submit_array`.
    array_from: ClassVar[float] = math.inf

    def __init__(self, experiment: Experiment, profile: ClusterProfile, wandb_mode: str) -> None:
        self.experiment, self.profile, self.wandb_mode = experiment, profile, wandb_mode
        # Set when somebody wants the launcher to stop: `submit` must not wait any longer.
        self.stop = threading.Event()
        # By name of a job: the options of its retries, on top of the profile's.
        self.job_options: dict[str, SbatchOptions] = {}
        # By name of a job: which copy of the code it runs, if it is not the first.
        self.snapshots: dict[str, str] = {}

    @abstractmethod
    def command(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> list[str]:
        """Return the command line that submits tasks of a job after the jobs with the given ids. Pure."""

    @abstractmethod
    def submit(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> str:
        """Submit tasks of a job whose script is written and return their id. Raises SubmissionError."""

    def submit_array(self, jobs: Mapping[int, Job], after: str) -> dict[str, str]:
        """Submit jobs, whose scripts are written, as tasks of one array, by their numbers; return their ids by name.

        after: the id of another such array: each waits for the success of the task with its number. "": of nothing.
        Raises SubmissionError.
        """
        raise NotImplementedError

    @abstractmethod
    def queue(self) -> Iterable[Entry]:
        """Yield name, task and state of the experiment's jobs, the newest last. Raises SubmissionError."""

    @abstractmethod
    def cancel(self, ids: Sequence[str]) -> None:
        """End jobs. Raises SubmissionError when they go on."""

    def render(self, job: Job) -> str:
        """Return the job's script. Pure."""
        return f"#!/bin/bash\n{self.script_body(job)}"

    def states(self, queue: Iterable[Entry] | None = None) -> States:
        """Return the state of every task in the queue; of a task that was submitted twice, the newer that lives."""
        states: States = {}
        for name, task, state in sorted(self.queue() if queue is None else queue, key=lambda entry: entry[2].is_live):
            states.setdefault(name, {})[task] = state
        return states

    def live_ids(self, queue: Iterable[Entry] | None = None) -> dict[str, list[str]]:
        """Return the ids of all that waits or runs, by job name; double submissions have several."""
        ids: dict[str, list[str]] = {}
        queue = self.queue() if queue is None else queue
        for name, id_ in dict.fromkeys((name, state.id) for name, _, state in queue if state.is_live):
            ids.setdefault(name, []).append(id_)
        return ids

    def recorded_ids(self) -> dict[str, str]:
        """Return the job's name by each id in plan.json; what `submit` returned may be several, with commas."""
        submitted = read_json(self.experiment.plan_file).get("submitted", {})
        return {id_: name for name, job in submitted.items() for id_ in job["id"].split(",")}

    def may_live(self, name: str) -> bool:
        """Say whether a task of a job has not written how it ended."""
        files = list(self.experiment.job(name).root.rglob("status.json"))
        return not files or any(read_status(file).state not in ENDED for file in files)

    def finish(self, plan: Plan) -> None:  # noqa: B027
        """Run what was submitted to its end, if `runs_here`."""

    def script_body(self, job: Job) -> str:
        """Return the shell lines that run a job out of the experiment's own copy of the code.

        `exec` puts python in the shell's place, so that signals from the scheduler reach it.
        """
        profile = self.profile
        argv = [*job.argv, "--run-dir", str(self.experiment.root), "--job", job.name]
        argv += ["--cluster-device", profile.device, "--wandb", self.wandb_mode]
        argv += ["--min-free-gb", f"{profile.min_free_gb:g}"]
        requeue: Sequence[str] = ()
        if self.can_requeue and profile.requeue and job.kind != "report":
            argv += ["--max-requeues", str(profile.max_requeues)]
            if profile.escalate.mem:
                requeue = ["-m", "anml", "requeue-job", "--run-dir", str(self.experiment.root), "--job", job.name]
        code = self.experiment.snapshot(self.snapshots.get(job.name, ""))
        lines = [
            # Else the warning before the time limit would end a job whose python does not handle it yet.
            "trap '' USR1",
            # Threads that spin while they wait make jobs up to four times slower on a machine that others use too.
            'export PYTHONUNBUFFERED=1 OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"',
            f"export {SCHEDULER_VARIABLE}={shlex.quote(profile.scheduler)}",
            # No option: code that an earlier version has frozen would not know it.
            *([] if self.runs_here else [f"export {LATENCY_VARIABLE}={profile.latency_wait:g}"]),
            *setup_lines(profile),
            f"cd {shlex.quote(str(code))} || exit 1",
            *python_lines(profile, argv, self.experiment.root, requeue),
        ]
        return "\n".join(lines) + "\n"

    @classmethod
    def with_options(cls, profile: ClusterProfile, arguments: list[str], own_options: list[str]) -> ClusterProfile:
        """Return the profile with the scheduler's options of the command line on top.

        own_options: the launcher's own, offered beside the scheduler's when one is misspelt. Raises ConfigError.
        """
        if arguments:
            message = f"{' '.join(arguments)}: neither options of this command nor of {profile.scheduler}"
            raise ConfigError(message)
        return profile

    @classmethod
    def retry_options(cls, profile: ClusterProfile, arguments: list[str]) -> SbatchOptions:
        """Return the scheduler's options for jobs that run again. Raises ConfigError."""
        cls.with_options(profile, arguments, [])
        return {}

    @classmethod  # noqa: B027
    def check_root(cls, root: Path) -> None:
        """Raise ConfigError where the scheduler cannot take the path of an experiment."""

    @classmethod
    def check(cls, profile: ClusterProfile) -> Iterator[CheckResult]:
        """Check what a profile promises of the scheduler, without submitting anything."""
        yield from ()

    @classmethod
    def try_out(cls, profile: ClusterProfile, script: Path, log: Path) -> None:
        """Run a script where jobs run, wait for its end and leave its output in `log`. Raises SubmissionError."""
        with log.open("wb") as output:
            subprocess.run(["bash", str(script)], stdout=output, stderr=subprocess.STDOUT, check=False)

    @classmethod
    def gpus(cls, profile: ClusterProfile, kind: JobKind) -> int:
        """Return how many GPUs a job of a kind holds."""
        return 0

    @classmethod
    def memory(cls, profile: ClusterProfile, kind: JobKind) -> tuple[float, str] | None:
        """Return the most bytes that a job of a kind can have; who says so, and what to do. None: nobody says."""
        return None

    @classmethod
    def shell(cls, profile: ClusterProfile, arguments: list[str]) -> list[str]:
        """Return the command that runs another one, which is appended, where jobs run. Raises ConfigError."""
        return []

    @classmethod
    def this_job(cls) -> str:
        """Return the id of the job that calls this, the same in every attempt; "" where the scheduler gives none."""
        return ""

    @classmethod
    def restarts(cls) -> int | None:
        """Return how often the job that calls this was requeued; None where it is no job of this scheduler."""
        return None

    @classmethod
    def requeue(cls, more: SbatchOptions) -> str:
        """Put the job that calls this back into the queue, under its own id. Return what went wrong, or "".

        more: the options that it gets in place of those it had.
        """
        return "not possible"


def setup_lines(profile: ClusterProfile) -> list[str]:
    """Return the setup of a profile as shell lines: a script ends at the first that fails, and says which."""
    if not profile.setup:
        return []
    lines = ['anml_check() { local code=$?; [ $code = 0 ] || { echo "setup: $1: exit code $code" >&2; exit $code; }; }']
    for number, line in enumerate(profile.setup, start=1):
        # On a line of its own: the user's may end with a comment, or be several lines.
        lines += [line, f"anml_check {shlex.quote(f'line {number} of profile {profile.name} failed: {line}')}"]
    return lines


def scheduler_class(name: str) -> type[Scheduler]:
    """Return the backend that a profile names. Raises ConfigError."""
    backend = find_part("scheduler", name, SCHEDULERS)
    if not (isinstance(backend, type) and issubclass(backend, Scheduler)):
        message = f"{name}: is no subclass of anml.jobs.schedulers.Scheduler"
        raise ConfigError(message)
    if missing := sorted(backend.__abstractmethods__ | ({"task_variable"} - set(dir(backend)))):
        message = f"{name}: lacks {', '.join(missing)} (see anml.jobs.schedulers.Scheduler)"
        raise ConfigError(message)
    return backend


def scheduler_of_this_job() -> type[Scheduler] | None:
    """Return the scheduler that runs this process as a job, or None for a process that no job script has started."""
    name = os.environ.get(SCHEDULER_VARIABLE)
    return scheduler_class(name) if name else None


def default_cluster() -> tuple[str, str]:
    """Return the profile to use when none is named, and why."""
    if shutil.which("sbatch"):
        return "dggpu", "because this machine has sbatch"
    return "local", "because this machine has no sbatch"
