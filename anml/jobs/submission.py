"""Submits the jobs that an experiment still needs: all or nothing, and nothing twice. Or shows what it would submit."""

import json
import shlex
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace

from anml.atomic import read_json, write_text
from anml.errors import SubmissionError
from anml.experiment import Experiment
from anml.jobs.job_status import JobStatus, read_status, write_status
from anml.jobs.launch import Launch, record
from anml.jobs.plan import Job
from anml.jobs.schedulers import Scheduler
from anml.process import recorded_process, this_process


def run_launch(launch: Launch, announce: Callable[[dict[str, str]], None] = lambda ids: None) -> None:
    """Submit every job that is neither done nor waiting or running, and run them where the scheduler runs here.

    If the scheduler refuses a job for good, those submitted here are cancelled. announce: receives the submitted jobs'
    ids by name. Raises SubmissionError.
    """
    scheduler = launch.make_scheduler()
    with one_at_a_time(launch.experiment):
        record(launch, {})
        submission = _Submission(launch, scheduler)
        record(launch, {name: ids[0] for name, ids in submission.ids.items()})
        try:
            for job in launch.plan.jobs:
                submission.submit_job(job)
        except BaseException as error:
            submission.take_back(error)
            raise
    announce(submission.submitted)
    scheduler.finish(launch.plan)


def cancel_pending(launch: Launch, names: Container[str], why: str) -> None:
    """Write `cancelled` into the status files of the named jobs that wait."""
    for job in launch.plan.jobs:
        for task in job.task_numbers if job.name in names else ():
            status_file = launch.experiment.job(job.name, task).status
            status = read_status(status_file)
            if status.state == "pending":
                write_status(status_file, replace(status, state="cancelled", message=why))


class _Submission:
    """ids: of what waits or runs, by job name. submitted: the ids that are new.

    Jobs that the scheduler already has (of an earlier launch that broke off) stay; others may depend on them.
    """

    def __init__(self, launch: Launch, scheduler: Scheduler) -> None:
        self.launch, self.scheduler = launch, scheduler
        self.states, self.ids = scheduler.states(), scheduler.live_ids()
        self.submitted: dict[str, str] = {}

    def submit_job(self, job: Job) -> None:
        """Submit the tasks of a job that are neither done nor waiting or running."""
        live = {task: state for task, state in self.states.get(job.name, {}).items() if state.is_live}
        phases = {state.phase for state in live.values()}
        is_stale = "waiting in vain" in phases or any(name in self.submitted for name in job.after)
        if live and is_stale and "running" not in phases:
            # It waits for jobs that have failed, and that are submitted again now.
            self.scheduler.cancel(self.ids.pop(job.name, []))
            live = {}
        folders = {task: self.launch.experiment.job(job.name, task) for task in job.task_numbers}
        # A report is never done: it is cheap and may be stale.
        done = {t for t in folders if job.kind != "report" and read_status(folders[t].status).state == "done"}
        tasks = [task for task in folders if task not in live and task not in done]
        # A scheduler may tell the waiting tasks of an array in one line, without their numbers.
        if not tasks or None in live:
            return
        write_text(self.launch.experiment.job(job.name).script, self.scheduler.render(job), mode=0o755)
        for task in tasks:
            before = read_status(folders[task].status)
            again = JobStatus(attempt=before.attempt, busy_seconds=before.elapsed)
            write_status(folders[task].status, again)
        # A job that is done needs no dependency.
        after = [id_ for name in job.after for id_ in self.ids.get(name, [])]
        new = self.scheduler.submit(job, after, tasks)
        self.submitted[job.name] = new
        self.ids.setdefault(job.name, []).append(new)
        record(self.launch, self.submitted)

    def take_back(self, error: BaseException) -> None:
        """Cancel what was submitted. Raises SubmissionError that names what cannot be cancelled."""
        ids = list(self.submitted.values())
        try:
            self.scheduler.cancel(ids)
        except SubmissionError as second:
            message = f"{error}\nThese jobs are still queued, cancel them: {', '.join(ids)} ({second})"
            raise SubmissionError(message) from error
        cancel_pending(self.launch, self.submitted, "the launch was taken back")
        record(self.launch, {}, forget=list(self.submitted))


@contextmanager
def one_at_a_time(experiment: Experiment) -> Iterator[None]:
    """Keep two launches from submitting the same experiment at once. Raises SubmissionError."""
    lock = experiment.root / ".submitting.json"
    if recorded_process(read_json(lock), lock).presence == "gone":
        lock.unlink(missing_ok=True)
    try:
        with lock.open("x", encoding="utf-8") as file:
            file.write(json.dumps(asdict(this_process())) + "\n")
    except FileExistsError:
        owner = read_json(lock)
        message = (
            f"{experiment.root}: another launch is submitting it just now (process {owner.get('pid')} on "
            f"{owner.get('host')}). If there is none, delete {lock}."
        )
        raise SubmissionError(message) from None
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()


def describe(launch: Launch) -> str:
    """Return what a launch would do: dependencies, command lines, scripts. <job name> stands for a job's id."""
    scheduler = launch.make_scheduler()
    parts = [f"Experiment folder: {launch.experiment.root} (not created)", "", "Jobs:"]
    parts += [f"  {_graph_line(job)}" for job in launch.plan.jobs]
    for job in launch.plan.jobs:
        command = scheduler.command(job, [f"<{name}>" for name in job.after], job.task_numbers)
        parts += ["", f"--- {launch.experiment.job(job.name).script}", f"$ {shlex.join(command)}"]
        parts.append(scheduler.render(job).rstrip())
    return "\n".join(parts)


def _graph_line(job: Job) -> str:
    tasks = "" if job.tasks is None else f" [{job.tasks} tasks]"
    if not job.after:
        return job.name + tasks
    if job.after_any:
        return f"{job.name}{tasks}  <- after all of the above, whatever became of them"
    return f"{job.name}{tasks}  <- after {', '.join(job.after)} succeeded"
