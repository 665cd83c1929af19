"""Every call of Slurm's commands: without the caller's settings, within a time limit, with patience; and its answers.

squeue is asked first. It may be a copy some minutes old, and it forgets a job some minutes after its end: `scontrol`
and then `sacct`, where there is accounting, are asked about an id that squeue does not name.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from anml.errors import SubmissionError
from anml.jobs.schedulers import Phase, SchedulerState

if TYPE_CHECKING:
    from tenacity import RetryCallState

PATIENCE_SECONDS = 120.0
# How often a wait is told.
SAY_SECONDS = 15.0
# A command that takes longer hangs. sbatch waits for a busy controller up to MessageTimeout, 100 s at large sites.
COMMAND_SECONDS = 150.0
# What Slurm's commands say when the controller is away or busy, or has as many jobs as it takes: worth waiting for.
_TRANSIENT = (
    "unable to contact slurm controller", "socket timed out", "connection refused", "connect failure",
    "transport endpoint", "resource temporarily unavailable", "slurm temporarily unable",
    "zero bytes were transmitted", "hangs", "standby", "violates accounting/qos policy",
)  # fmt: skip
# Of these, the words after which the controller may have done, or may still do, what it was asked for.
_IN_DOUBT = ("timed out", "transport endpoint", "zero bytes", "hangs")
# Their settings from the environment would beat the profile, hide jobs or submit them under other names.
_OF_SLURM = ("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_", "SALLOC_", "SRUN_", "SACCT_", "SINFO_", "SCONTROL_")
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
# By the state that Slurm names. Every other state is one in which a job lives on, until it ends.
_PHASES: dict[str, Phase] = {
    **dict.fromkeys(("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"), "waiting"),
    "COMPLETING": "ending",
    "COMPLETED": "completed",
    "CANCELLED": "cancelled",
    **dict.fromkeys(("FAILED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"), "failed"),
    **dict.fromkeys(("PREEMPTED", "REVOKED"), "failed"),
}
_ENDS: tuple[Phase, ...] = ("completed", "cancelled", "failed")
_SHOWN = re.compile(
    r"\bJobId=(\d+) (?:ArrayJobId=(\d+) ArrayTaskId=(\S+) .*?)?JobName=(.*?) UserId=([^(]*)\(.*? JobState=(\S+) "
    r"Reason=(\S+)"
)

T = TypeVar("T")


class ControllerAwayError(Exception):
    """The controller could not be asked; asking again may help. in_doubt: it may have heard all the same."""

    def __init__(self, words: str, in_doubt: bool) -> None:
        super().__init__(words)
        self.in_doubt = in_doubt


@dataclass(frozen=True)
class SlurmJob:
    """What Slurm says of a job, or of one task of an array. user: whose it is."""

    id: str
    task: int | None
    name: str
    user: str
    state: str
    reason: str

    @property
    def answer(self) -> SchedulerState:
        phase, words = _PHASES.get(self.state, "running"), f"{self.state} ({self.reason})"
        if (
            (phase == "waiting" and "held" in self.reason.lower())
            or "HOLD" in self.state
            or self.state == "SPECIAL_EXIT"
        ):
            return self._answer(phase, f"{words}: held, `scontrol release {self.id}` lets it go")
        if self.reason == "DependencyNeverSatisfied":  # It needs the success of a job that has failed.
            return self._answer("waiting in vain" if phase == "waiting" else "skipped", self.reason)
        if phase in ("running", "ending"):
            return self._answer(phase, "" if self.state == "RUNNING" else self.state.lower())
        return self._answer(phase, self.reason if self.state == "PENDING" else words)

    def _answer(self, phase: Phase, words: str) -> SchedulerState:
        return SchedulerState(self.id, phase, words, self.user)


def all_jobs() -> list[SlurmJob]:
    """Return every job that squeue names, everybody's, in hidden partitions too, the newest last.

    Raises SubmissionError: silence taken for an empty queue would submit everything again.
    """
    command = ["squeue", "--all", "--array", "--noheader", "--states=all", "--format=%F|%K|%u|%T|%r|%j"]
    result = patiently(lambda: run(command))
    if result.returncode != 0:
        message = f"squeue failed, so the state of the jobs is not known: {result.stderr.strip()}"
        raise SubmissionError(message)
    rows = (line.split("|", 5) for line in result.stdout.splitlines())
    jobs = [_job(*row) for row in rows if len(row) == 6 and row[0].isdigit()]
    return sorted((job for several in jobs for job in several), key=lambda job: int(job.id))


def jobs_by_id(ids: Collection[str]) -> list[SlurmJob]:
    """Return jobs that squeue does not name: as the controller knows them, else as accounting tells how they ended.

    ids: `7`, or `7_3` for a task of an array, which the controller forgets while others of the array go on.
    """
    jobs = shown_jobs({id_.partition("_")[0] for id_ in ids}) if ids else []
    return jobs + list(_accounted(set(ids) - {each for job in jobs for each in (job.id, f"{job.id}_{job.task}")}))


def shown_jobs(ids: Collection[str] = ("",)) -> list[SlurmJob]:
    """Return jobs as the controller itself knows them; without ids all jobs, which is much text on a large cluster.

    Raises SubmissionError where the controller does not say that it does not know them.
    """
    lines = "".join(f"show job {id_}\n" for id_ in ids)
    shown = patiently(lambda: run(["scontrol", "--all", "--oneliner"], lines))
    problems = [line for line in shown.stderr.splitlines() if "invalid job id" not in line.lower()]
    if problems:
        message = f"scontrol failed, so the state of the jobs is not known: {' '.join(problems)}"
        raise SubmissionError(message)
    return [job for line in shown.stdout.splitlines() for job in _shown(line)]


def _shown(line: str) -> Iterator[SlurmJob]:
    """Yield the job, or the tasks of an array, in a line of `scontrol show job`."""
    if match := _SHOWN.search(line):
        id_, array, tasks, name, user, state, reason = match.groups()
        yield from _job(array or id_, tasks or "", user, state, reason, name)


def _accounted(ids: Collection[str]) -> Iterator[SlurmJob]:
    """Yield the jobs whose end accounting knows; nothing where there is none, or where it does not answer."""
    if not ids or shutil.which("sacct") is None:
        return
    command = ["sacct", f"--jobs={','.join(ids)}", "--allusers", "--noheader", "--parsable2"]
    result = run_once([*command, "--format=JobID,User,State,ExitCode,Elapsed,MaxRSS,JobName"])
    rows = [line.split("|", 6) for line in result.stdout.splitlines() if result.returncode == 0]
    memory = {row[0].removesuffix(".batch"): row[5] for row in rows if row[0].endswith(".batch")}
    for name, user, state, code, elapsed, _, job_name in rows:
        id_, _, tasks = name.partition("_")
        words = f"exit code {code}, ran {elapsed}" + (f", {memory[name]} of memory" if memory.get(name) else "")
        # Accounting calls a job running for ever when its end got lost: only an end counts. `7_1.batch` is a step.
        if "." not in name and state and _PHASES.get(state.split()[0]) in _ENDS:
            yield from _job(id_, tasks.strip("[]"), user, state.split()[0], words, job_name)


def _job(id_: str, tasks: str, user: str, state: str, reason: str, name: str) -> list[SlurmJob]:
    return [SlurmJob(id_, task, name, user, state, reason) for task in _numbers(tasks)]


def _numbers(tasks: str) -> Iterable[int | None]:
    """Return the numbers in `7` or `0-3,8%2`; None alone for a job that is no array."""
    ranges = [part.split("-") for part in tasks.partition("%")[0].split(",")]
    if not all(part[0].isdigit() and part[-1].isdigit() for part in ranges):
        return [None]
    return [number for part in ranges for number in range(int(part[0]), int(part[-1]) + 1)]


def patiently(ask: Callable[[], T], stop: threading.Event | None = None) -> T:
    """Call until the controller answers, with growing pauses. stop: ends the wait.

    Raises SubmissionError when the controller stays away.
    """
    import tenacity  # A dry run asks nobody.

    def say_waiting(state: "RetryCallState") -> None:
        if state.attempt_number == 1 or state.upcoming_sleep >= SAY_SECONDS:
            words = state.outcome.exception() if state.outcome else ""
            print(f"waiting for Slurm's controller: {words}", file=sys.stderr, flush=True)

    stop = stop or threading.Event()
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ControllerAwayError), reraise=True, before_sleep=say_waiting,
        stop=tenacity.stop_any(tenacity.stop_after_delay(PATIENCE_SECONDS), tenacity.stop_when_event_set(stop)),
        wait=tenacity.wait_exponential(multiplier=0.5, max=SAY_SECONDS), sleep=tenacity.sleep_using_event(stop),
    )  # fmt: skip
    try:
        return retrying(ask)
    except ControllerAwayError as error:
        message = f"Slurm did not do it within {PATIENCE_SECONDS:.0f} s: {error}"
        raise SubmissionError(message) from None


def run(command: list[str], lines: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Slurm command. Raises SubmissionError without Slurm, ControllerAwayError when nobody answers."""
    if shutil.which(command[0]) is None:
        message = f"there is no {command[0]} on this machine: run this on a login node, or use --cluster local"
        raise SubmissionError(message)
    result = run_once(command, lines)
    words = result.stderr.strip()
    if result.returncode != 0 and any(some in words.lower() for some in _TRANSIENT):
        raise ControllerAwayError(words, any(some in words.lower() for some in _IN_DOUBT))
    return result


def run_once(command: list[str], lines: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Slurm command; Ctrl-C at the terminal does not reach it. lines: its input.

    Says every 15 seconds what it waits for: where Slurm has as many jobs as it takes, sbatch itself tries again.
    """
    end = time.monotonic() + COMMAND_SECONDS
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        errors="replace", env=environment_outside_slurm(), start_new_session=True,
    ) as process:  # fmt: skip
        try:
            while (left := end - time.monotonic()) > 0:
                try:
                    output, words = process.communicate(lines, timeout=min(left, SAY_SECONDS))
                except subprocess.TimeoutExpired as error:
                    said = (error.stderr or b"").decode(errors="replace").strip()
                    print(f"waiting for {command[0]}: {said.rpartition(chr(10))[2]}", file=sys.stderr, flush=True)
                else:
                    return subprocess.CompletedProcess(command, process.returncode, output, words)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, 1, "", f"{command[0]} hangs: no answer in {COMMAND_SECONDS:g} s")


def environment_outside_slurm() -> dict[str, str]:
    """Return this process's environment variables, without those of a Slurm job or a user's settings of Slurm."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OF_SLURM) or name in _KEPT}


def dropped_settings() -> list[str]:
    """Return the names of a user's settings of sbatch, which it does not get here."""
    return sorted(name for name in os.environ if name.startswith("SBATCH_"))
