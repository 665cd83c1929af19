"""Slurm. slurm_options.py renders the scripts; this module alone runs sbatch, squeue, scancel and scontrol.

simple_slurm's own `sbatch` is not used: it runs a shell, loses sbatch's words and fails with a bare assertion.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from anml.atomic import write_text
from anml.config.profile import ClusterProfile
from anml.errors import ConfigError, SubmissionError
from anml.experiment import Experiment
from anml.jobs.containers import REQUEUE_VARIABLE
from anml.jobs.plan import Job, JobKind
from anml.jobs.schedulers import CheckResult, Phase, Scheduler, SchedulerState
from anml.jobs.schedulers.slurm_options import (
    count_gpus,
    parse_options,
    profile_problems,
    render_options,
    unlisted_of_profile,
    unlisted_options,
)

if TYPE_CHECKING:
    from tenacity import RetryCallState

KINDS: tuple[JobKind, ...] = get_args(JobKind)
# What Slurm's commands say when the controller is away or busy: worth waiting for.
_TRANSIENT = (
    "unable to contact slurm controller", "socket timed out", "connection refused", "connect failure",
    "transport endpoint", "resource temporarily unavailable", "slurm temporarily unable",
    "zero bytes were transmitted",
)  # fmt: skip
# What scancel says of jobs that need no cancelling any more.
_HAS_ENDED = ("invalid job id", "already completing", "completed")
# By the state that squeue names; every other state is an end without success.
_PHASES: dict[str, Phase] = {
    **dict.fromkeys(("PENDING", "REQUEUED", "REQUEUE_HOLD"), "waiting"),
    **dict.fromkeys(("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED"), "running"),
    "COMPLETED": "completed",
    "CANCELLED": "cancelled",
}
PATIENCE_SECONDS = 120.0

T = TypeVar("T")


class _ControllerAwayError(Exception):
    """The controller could not be asked; asking again may help."""


class SlurmScheduler(Scheduler):
    """Submits with `sbatch`, one call a job or array."""

    task_variable = "SLURM_ARRAY_TASK_ID"
    forgets_ended_jobs = True
    can_requeue = True

    def __init__(self, experiment: Experiment, profile: ClusterProfile, wandb_mode: str) -> None:
        super().__init__(experiment, profile, wandb_mode)
        # Slurm does not know the folders of jobs: this mark of the experiment, in their names, tells which are ours.
        self.mark = hashlib.sha256(str(experiment.root).encode()).hexdigest()[:8]

    def render(self, job: Job) -> str:
        # Without CPU binding every job would otherwise take all cores of its node.
        threads = 'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"'
        return render_options(self._options(job), [threads, self.script_body(job)])

    def command(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> list[str]:
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
            result = _run(self.command(job, after, tasks))
            if result.returncode != 0 or not result.stdout.strip():
                message = f"{job.name}: sbatch refused it: {result.stderr.strip() or result.stdout.strip()}"
                raise SubmissionError(message)
            return result.stdout.strip().splitlines()[-1].split(";")[0]

        return _patiently(look_then_submit)

    def cancel(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        result = _patiently(lambda: _run(["scancel", *ids]))
        problems = [line for line in result.stderr.splitlines() if not any(word in line.lower() for word in _HAS_ENDED)]
        if result.returncode != 0 and problems:
            message = f"scancel {' '.join(ids)} failed: {' '.join(problems)}"
            raise SubmissionError(message)

    def queue(self) -> Iterator[tuple[str, int | None, SchedulerState]]:
        """Yield what squeue says. It forgets a job some minutes after its end."""
        owner = self.experiment.root.stat().st_uid if self.experiment.root.exists() else os.getuid()
        command = ["squeue", f"--user={owner}", "--array", "--noheader", "--states=all", "--format=%j|%F|%K|%T|%r"]
        result = _patiently(lambda: _run(command))
        if result.returncode != 0:
            # Taking silence for an empty queue would submit everything again.
            message = f"squeue failed, so the state of the jobs is not known: {result.stderr.strip()}"
            raise SubmissionError(message)
        lines = [line.rsplit("|", 4) for line in result.stdout.splitlines()]
        for name, id_, index, state, reason in sorted(lines, key=lambda line: int(line[1])):
            if name.endswith(f".{self.mark}"):
                task = int(index) if index.isdigit() else None
                yield name.removesuffix(f".{self.mark}"), task, _state(id_, state, reason)

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

    @classmethod
    def with_options(cls, profile: ClusterProfile, arguments: list[str], own_options: list[str]) -> ClusterProfile:
        """Return the profile with the options on top. Raises ConfigError, also for the profile's own options."""
        options = parse_options(arguments)
        changed = profile.model_copy(update={"sbatch": profile.sbatch.overridden(options)})
        problems = profile_problems(changed)
        if doubts := [*unlisted_of_profile(profile), *unlisted_options(options, own_options)]:
            problems += cls._told_by_sbatch(changed, doubts)
        if problems:
            raise ConfigError(problems)
        return changed

    @classmethod
    def _told_by_sbatch(cls, profile: ClusterProfile, doubts: list[str]) -> list[str]:
        """Return what is wrong with options that are not listed: sbatch decides, where it can be asked."""
        if shutil.which("sbatch") is None:
            return doubts
        refusals = [finding.what for kind in KINDS if not (finding := cls._check_job(profile, kind)).ok]
        # Without its configuration sbatch knows nothing.
        is_unknown = any("unrecognized option" in words or "configuration source" in words for words in refusals)
        return doubts if is_unknown else refusals[:1]

    @classmethod
    def check_root(cls, root: Path) -> None:
        if any(character == "\\" or ord(character) < 32 for character in str(root)):
            message = f"{root}: Slurm cannot take a path with a backslash or a control character; choose another name"
            raise ConfigError(message)

    @classmethod
    def check(cls, profile: ClusterProfile) -> Iterator[CheckResult]:
        if shutil.which("sbatch") is None:
            yield CheckResult(False, "there is no sbatch here: run this on a login node of the cluster")
            return
        answer = _run_once(["scontrol", "show", "config"])
        if answer.returncode != 0:
            yield CheckResult(False, f"Slurm's controller does not answer: {answer.stderr.strip()}")
            return
        yield CheckResult(True, "Slurm's controller answers")
        sizes = [line.split("=")[1].strip() for line in answer.stdout.splitlines() if line.startswith("MaxArraySize")]
        if sizes and int(sizes[0]) < profile.max_array_size:
            what = f"max_array_size is {profile.max_array_size}, but this site's is {sizes[0]}: set it to that"
            yield CheckResult(False, what)
        else:
            yield CheckResult(True, f"max_array_size {profile.max_array_size} is within the site's limit")
        problems = profile_problems(profile)
        yield from (CheckResult(False, problem) for problem in problems)
        for kind in () if problems else KINDS:
            yield cls._check_job(profile, kind)

    @classmethod
    def _check_job(cls, profile: ClusterProfile, kind: JobKind) -> CheckResult:
        """Let sbatch validate a script of one kind without submitting it."""
        with tempfile.TemporaryDirectory() as folder:
            experiment = Experiment(Path(folder) / "project" / "group")
            script = experiment.job(kind).script
            write_text(script, cls(experiment, profile, "disabled").render(Job(kind, kind, ("--version",))))
            result = _run_once(["sbatch", "--test-only", str(script)])
        if result.returncode != 0:
            reason = result.stderr.strip().removeprefix("sbatch: error: ")
            return CheckResult(False, f"sbatch would refuse a {kind} job: {reason} (profile: sbatch, {kind})")
        return CheckResult(True, f"sbatch accepts a {kind} job")

    @classmethod
    def gpus(cls, profile: ClusterProfile, kind: JobKind) -> int:
        return count_gpus(profile.sbatch.for_kind(kind))

    @classmethod
    def shell(cls, profile: ClusterProfile, arguments: list[str]) -> list[str]:
        """Return srun with the options of a training, and those of a command line on top."""
        options = cls.with_options(profile, arguments, []).sbatch.for_kind("train")
        words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
        return ["srun", "--job-name=anml-shell", *words, *["--pty"] * sys.stdin.isatty()]

    @classmethod
    def restarts(cls) -> int | None:
        return int(os.environ.get("SLURM_RESTART_COUNT", "0")) if "SLURM_JOB_ID" in os.environ else None

    @classmethod
    def requeue(cls) -> str:
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get(cls.task_variable)
        # The id of an array would requeue all its tasks.
        job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
        if REQUEUE_VARIABLE in os.environ and shutil.which("scontrol") is None:
            Path(os.environ[REQUEUE_VARIABLE]).touch()
            return ""
        try:
            result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        except OSError as error:
            return f"scontrol cannot be run here: {error}"
        # scontrol may say no and still exit with 0.
        words = result.stderr.strip()
        return f"scontrol requeue: {words}" if result.returncode != 0 or words else ""


def _state(id_: str, state: str, reason: str) -> SchedulerState:
    """Return what a line of squeue means."""
    phase = _PHASES.get(state, "failed")
    if phase == "running":
        return SchedulerState(id_, phase, "" if state == "RUNNING" else state.lower())
    if reason == "DependencyNeverSatisfied":  # It needs the success of a job that has failed.
        return SchedulerState(id_, "waiting in vain" if phase == "waiting" else "skipped", reason)
    return SchedulerState(id_, phase, reason if state == "PENDING" else f"{state} ({reason})")


def _patiently(ask: Callable[[], T]) -> T:
    """Call until the controller answers, with growing pauses. Raises SubmissionError when it stays away."""
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential  # A dry run asks nobody.

    def say_waiting(state: "RetryCallState") -> None:
        if state.attempt_number == 1:
            print("waiting for Slurm's controller ...", file=sys.stderr, flush=True)

    retrying = Retrying(
        retry=retry_if_exception_type(_ControllerAwayError), stop=stop_after_delay(PATIENCE_SECONDS),
        wait=wait_exponential(multiplier=0.5, max=15), reraise=True, before_sleep=say_waiting,
    )  # fmt: skip
    try:
        return retrying(ask)
    except _ControllerAwayError as error:
        message = f"Slurm's controller did not answer for {PATIENCE_SECONDS:.0f} s: {error}"
        raise SubmissionError(message) from None


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command. Raises SubmissionError without Slurm, _ControllerAwayError when nobody answers."""
    if shutil.which(command[0]) is None:
        message = f"there is no {command[0]} on this machine: run this on a login node, or use --cluster local"
        raise SubmissionError(message)
    result = _run_once(command)
    if result.returncode != 0 and any(words in result.stderr.lower() for words in _TRANSIENT):
        raise _ControllerAwayError(result.stderr.strip())
    return result


def _run_once(command: list[str]) -> subprocess.CompletedProcess[str]:
    # sbatch would take the variables of a Slurm job that this process may run in for options.
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment_outside_slurm())


def environment_outside_slurm() -> dict[str, str]:
    """Return this process's environment variables, without those of a Slurm job that it may run in."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name in kept}
