"""The status file of a job, `jobs/<job>/status.json`: the job writes it, all others read it.

It is also the token of the job: only the process that it names may work. A copy that a scheduler starts beside it
leaves, and an attempt that a scheduler has replaced leaves when it sees the name of the next one.
"""

import os
import resource
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from anml.atomic import read_json, write_json
from anml.config.profile import SbatchOptions
from anml.errors import JobError
from anml.jobs.process import Process, recorded_process, this_process

# interrupted: stopped before its end with its work saved; skipped: a job it needs did not succeed.
State = Literal["pending", "running", "done", "failed", "interrupted", "requeued", "skipped", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "interrupted", "skipped", "cancelled")
# sysexits.h, EX_TEMPFAIL: stopped before the end with the work saved; run it again.
EXIT_INTERRUPTED = 75
# A running job writes its status at least so often, whatever it computes.
BEAT_SECONDS = 5.0
# Another machine may see what is written, here or there, so much later (NFS).
LATENCY_SECONDS = 60.0
# One that has not written for so long does not run any more.
SILENCE_SECONDS = 300.0
# One that has done so within these seconds has not ended, whatever a scheduler forgot.
RECENT_SECONDS = 30.0


@dataclass(frozen=True)
class JobStatus(Process):
    """State and progress of one job. Times are seconds since 1970; `done` of `total` counts `unit`s.

    attempt: how often the job has been started. job_id: the scheduler's, which is the same for attempts that a
    scheduler itself starts again; empty where there is none. busy_seconds: run time of all attempts before this one.
    memory_gb, gpu_memory_gb: the most that an attempt has held. node: the machine by its name in the scheduler;
    failed_on: those of the attempts before a retry that failed.
    fruitless: how many attempts in a row, this one included, have not come further than where they began.
    more: the options that the job has given itself since it was submitted.
    The process is the one that runs the job or, of a queued local one, will run it.
    """

    state: State = "pending"
    message: str = ""
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    rate: float = 0.0
    attempt: int = 0
    job_id: str = ""
    fruitless: int = 0
    started: float | None = None
    ended: float | None = None
    updated: float | None = None
    busy_seconds: float = 0.0
    memory_gb: float = 0.0
    gpu_memory_gb: float = 0.0
    node: str = ""
    failed_on: Sequence[str] = ()
    more: SbatchOptions = field(default_factory=dict)

    @property
    def elapsed(self) -> float:
        """Run time so far in seconds, all attempts together."""
        if self.started is None:
            return self.busy_seconds
        return self.busy_seconds + (self.ended or self.updated or self.started) - self.started

    @property
    def silence(self) -> float:
        """Seconds since the job last wrote its status."""
        return time.time() - (self.updated or 0.0)

    @property
    def is_writing(self) -> bool:
        """Whether the job runs by its own word, and has just said so."""
        return self.state == "running" and self.silence < RECENT_SECONDS and self.presence != "gone"

    @property
    def waiting(self) -> "JobStatus":
        """The status of a job that is to run again, with what its attempts have used so far."""
        return JobStatus(
            attempt=self.attempt, busy_seconds=self.elapsed, memory_gb=self.memory_gb,
            gpu_memory_gb=self.gpu_memory_gb, failed_on=self.failed_on,
        )  # fmt: skip

    @property
    def has_vanished(self) -> bool:
        """Whether the process of a job is gone, so that the job will never write how it ended."""
        return self.state in ("running", "pending") and self.presence == "gone"


def unmet_need(name: str) -> str:
    """Return why a job is skipped. name: the job that it needs and that ended without success."""
    return f"needs {name}, which did not succeed"


def duration(seconds: float) -> str:
    """Return a run time, as `12.3 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def read_status(path: Path) -> JobStatus:
    """Return a job's status; a job that never started is pending."""
    return recorded_process(read_json(path), path, JobStatus)


def write_status(path: Path, status: JobStatus) -> None:
    write_json(path, asdict(status))


def reopen(path: Path, why: str) -> None:
    """Take back a report that is done, where it does not tell of all jobs. One that is at work leaves."""
    status = read_status(path)
    if status.state in ("done", "running"):
        # A process leaves when another attempt has begun after its own.
        attempt = status.attempt + (status.state == "running")
        write_status(path, replace(status.waiting, state="cancelled", attempt=attempt, message=why))


class CopyError(JobError):
    """Another process runs this job."""


class StatusFile:
    """The status of the job that this process is; written at most once a second, at least every BEAT_SECONDS.

    before: the status of the last attempt. Raises CopyError when another process runs the job, and ends this process
    when another one takes the job over.
    """

    def __init__(self, path: Path, job_id: str = "") -> None:
        self.path = path
        self.before = before = read_status(path)
        now = time.time()
        self.status = JobStatus(
            state="running", attempt=before.attempt + 1, fruitless=before.fruitless + 1, job_id=job_id,
            busy_seconds=before.elapsed, started=now, updated=now, memory_gb=before.memory_gb,
            gpu_memory_gb=before.gpu_memory_gb, failed_on=before.failed_on, more=before.more,
            node=os.environ.get("SLURMD_NODENAME", ""), **asdict(this_process()),
        )  # fmt: skip
        self._first_done: float | None = None
        self._lock, self._has_ended = threading.Lock(), threading.Event()
        self._wait_for(before)
        write_status(path, self.status)
        threading.Thread(target=self._beat, daemon=True).start()

    def progress(self, done: float, total: float, unit: str) -> None:
        """Note how far the job is. Raises JobError where its experiment was moved: it would make a second one here."""
        if not self.path.parent.is_dir():
            message = f"{self.path.parent}: is gone: the experiment was moved or removed; `retry` it where it is now"
            raise JobError(message)
        now = time.time()
        if self._first_done is None:
            self._first_done, self._first_time = done, now
        seconds = now - self._first_time
        rate = (done - self._first_done) / seconds if seconds > 0 else 0.0
        is_due = now - (self.status.updated or 0) >= 1 or done >= total
        fruitless = 0 if done > self._first_done else self.status.fruitless
        with self._lock:
            self.status = replace(self.status, done=done, total=total, unit=unit, rate=rate, fruitless=fruitless)
            if is_due:
                self._write(updated=now, **_memory(self.status))

    def end(self, state: State, message: str = "", **changes: Any) -> None:
        now = time.time()
        with self._lock:
            self._has_ended.set()
            self._write(state=state, message=message, updated=now, ended=now, **_memory(self.status), **changes)

    def _beat(self) -> None:
        while not self._has_ended.wait(BEAT_SECONDS):
            with self._lock, suppress(OSError):  # A file system that is away for a while.
                if not self._has_ended.is_set():
                    self._write(updated=time.time())

    def _write(self, **changes: Any) -> None:
        if not self.path.parent.is_dir():  # The experiment was moved.
            return
        if self._is_replaced_by(read_status(self.path)):
            print("another process has taken this job over: this one leaves", file=sys.stderr, flush=True)
            os._exit(EXIT_INTERRUPTED)  # At once: what another thread would still do would meet the other's files.
        self.status = replace(self.status, **changes)
        write_status(self.path, self.status)

    def _is_replaced_by(self, other: JobStatus) -> bool:
        if other.attempt == self.status.attempt:
            return other.state == "running" and not _is_same(other, self.status)
        return other.attempt > self.status.attempt

    def _wait_for(self, before: JobStatus) -> None:
        """Return when the attempt before this one has ended for certain, or for all that can be known here.

        If the scheduler has started this job again, an earlier attempt that lives on (its node seemed lost) is told to
        leave. Else it has the job. Raises CopyError.
        """
        takes_over = before.job_id != "" and before.job_id == self.status.job_id
        end = time.monotonic() + LATENCY_SECONDS
        # Clocks of two machines may differ, but not by twice that silence.
        while before.state == "running" and before.presence != "gone" and before.silence < 2 * SILENCE_SECONDS:
            current, is_late = read_status(self.path), time.monotonic() > end
            has_written = _is_same(current, before) and (takes_over or current.updated != before.updated)
            lives = has_written or before.presence == "alive"
            if lives and (is_late or not takes_over):
                message = f"process {before.pid} on {before.host} runs this job (id {before.job_id or 'unknown'})"
                raise CopyError(message)
            if is_late:
                return
            if has_written:
                write_status(self.path, self.status)
            time.sleep(0.2)


def _memory(status: JobStatus) -> dict[str, float]:
    """Return the most memory that this process, one that it has started, or an earlier attempt has held so far."""
    usages = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    memory = max(usages) * (1 if sys.platform == "darwin" else 1024) / 1e9
    torch = sys.modules.get("torch")  # Else there is no memory of a GPU.
    gpu = torch.cuda.max_memory_reserved() / 1e9 if torch and torch.cuda.is_initialized() else 0.0
    memory, gpu = max(status.memory_gb, memory), max(status.gpu_memory_gb, gpu)
    return {"memory_gb": round(memory, 3), "gpu_memory_gb": round(gpu, 3)}


def _is_same(one: Process, other: Process) -> bool:
    return (one.host, one.pid, one.pid_started) == (other.host, other.pid, other.pid_started)
