"""The frame of a job: status, signals, requeue, exit code. What the job does is handed in."""

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from anml.atomic import read_json
from anml.config.profile import ClusterProfile, SbatchOptions, merged
from anml.errors import AnmlError, JobError, missing_package
from anml.experiment import Experiment
from anml.jobs.escalation import next_steps, option_words
from anml.jobs.job_status import EXIT_INTERRUPTED, CopyError, State, StatusFile, read_status, reopen, write_status
from anml.jobs.plan import REPORT, Plan
from anml.jobs.schedulers import scheduler_of_this_job

# What a shell returns for a process that was killed.
EXIT_KILLED = 137


def check_folder(folder: Path, min_free_gb: float) -> None:
    """Raise JobError unless a folder can be written to and has space left."""
    if not os.access(folder, os.W_OK):
        message = f"{folder}: cannot be written to from this machine. Is the file system mounted here, and yours?"
        raise JobError(message)
    free = shutil.disk_usage(folder).free / 1e9
    if free < min_free_gb:
        message = f"{folder}: {free:.1f} GB of disk left, this job wants {min_free_gb:g} GB. Make space, then retry."
        raise JobError(message)


def array_task() -> int | None:
    """Return this process's array task number, or None outside an array."""
    scheduler = scheduler_of_this_job()
    value = os.environ.get(scheduler.task_variable) if scheduler else None
    return int(value) if value else None


class StopRequest:
    """Set by SIGUSR1 (time limit near), SIGTERM (preemption, cancel) and Ctrl-C; the work looks at it between steps."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def __call__(self) -> bool:
        """Say whether to stop."""
        return self.received is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # Asked twice: stop at once.
        if self.received != signal.SIGUSR1:  # TERM follows it at the limit itself; the reason stays the limit.
            self.received = signal.Signals(number)


@dataclass
class JobContext:
    """What the work of a job gets: when to stop, and where to report progress."""

    stop: StopRequest
    status: StatusFile | None
    bar: tqdm

    def progress(self, done: float, total: float, unit: str) -> None:
        """Report progress to the status file, or to a person at a terminal."""
        if self.status is not None:
            self.status.progress(done, total, unit)
        self.bar.total, self.bar.unit = total, unit
        self.bar.update(done - self.bar.n)

    def end(self, state: State, message: str, code: int, **changes: Any) -> int:
        """Say how the job ended. Returns its exit code. changes: of its status."""
        # As python ends, a warning that comes now would kill it, and make a failure of a success.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self.bar.close()
        if message:
            print(message, file=sys.stderr, flush=True)
        if self.status is not None:
            self.status.end(state, message, **changes)
        return code


def run_job(
    experiment: Experiment | None, name: str | None, task: int | None, work: Callable[[JobContext], bool],
    max_requeues: int = 0,
) -> int:  # fmt: skip
    """Run `work`, which returns False when it stopped before its end. Returns the process's exit code."""
    if experiment and name and _is_done_already(experiment, name, task):
        print("this job is done already: nothing to do", file=sys.stderr, flush=True)
        return 0
    try:
        status = _open_status(experiment, name, task) if experiment and name else None
    except CopyError as error:  # The files are the other's.
        print(f"{error}: this copy leaves", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    bar = tqdm(desc=name, disable=not sys.stderr.isatty() or status is not None)
    context = JobContext(StopRequest(), status, bar)
    try:
        finished = work(context)
    except AnmlError as error:
        return context.end("failed", str(error), error.exit_code)
    except KeyboardInterrupt:
        return context.end("interrupted", "stopped by Ctrl-C", EXIT_INTERRUPTED)
    except Exception as error:
        if message := missing_package(error):
            return context.end("failed", message, 1)
        traceback.print_exc()
        return context.end("failed", f"{type(error).__name__}: {error}", 1)
    if finished:
        report = experiment.job(REPORT).status if experiment and status and name != REPORT else None
        if report and read_status(report).state == "done":  # One that is at work will see that a job has ended.
            reopen(report, f"{name} has ended after it: use retry")
        return context.end("done", "", 0)
    return _stopped_early(context, max_requeues, lambda: next_options(experiment, name, task, "TIMEOUT"))


def _is_done_already(experiment: Experiment, name: str, task: int | None) -> bool:
    """Say whether a scheduler starts a job that is done: a second copy, or once more after its node was lost."""
    scheduler = scheduler_of_this_job()
    if scheduler is None or not scheduler.this_job() or name == REPORT:
        return False
    if read_status(experiment.job(name, task).status).state != "done":
        return False
    jobs = Plan.from_json(read_json(experiment.plan_file).get("jobs", [])).jobs
    return all(job.has_results(experiment.results, task) for job in jobs if job.name == name)


def _open_status(experiment: Experiment, name: str, task: int | None) -> StatusFile:
    """Return the status file of this job. Raises CopyError when another process runs it, or is to run it."""
    scheduler = scheduler_of_this_job()
    id_ = scheduler.this_job() if scheduler else ""
    recorded = read_json(experiment.plan_file).get("submitted", {}).get(name, {}).get("id", "")
    # Of an array, the latest id may be of some tasks only; `7_3` is a job that Slurm has as a task.
    numbers = [each.partition("_")[0] for each in (id_, recorded)]
    if task is None and all(map(str.isdigit, numbers)) and int(numbers[0]) < int(numbers[1]):
        message = f"this job (id {id_}) was submitted again later, as {recorded}"
        raise CopyError(message)
    return StatusFile(experiment.job(name, task).status, id_)


def _stopped_early(context: JobContext, max_requeues: int, more_time: Callable[[], SbatchOptions]) -> int:
    """Requeue a job whose time limit is near; its dependents keep waiting, since its id stays the same.

    Only then: after a cancel a requeue would bring the job back, and at preemption the scheduler requeues it.
    more_time: the options for a job that got no further in its time.
    """
    received = context.stop.received
    why = f"stopped by {received.name}, work saved" if received else "stopped, work saved"
    scheduler = scheduler_of_this_job() if received == signal.SIGUSR1 and max_requeues else None
    if scheduler is None or context.status is None or scheduler.restarts() is None:
        return context.end("interrupted", why, EXIT_INTERRUPTED)
    # Preemptions and restarts by an administrator count only where they leave a job no time to get on.
    fruitless = context.status.status.fruitless
    if fruitless > max_requeues:
        message = f"{why}; not requeued again after {fruitless} attempts without progress (max_requeues of the profile)"
        return context.end("failed", message, 1)
    more = more_time() if fruitless else {}
    message = " ".join([f"{why}; requeued", *option_words(more)])
    # Before the requeue itself, at which the scheduler may end this process.
    context.end("requeued", message, 0, more={**context.status.status.more, **more})
    if problem := scheduler.requeue(more):
        return context.end("interrupted", f"{why}; {problem}", EXIT_INTERRUPTED)
    return EXIT_INTERRUPTED


def requeue_killed(experiment: Experiment, name: str, task: int | None) -> int:
    """Requeue a job whose process the kernel has killed, with the next step of memory. Returns the job's exit code."""
    more, scheduler = next_options(experiment, name, task, "OUT_OF_MEMORY"), scheduler_of_this_job()
    if not more or scheduler is None:
        return EXIT_KILLED
    file = experiment.job(name, task).status
    status = read_status(file)
    message = " ".join(["killed, probably for its memory; requeued", *option_words(more)])
    print(message, file=sys.stderr, flush=True)
    write_status(file, replace(status, state="requeued", message=message, more={**status.more, **more}))
    if problem := scheduler.requeue(more):
        write_status(file, replace(status, state="failed", message=f"killed, probably for its memory; {problem}"))
        return EXIT_KILLED
    return EXIT_INTERRUPTED


def next_options(experiment: Experiment | None, name: str | None, task: int | None, ending: str) -> SbatchOptions:
    """Return the next step of `escalate` for this job, none where there is no larger one. ending: as Slurm calls it."""
    if experiment is None or name is None or not (data := read_json(experiment.plan_file)):
        return {}
    profile, kind = ClusterProfile(**data["cluster"]), Plan.from_json(data["jobs"]).job(name).kind
    asked = merged(profile.sbatch.for_kind(kind), data.get("options", {}).get(name, {}))
    return next_steps(profile, merged(asked, read_status(experiment.job(name, task).status).more), [ending])
