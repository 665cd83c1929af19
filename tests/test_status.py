"""The status is honest: where scheduler and job disagree, or one is silent, the less hopeful word is shown."""

import os
import socket
import time

import pytest

from anml.job_status import JobStatus
from anml.schedulers.base import SchedulerState
from anml.status import _combine


def running(**changes: object) -> JobStatus:
    now = time.time()
    base = {"state": "running", "attempt": 1, "started": now, "updated": now, "host": "elsewhere", "pid": 1}
    return JobStatus(**(base | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "known", "expected"),
    [
        (JobStatus(), SchedulerState("1", "PENDING", "Resources"), ("pending", "Resources")),
        (JobStatus(), SchedulerState("1", "PENDING", "DependencyNeverSatisfied"), ("failed", "waits for ever")),
        (JobStatus(), SchedulerState("1", "CANCELLED", "DependencyNeverSatisfied"), ("skipped", "needs")),
        (JobStatus("requeued", attempt=1), SchedulerState("1", "PENDING", "BeginTime"), ("pending", "requeued")),
        (running(), SchedulerState("1", "RUNNING"), ("running", "")),
        (running(), SchedulerState("1", "FAILED", "NonZeroExitCode"), ("failed", "FAILED")),
        (running(), SchedulerState("1", "TIMEOUT", "TimeLimit"), ("failed", "TIMEOUT")),
        (running(), SchedulerState("1", "CANCELLED", "None"), ("cancelled", "cancelled")),
        (running(), SchedulerState("1", "COMPLETED", "None"), ("failed", "never said")),
        (JobStatus("done"), SchedulerState("1", "COMPLETED", "None"), ("done", "")),
        (JobStatus("failed", "disk full"), None, ("failed", "disk full")),
        (running(updated=time.time() - 3600), None, ("lost", "silent")),
        (running(host=socket.gethostname(), pid=2**22 - 3), None, ("failed", "process is gone")),
        (running(host=socket.gethostname(), pid=os.getpid()), None, ("running", "")),
    ],
)
def test_state_and_reason(status: JobStatus, known: SchedulerState | None, expected: tuple[str, str]) -> None:
    state, reason = _combine(status, known, submitted=True)
    assert state == expected[0]
    assert expected[1] in reason


def test_job_that_was_never_submitted_says_so() -> None:
    assert _combine(JobStatus(), None, submitted=False) == ("pending", "never submitted")
