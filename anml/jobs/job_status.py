"""The status file of a job, `jobs/<job>/status.json`: the job writes it, all others read it."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from anml.atomic import read_json, write_json
from anml.process import Process, recorded_process, this_process

# interrupted: stopped before its end with its work saved; skipped: a job it needs did not succeed.
State = Literal["pending", "running", "done", "failed", "interrupted", "requeued", "skipped", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "interrupted", "skipped", "cancelled")
# A running job writes its status every second. One that has not for so long does not run any more.
SILENCE_SECONDS = 300.0


@dataclass(frozen=True)
class JobStatus(Process):
    """State and progress of one job. Times are seconds since 1970; `done` of `total` counts `unit`s.

    attempt: how often the job has been started. busy_seconds: run time of all attempts before this one.
    The process is the one that runs the job or, of a queued local one, will run it.
    """

    state: State = "pending"
    message: str = ""
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    rate: float = 0.0
    attempt: int = 0
    started: float | None = None
    ended: float | None = None
    updated: float | None = None
    busy_seconds: float = 0.0

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


class StatusFile:
    """The status of the job that this process is; writes at most once a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        before = read_status(path)
        now = time.time()
        self.status = JobStatus(
            state="running", attempt=before.attempt + 1, busy_seconds=before.elapsed, started=now, updated=now,
            **asdict(this_process()),
        )  # fmt: skip
        self._first_done: float | None = None
        write_status(path, self.status)

    def progress(self, done: float, total: float, unit: str) -> None:
        now = time.time()
        if self._first_done is None:
            self._first_done, self._first_time = done, now
        seconds = now - self._first_time
        rate = (done - self._first_done) / seconds if seconds > 0 else 0.0
        self.status = replace(self.status, done=done, total=total, unit=unit, rate=rate)
        if now - (self.status.updated or 0) >= 1 or done >= total:
            self.status = replace(self.status, updated=now)
            write_status(self.path, self.status)

    def end(self, state: State, message: str = "") -> None:
        now = time.time()
        write_status(self.path, replace(self.status, state=state, message=message, updated=now, ended=now))
