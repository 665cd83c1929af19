"""Slurm. simple_slurm renders the scripts; this module alone runs sbatch, squeue, scancel and scontrol.

simple_slurm's own `sbatch` is not used: it runs a shell, loses sbatch's words and fails with a bare assertion.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from anml.atomic import write_text
from anml.config.binding import nearest
from anml.config.profile import ClusterProfile
from anml.config.training import TrainConfig
from anml.errors import ConfigError, SubmissionError
from anml.experiment import Experiment
from anml.jobs.plan import Job, JobKind
from anml.jobs.schedulers import CheckResult, Phase, Scheduler, SchedulerState

if TYPE_CHECKING:
    from simple_slurm import Slurm
    from tenacity import RetryCallState

KINDS: tuple[JobKind, ...] = get_args(JobKind)
# Decided by the launcher; a user's value would break dependencies, logs or requeueing.
_OURS = {
    "array", "clusters", "dependency", "error", "help", "job-name", "kill-on-invalid-dep", "no-requeue", "open-mode",
    "output", "parsable", "quiet", "requeue", "signal", "test-only", "usage", "wait", "wrap",
}  # fmt: skip
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
        slurm = _new_script()
        slurm.set_shell("/bin/bash")
        options = {name: value for name, value in self._options(job).items() if value is not False}
        slurm.add_arguments(**{name.replace("-", "_"): _quoted(value) for name, value in options.items()})
        # Without CPU binding every job would otherwise take all cores of its node.
        slurm.add_cmd('export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"')
        slurm.add_cmd(self.script_body(job))
        return slurm.script(convert=False)

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
        of_sbatch, problems = known_options(), {}
        for name in dict.fromkeys(name for kind in KINDS for name in profile.sbatch.for_kind(kind)):
            if name in _OURS:
                problems[name] = "is set by the launcher and cannot be chosen"
            elif name not in of_sbatch:
                problems[name] = f"sbatch has no such option{nearest(name, of_sbatch)}"
        if problems:
            raise ConfigError([f"profile {profile.name}: sbatch: {name}: {why}" for name, why in problems.items()])
        overrides = parse_sbatch_options(arguments, own_options)
        by_kind = {kind: {**getattr(profile.sbatch, kind), **overrides} for kind in KINDS}
        return profile.model_copy(update={"sbatch": profile.sbatch.model_copy(update=by_kind)})

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
        for kind in KINDS:
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
        """Return the number in `gres: gpu:2` or `gpu:a100:2`."""
        gres = str(profile.sbatch.for_kind(kind).get("gres", ""))
        if not gres.startswith("gpu"):
            return 0
        count = gres.rsplit(":", 1)[-1]
        return int(count) if count.isdigit() else 1

    @classmethod
    def restarts(cls) -> int | None:
        return int(os.environ.get("SLURM_RESTART_COUNT", "0")) if "SLURM_JOB_ID" in os.environ else None

    @classmethod
    def requeue(cls) -> str:
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get(cls.task_variable)
        # The id of an array would requeue all its tasks.
        job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
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
    if (key := name.replace("-", "_")) in TrainConfig.model_fields:
        return f"--{name}: is a key of the config: --set {key}={value or 'VALUE'}"
    known = sorted(of_sbatch | {option.removeprefix("--") for option in own_options})
    hint = nearest(name, known).replace("'", "").replace("mean ", "mean --")
    return f"--{name}: neither an option of this command nor of sbatch{hint}{doubt}"


def known_options() -> set[str]:
    """Return the long names of all options that sbatch has. Raises SubmissionError without simple_slurm."""
    setters = [name for name in dir(_new_script()) if name.startswith("set_")]
    return {name.removeprefix("set_").replace("_", "-") for name in setters} - {"shell"}


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
