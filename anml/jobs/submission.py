"""Submits what an experiment still needs: all or nothing, and nothing twice."""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace

from anml.atomic import read_json, write_text
from anml.errors import SubmissionError
from anml.experiment import Experiment
from anml.jobs.job_status import read_status, write_status
from anml.jobs.launch import Launch, record
from anml.jobs.plan import Job
from anml.jobs.schedulers import make_scheduler
from anml.jobs.schedulers.base import Scheduler, SchedulerState, States
from anml.process import Process, recorded_process, this_process

Task = int | None


def run_launch(launch: Launch, announce: Callable[[dict[str, str]], None] = lambda ids: None) -> None:
    """Submit every job that is neither done nor waiting or running, and (on the machine at hand) run them.

    announce: receives the submitted jobs' ids by name. Raises SubmissionError.
    """
    scheduler = make_scheduler(launch.experiment, launch.profile, launch.wandb_mode)
    with _one_at_a_time(launch.experiment):
        record(launch, {})
        submitted = submit(launch, scheduler)
    announce(submitted)
    scheduler.finish(launch.plan)


def is_done(experiment: Experiment, job: Job, task: Task) -> bool:
    """Say whether a task has done its work. A report is never done: it is cheap and may be stale."""
    return job.kind != "report" and read_status(experiment.job(job.name, task).status).state == "done"


@dataclass
class _Known:
    """Ids that jobs may be depended upon by: of what waits or runs already, and of what is submitted here."""

    ids: dict[str, list[str]]
    submitted: dict[str, str] = field(default_factory=dict)


def submit(launch: Launch, scheduler: Scheduler) -> dict[str, str]:
    """Write the scripts of the jobs that are still to do and submit them. Returns their ids by name.

    What the scheduler already has (of an earlier launch that broke off) is left as it is and depended upon. If one is
    refused for good, those submitted here are cancelled. Raises SubmissionError.
    """
    states = scheduler.states()
    known = _Known(scheduler.live_ids())
    record(launch, {name: ids[0] for name, ids in known.ids.items()})
    try:
        for job in launch.plan.jobs:
            _submit_job(launch, scheduler, job, states, known)
    except BaseException as error:
        _take_back(launch, scheduler, known.submitted, error)
        raise
    return known.submitted


def _submit_job(launch: Launch, scheduler: Scheduler, job: Job, states: States, known: _Known) -> None:
    """Submit the tasks of a job that are neither done nor on their way."""
    live = {task for task, state in states.get(job.name, {}).items() if state.is_live}
    if live and _waits_for_the_wrong(job, states[job.name], known):
        scheduler.cancel(known.ids.pop(job.name, []))
        live = set()
    tasks = [t for t in job.task_numbers if t not in live and not is_done(launch.experiment, job, t)]
    # Waiting array tasks may be told in one line, without their numbers.
    if not tasks or None in live:
        return
    write_text(launch.experiment.job(job.name).script, scheduler.render(job), mode=0o755)
    for task in tasks:
        status_file = launch.experiment.job(job.name, task).status
        before = read_status(status_file)
        again = replace(before, state="pending", message="", done=0.0, busy_seconds=before.elapsed)
        write_status(status_file, replace(again, started=None, ended=None, updated=None, **asdict(Process())))
    # A job that is done needs no dependency, and Slurm takes one that it has forgotten for met.
    after = [id_ for name in job.after for id_ in known.ids.get(name, [])]
    new = scheduler.submit(job, after, tasks)
    known.submitted[job.name] = new
    known.ids.setdefault(job.name, []).append(new)
    record(launch, known.submitted)


def _waits_for_the_wrong(job: Job, tasks: dict[Task, SchedulerState], known: _Known) -> bool:
    """Say whether a waiting job waits in vain, or does not wait for what is submitted again just now."""
    if any(state.state != "PENDING" for state in tasks.values() if state.is_live):
        return False
    in_vain = any(state.reason == "DependencyNeverSatisfied" for state in tasks.values())
    return in_vain or any(name in known.submitted for name in job.after)


def _take_back(launch: Launch, scheduler: Scheduler, submitted: dict[str, str], error: BaseException) -> None:
    """Cancel what was submitted; what cannot be cancelled is named."""
    try:
        scheduler.cancel(list(submitted.values()))
    except SubmissionError as second:
        message = f"{error}\nThese jobs are still queued, cancel them: {', '.join(submitted.values())} ({second})"
        raise SubmissionError(message) from error
    for name in submitted:
        for task in launch.plan.job(name).task_numbers:
            status_file = launch.experiment.job(name, task).status
            status = read_status(status_file)
            if status.state == "pending":
                write_status(status_file, replace(status, state="cancelled", message="the launch was taken back"))
    record(launch, {}, forget=list(submitted))


@contextmanager
def _one_at_a_time(experiment: Experiment) -> Iterator[None]:
    """Keep two launches from submitting the same experiment at once. Raises SubmissionError."""
    lock = experiment.root / ".submitting.json"
    if recorded_process(read_json(lock) or {}, lock).presence == "gone":
        lock.unlink(missing_ok=True)
    try:
        with lock.open("x", encoding="utf-8") as file:
            file.write(json.dumps(asdict(this_process())) + "\n")
    except FileExistsError:
        who = read_json(lock) or {}
        message = (
            f"{experiment.root}: another launch is submitting it just now (process {who.get('pid')} on "
            f"{who.get('host')}). If there is none, delete {lock}."
        )
        raise SubmissionError(message) from None
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()


# What a launch would do, as text: the dependency graph, every command line, every script.


def describe(launch: Launch) -> str:
    """Return the plan as it would be submitted. Job ids, not known yet, are shown as <job name>."""
    scheduler = make_scheduler(launch.experiment, launch.profile, launch.wandb_mode)
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
