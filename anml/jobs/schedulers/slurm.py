"""sbatch options given on the command line: checked by name against those that sbatch has."""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from anml.config.binding import nearest
from anml.config.profile import ClusterProfile
from anml.config.training import TrainConfig
from anml.errors import ConfigError, SubmissionError
from anml.experiment import Experiment
from anml.jobs.plan import Job, Plan
from anml.jobs.schedulers.base import SchedulerState, States, script_body

if TYPE_CHECKING:
    from simple_slurm import Slurm
    from tenacity import RetryCallState


# Decided by the launcher; a user's value would break dependencies, logs or requeueing.
_OURS = {
    "array", "clusters", "dependency", "error", "help", "job-name", "kill-on-invalid-dep", "no-requeue", "open-mode",
    "output", "parsable", "quiet", "requeue", "signal", "test-only", "usage", "wait", "wrap",
}  # fmt: skip


def parse_sbatch_options(arguments: list[str], own_options: list[str]) -> dict[str, str | int | bool]:
    """Return options by name (with dashes) for arguments like `--mem=64G`. Raises ConfigError with every problem."""
    problems = [problem for argument in arguments if (problem := _problem(argument, own_options))]
    if problems:
        raise ConfigError(problems)
    parts = [argument.removeprefix("--").partition("=") for argument in arguments]
    return {name: value if sign else True for name, sign, value in parts}


def _problem(argument: str, own_options: list[str]) -> str:
    """Return what is wrong with an argument, or an empty string."""
    name, _, value = argument.removeprefix("--").partition("=")
    key = name.replace("-", "_")
    if not argument.startswith("--"):
        return f"{argument}: not understood; sbatch options are written --name=value"
    if name in _OURS:
        return f"--{name}: is set by the launcher or the profile and cannot be chosen"
    try:
        of_sbatch, doubt = known_options(), ""
    except SubmissionError as error:  # The machine at hand needs none of them.
        of_sbatch, doubt = set(), f" ({error})"
    if name in of_sbatch:
        return ""
    if key in TrainConfig.model_fields:
        return f"--{name}: is a key of the config: --set {key}={value or 'VALUE'}"
    known = sorted(of_sbatch | {option.removeprefix("--") for option in own_options})
    hint = nearest(name, known).replace("'", "").replace("mean ", "mean --")
    return f"--{name}: neither an option of this command nor of sbatch{hint}{doubt}"


def check_profile_options(profile: ClusterProfile) -> None:
    """Raise ConfigError for options of a profile that sbatch does not have, or that the launcher decides."""
    problems, of_sbatch = [], known_options()
    for name in dict.fromkeys(
        name for kind in ("train", "evaluate", "report") for name in profile.sbatch.for_kind(kind)
    ):
        if name in _OURS:
            problems.append(f"profile {profile.name}: sbatch: {name}: is set by the launcher and cannot be chosen")
        elif name not in of_sbatch:
            hint = nearest(name, of_sbatch)
            problems.append(f"profile {profile.name}: sbatch: {name}: sbatch has no such option{hint}")
    if problems:
        raise ConfigError(problems)


# Slurm. Scripts are rendered with simple_slurm; this module alone talks to sbatch, squeue and scancel.
#
# simple_slurm's own `sbatch` is not used: it runs a shell, loses sbatch's words and fails with a bare assertion.

# What Slurm's commands say when the controller is away or busy: worth waiting for.
_TRANSIENT = (
    "unable to contact slurm controller", "socket timed out", "connection refused", "connect failure",
    "transport endpoint", "resource temporarily unavailable", "slurm temporarily unable",
    "zero bytes were transmitted",
)  # fmt: skip
# What scancel says of jobs that need no cancelling any more.
_HAS_ENDED = ("invalid job id", "already completing", "completed")
PATIENCE_SECONDS = 120.0

T = TypeVar("T")


class _ControllerAwayError(Exception):
    """The controller could not be asked; asking again may help."""


class SlurmScheduler:
    """Submits with `sbatch`, one call a job or array."""

    def __init__(self, experiment: Experiment, profile: ClusterProfile, wandb_mode: str) -> None:
        self.experiment, self.profile, self.wandb_mode = experiment, profile, wandb_mode
        # Slurm keeps no folders: the experiment's own mark in a job's name is what it is found by.
        self.mark = hashlib.sha256(str(experiment.root).encode()).hexdigest()[:8]

    def render(self, job: Job) -> str:
        """Return the job's script: #SBATCH lines, then the body."""
        slurm = _new_script()
        slurm.set_shell("/bin/bash")
        options = {name: value for name, value in self._options(job).items() if value is not False}
        slurm.add_arguments(**{name.replace("-", "_"): _quoted(value) for name, value in options.items()})
        # Without CPU binding every job would otherwise take all cores of its node.
        slurm.add_cmd('export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"')
        slurm.add_cmd(script_body(job, self.experiment, self.profile, self.wandb_mode))
        return slurm.script(convert=False)

    def command(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> list[str]:
        """Return the sbatch command line."""
        command = ["sbatch", "--parsable"]
        if after:
            kind = "afterany" if job.after_any else "afterok"
            command.append(f"--dependency={kind}:{':'.join(after)}")
            if not job.after_any:
                # Without it a job whose dependency failed waits for ever, and the report behind it.
                command.append("--kill-on-invalid-dep=yes")
        if job.tasks is not None and len(tasks) < job.tasks:
            # Overrides the script's own range: some of the array is done.
            command.append(f"--array={','.join(map(str, tasks))}{self._throttle}")
        return [*command, str(self.experiment.job(job.name).script)]

    def submit(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> str:
        """Submit a job and return its id; waits with back-off while the controller is away."""
        for task in tasks:
            self.experiment.job(job.name, task).log.parent.mkdir(parents=True, exist_ok=True)
        before: set[str] | None = None

        def look_then_submit() -> str:
            nonlocal before
            if before is None:
                before = set(self.live_ids().get(job.name, []))
            else:
                # A submission that seemed to fail may have got through: look before asking twice.
                new = set(self.live_ids().get(job.name, [])) - before
                if new:
                    return new.pop()
            return self._sbatch(job, after, tasks)

        return _patiently(look_then_submit)

    def finish(self, plan: Plan) -> None:
        """Do nothing: Slurm runs the jobs."""

    def states(self) -> States:
        """Return what squeue says of the experiment's jobs; finished ones are forgotten after some minutes."""
        found: States = {}
        for name, task, state in self._queue():
            tasks = found.setdefault(name, {})
            # A job submitted again has a higher id: the newer one counts.
            if task not in tasks or int(tasks[task].id) < int(state.id):
                tasks[task] = state
        return found

    def live_ids(self) -> dict[str, list[str]]:
        """Return the ids of all that waits or runs, those of double submissions included."""
        found: dict[str, list[str]] = {}
        for name, _, state in self._queue():
            if state.is_live and state.id not in found.setdefault(name, []):
                found[name].append(state.id)
        return {name: ids for name, ids in found.items() if ids}

    def cancel(self, ids: Sequence[str]) -> None:
        """End jobs by id. Raises SubmissionError when Slurm does not."""
        if not ids:
            return
        result = _patiently(lambda: _run(["scancel", *ids]))
        problems = [line for line in result.stderr.splitlines() if not any(word in line.lower() for word in _HAS_ENDED)]
        if result.returncode != 0 and problems:
            message = f"scancel {' '.join(ids)} failed: {' '.join(problems)}"
            raise SubmissionError(message)

    def _queue(self) -> Iterator[tuple[str, int | None, SchedulerState]]:
        """Yield name, task and state of every job of the experiment that Slurm knows."""
        owner = self.experiment.root.stat().st_uid if self.experiment.root.exists() else os.getuid()
        fields = "--format=%j|%F|%K|%T|%r"
        command = ["squeue", f"--user={owner}", "--array", "--noheader", "--states=all", fields]
        result = _patiently(lambda: _run(command))
        if result.returncode != 0:
            # Taking silence for an empty queue would submit everything again.
            message = f"squeue failed, so the state of the jobs is not known: {result.stderr.strip()}"
            raise SubmissionError(message)
        for line in result.stdout.splitlines():
            name, id_, index, state, reason = line.rsplit("|", 4)
            if name.endswith(f".{self.mark}"):
                task = int(index) if index.isdigit() else None
                yield name.removesuffix(f".{self.mark}"), task, SchedulerState(id_, state, reason)

    @property
    def _throttle(self) -> str:
        return f"%{self.profile.array_throttle}" if self.profile.array_throttle else ""

    def _options(self, job: Job) -> dict[str, str | int | bool]:
        """Return the sbatch options of a job: the profile's, and what the launcher decides."""
        folder = str(self.experiment.job(job.name).root).replace("%", "%%")
        log = f"{folder}/log.txt" if job.tasks is None else f"{folder}/task-%4a/log.txt"
        options = self.profile.sbatch.for_kind(job.kind)
        options |= {"job-name": f"{job.name}.{self.mark}", "output": log, "open-mode": "append"}
        if job.tasks is not None:
            options["array"] = f"0-{job.tasks - 1}{self._throttle}"
        if self.profile.requeue and job.kind != "report":
            return options | {"requeue": True, "signal": f"B:USR1@{self.profile.signal_seconds}"}
        return options | {"no-requeue": True}

    def _sbatch(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> str:
        result = _run(self.command(job, after, tasks))
        if result.returncode != 0 or not result.stdout.strip():
            message = f"{job.name}: sbatch refused it: {result.stderr.strip() or result.stdout.strip()}"
            raise SubmissionError(message)
        return result.stdout.strip().splitlines()[-1].split(";")[0]


def known_options() -> set[str]:
    """Return the long names of all options that sbatch has. Raises SubmissionError without simple_slurm."""
    setters = {name for name in dir(_new_script()) if name.startswith("set_")} - {"set_shell"}
    return {name.removeprefix("set_").replace("_", "-") for name in setters}


def _new_script() -> "Slurm":
    """Return an empty script. Raises SubmissionError without simple_slurm, which nothing but Slurm needs."""
    # A user's format for squeue, which simple_slurm refuses unless it is CSV.
    squeue_format = os.environ.pop("SQUEUE_FORMAT", None)
    try:
        from simple_slurm import Slurm

        return Slurm()
    except ModuleNotFoundError:
        message = "Slurm needs the package simple-slurm (docs/install.md): install it, or use --cluster local"
        raise SubmissionError(message) from None
    finally:
        if squeue_format is not None:
            os.environ["SQUEUE_FORMAT"] = squeue_format


def _quoted(value: str | int | bool) -> str:
    """Return a value as bash quotes it; simple_slurm would take one that starts with a dash for an option."""
    text = "" if value is True else shlex.quote(str(value))
    return f"'{text}'" if text.startswith("-") else text


def _patiently(ask: Callable[[], T]) -> T:
    """Call until the controller answers, with growing pauses. Raises SubmissionError when it stays away."""
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential  # A dry run asks nobody.

    retrying = Retrying(
        retry=retry_if_exception_type(_ControllerAwayError), stop=stop_after_delay(PATIENCE_SECONDS),
        wait=wait_exponential(multiplier=0.5, max=15), reraise=True, before_sleep=_say_waiting,
    )  # fmt: skip
    try:
        return retrying(ask)
    except _ControllerAwayError as error:
        message = f"Slurm's controller did not answer for {PATIENCE_SECONDS:.0f} s: {error}"
        raise SubmissionError(message) from None


def _say_waiting(state: "RetryCallState") -> None:
    if state.attempt_number == 1:
        print("waiting for Slurm's controller ...", file=sys.stderr, flush=True)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command. Raises SubmissionError without Slurm, _ControllerAwayError when nobody answers."""
    if shutil.which(command[0]) is None:
        message = f"there is no {command[0]} on this machine: run this on a login node, or use --cluster local"
        raise SubmissionError(message)
    # The variables of a Slurm job that this may run in would be taken for options.
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in kept}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0 and any(words in result.stderr.lower() for words in _TRANSIENT):
        raise _ControllerAwayError(result.stderr.strip())
    return result
