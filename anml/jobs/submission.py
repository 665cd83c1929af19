"""Submits the jobs that an experiment still needs: all or nothing, and nothing twice. Or shows what it would submit."""

import shlex
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import reduce

from filelock import FileLock, Timeout

from anml.atomic import read_json, write_json, write_text
from anml.config.profile import SbatchOptions, merged
from anml.errors import SubmissionError
from anml.experiment import Experiment
from anml.jobs.escalation import NO_NODE_LEFT, bad_nodes, failed_on, option_words, options_again
from anml.jobs.interrupts import ended_as_by_ctrl_c, held_back
from anml.jobs.job_status import LATENCY_SECONDS, JobStatus, read_status, reopen, write_status
from anml.jobs.launch import Launch, moved_from, record
from anml.jobs.plan import Job
from anml.jobs.process import this_process
from anml.jobs.schedulers import Scheduler

# Seconds that a launch waits for jobs that are ending before it says that they do not end.
ENDING_SECONDS = 120.0


def run_launch(
    launch: Launch,
    announce: Callable[[dict[str, str]], None] = lambda ids: None,
    begin: Callable[[], None] = lambda: None,
) -> None:
    """Submit every job that is neither done nor waiting or running, and run them where the scheduler runs here.

    If the scheduler refuses a job for good, or somebody ends the launch, those submitted here are cancelled.
    announce: receives the submitted jobs' ids by name. begin: is called first, when no other launch is at work on the
    experiment. Raises SubmissionError.
    """
    scheduler = launch.make_scheduler()
    with ended_as_by_ctrl_c(), one_at_a_time(launch.experiment):
        begin()
        if before := moved_from(launch.experiment):
            print(f"{launch.experiment.root}: was moved from {before}; jobs submitted there are submitted again here")
            scheduler.cancel(sorted({id_ for ids in scheduler.live_ids().values() for id_ in ids}))
        record(launch, {})
        _wait_for_ends(launch, scheduler)
        submission = _Submission(launch, scheduler)
        record(launch, {name: ids[0] for name, ids in submission.ids.items()})
        try:
            for jobs in launch.plan.batches(scheduler.array_from):
                submission.submit(jobs)
        except BaseException as error:
            with held_back(threading.Event()):
                submission.take_back(error)
            raise
    announce(submission.submitted)
    scheduler.finish(launch.plan)


def _wait_for_ends(launch: Launch, scheduler: Scheduler) -> None:
    """Wait for cancelled jobs that are not yet gone, and for a report that runs: it would not tell of what comes now.

    Both would count as running. Raises SubmissionError when they do not end.
    """
    end, said = time.monotonic() + ENDING_SECONDS, ""
    while names := ", ".join(job.label(task) for job, task in _ending(launch, scheduler)):
        if time.monotonic() > end:
            message = f"{names}: has not ended in {ENDING_SECONDS:.0f} s; retry when it has"
            raise SubmissionError(message)
        if names != said:
            print(f"waiting for the end of {names} ...", file=sys.stderr, flush=True)
        said = names
        time.sleep(1)


def _ending(launch: Launch, scheduler: Scheduler) -> Iterator[tuple[Job, int | None]]:
    states = scheduler.states()
    for job in launch.plan.jobs:
        for task, state in states.get(job.name, {}).items():
            is_done = read_status(launch.experiment.job(job.name, task).status).state == "done"
            if state.phase in (("running", "ending") if job.kind == "report" else () if is_done else ("ending",)):
                yield job, task


def cancel_pending(launch: Launch, names: Container[str], why: str) -> None:
    """Write `cancelled` into the status files of the named jobs that wait."""
    for job in launch.plan.jobs:
        for task in job.task_numbers if job.name in names else ():
            status_file = launch.experiment.job(job.name, task).status
            status = read_status(status_file)
            if status.state == "pending":
                write_status(status_file, replace(status, state="cancelled", message=why))


@dataclass(frozen=True)
class _Ready:
    """A job whose script is written, to be submitted with these tasks.

    before: the new statuses of its tasks. had: the options that they gave themselves. endings: what the scheduler says
    of their ends.
    """

    job: Job
    before: Mapping[int | None, JobStatus]
    had: Sequence[SbatchOptions]
    endings: Sequence[str]


class _Submission:
    """ids: of what waits or runs, by job name. submitted: the ids that are new.

    Jobs that the scheduler already has (of an earlier launch that broke off) stay; others may depend on them.
    """

    def __init__(self, launch: Launch, scheduler: Scheduler) -> None:
        self.launch, self.scheduler = launch, scheduler
        queue = list(scheduler.queue())
        self.states, self.ids = scheduler.states(queue), scheduler.live_ids(queue)
        self.submitted: dict[str, str] = {}

    def submit(self, jobs: Sequence[Job]) -> None:
        """Submit the tasks, of jobs of which none depends on another, that are neither done nor waiting or running."""
        ready = {job.name: ready for job in jobs if (ready := self._prepare(job))}
        if ready:
            self._reopen_report()
        arrays = self._arrays([each.job for each in ready.values()])
        for (after, _), numbered in arrays.items():
            if len(numbered) >= self.scheduler.array_from:
                with held_back(self.scheduler.stop):
                    self._record(self.scheduler.submit_array(numbered, after))
        for each in [each for name, each in ready.items() if name not in self.submitted]:
            self._submit_alone(each)

    def _arrays(self, jobs: Sequence[Job]) -> dict[tuple[str, int], dict[int, Job]]:
        """Return the jobs that can be tasks of arrays, by number: by the array whose tasks they wait for, and counted.

        A job that waits for several others, or that a retry has given options, stays alone.
        """
        arrays: dict[tuple[str, int], dict[int, Job]] = {}
        size = self.launch.profile.max_array_size
        for place, job in enumerate(jobs):
            needs = self._needs(job)
            array, _, task = needs[0].partition("_") if needs else ("", "", str(place % size))
            if job.tasks is None and len(needs) < 2 and task.isdigit() and not self.launch.job_options.get(job.name):
                numbered = arrays.setdefault((array, 0 if needs else place // size), {})
                numbered.setdefault(int(task), job)
        return arrays

    def _prepare(self, job: Job) -> _Ready | None:
        """Write the script of a job, and the statuses of its tasks, where some are to be submitted."""
        live = {task: state for task, state in self.states.get(job.name, {}).items() if state.is_live}
        phases = {state.phase for state in live.values()}
        is_stale = "waiting in vain" in phases or any(name in self.submitted for name in job.after)
        if live and is_stale and (job.kind == "report" or "running" not in phases):
            # It waits for jobs that have failed, and that are submitted again now; or it is a report without them.
            self.scheduler.cancel(self.ids.pop(job.name, []))
            live = {}
        files = {task: self.launch.experiment.job(job.name, task).status for task in job.task_numbers}
        last = {task: read_status(file) for task, file in files.items() if task not in live}
        if job.kind != "report":  # A report is never done: it is cheap and may be stale.
            last = {task: status for task, status in last.items() if not self._is_done(job, task, status)}
        # A scheduler may tell the waiting tasks of an array in one line, without their numbers.
        if not last or None in live:
            return None
        for task, status in last.items():
            self._check_has_ended(job, task, status)
        before = {task: self._before(job, task, status) for task, status in last.items()}
        endings = [state.words for state in self.states.get(job.name, {}).values() if not state.is_live]
        ready = _Ready(job, before, [status.more for status in last.values()], endings)
        self._write_script(ready)
        for task, status in before.items():
            if status != last[task]:  # A task that is new has none: a thousand files take seconds.
                write_status(files[task], status)
        return ready

    def _reopen_report(self) -> None:
        """Take back a report that does not tell of what runs now: this launch may be killed before it submits it."""
        for job in [job for job in self.launch.plan.jobs if job.kind == "report"]:
            reopen(self.launch.experiment.job(job.name).status, "other jobs are to run after it: use retry")

    def _submit_alone(self, ready: _Ready) -> None:
        job, tasks = ready.job, list(ready.before)
        with held_back(self.scheduler.stop):
            try:
                new = self.scheduler.submit(job, self._needs(job), tasks)
            except SubmissionError:
                if not bad_nodes(list(ready.before.values())):
                    raise
                self._write_script(replace(ready, endings=[*ready.endings, NO_NODE_LEFT]))
                new = self.scheduler.submit(job, self._needs(job), tasks)
            self._record({job.name: new})

    def _needs(self, job: Job) -> list[str]:
        """Return the ids of the jobs that it waits for; one that is done needs no dependency."""
        return [id_ for name in job.after for id_ in self.ids.get(name, [])]

    def _record(self, new: Mapping[str, str]) -> None:
        self.submitted |= new
        for name, id_ in new.items():
            self.ids.setdefault(name, []).append(id_)
        record(self.launch, self.submitted)

    def _check_has_ended(self, job: Job, task: int | None, status: JobStatus) -> None:
        """Raise SubmissionError where a task's process has outlived it in the scheduler, which knows it no more."""
        if self.scheduler.forgets_ended_jobs and status.is_writing and task not in self.states.get(job.name, {}):
            message = (
                f"{job.label(task)}: process {status.pid} on {status.host} still writes its status, though the "
                "scheduler knows no such job: end the process, or wait for its end, then retry"
            )
            raise SubmissionError(message)

    def _is_done(self, job: Job, task: int | None, status: JobStatus) -> bool:
        """Say whether a task is done, and what it has written is there, which another machine may see late."""
        is_new = time.time() - (status.ended or 0.0) < LATENCY_SECONDS
        return status.state == "done" and (is_new or job.has_results(self.launch.experiment.results, task))

    def _before(self, job: Job, task: int | None, last: JobStatus) -> JobStatus:
        """Return what the new status of a task takes over from the one before."""
        state = self.states.get(job.name, {}).get(task)
        return replace(last.waiting, failed_on=failed_on(last, state.words if state else ""))

    def _write_script(self, ready: _Ready) -> None:
        self._choose_options(ready)
        job = ready.job
        write_text(self.launch.experiment.job(job.name).script, self.scheduler.render(job), mode=0o777)

    def _choose_options(self, ready: _Ready) -> None:
        """Let a job that runs again have what it lacked, and say so."""
        job, endings, before = ready.job, ready.endings, list(ready.before.values())
        profile, last = self.launch.profile, self.launch.job_options.get(job.name, {})
        had = reduce(merged, ready.had, last)
        again = options_again(profile, job, had, self.launch.retry_options, before, endings)
        if again == last:
            return
        self.launch.job_options[job.name] = again
        new = " ".join(option_words({name: value for name, value in again.items() if last.get(name) != value}))
        if any(NO_NODE_LEFT in ending for ending in endings):
            new += " no node is left out any more, since no other can take it"
        why = f" ({', '.join(dict.fromkeys(endings))})" if endings else ""
        nodes = f"; {', '.join(nodes)} failed it twice" if (nodes := bad_nodes(before)) else ""
        print(f"note: {job.name}: {new}{why}{nodes}", file=sys.stderr)

    def take_back(self, error: BaseException) -> None:
        """Cancel what was submitted. Raises SubmissionError that names what cannot be cancelled."""
        ids = list(self.submitted.values())
        try:
            self.scheduler.cancel(ids)
        except SubmissionError as second:
            message = f"{error}\nThese jobs are still queued, cancel them: {', '.join(ids)} ({second})"
            raise SubmissionError(message) from error
        cancel_pending(self.launch, self.submitted, "the launch was taken back")
        if ids:
            print(f"taken back: {', '.join(self.submitted)}", file=sys.stderr)
        record(self.launch, {}, forget=list(self.submitted))


@contextmanager
def one_at_a_time(experiment: Experiment, patience: float = 0.0) -> Iterator[None]:
    """Keep two launches from submitting the same experiment at once. Raises SubmissionError.

    patience: how many seconds to wait for the other one.
    """
    # The system ends the hold when its owner ends; nobody has to judge whether the owner lives.
    lock, owner_file = experiment.root / ".submitting.lock", experiment.root / ".submitting.json"
    try:
        with FileLock(lock, timeout=patience, mode=0o664):
            write_json(owner_file, asdict(this_process()))
            try:
                yield
            finally:
                owner_file.unlink(missing_ok=True)
    except Timeout:
        owner = read_json(owner_file)
        message = (
            f"{experiment.root}: another launch is submitting it just now (process {owner.get('pid', 'unknown')} on "
            f"{owner.get('host', 'an unknown host')}). Wait for it, or end it; nothing was changed."
        )
        raise SubmissionError(message) from None


def describe(launch: Launch) -> str:
    """Return what a launch would do: dependencies, command lines, scripts. <job name> stands for a job's id."""
    scheduler = launch.make_scheduler()
    is_new = not launch.experiment.config_file.is_file()
    parts = [f"Experiment folder: {launch.experiment.root}{' (not created)' * is_new}", "", "Jobs:"]
    parts += [f"  {_graph_line(job)}" for job in launch.plan.jobs]
    large = [jobs for jobs in launch.plan.batches(scheduler.array_from) if len(jobs) >= scheduler.array_from]
    parts += [f"{len(jobs)} jobs may be tasks of one array: {jobs[0].name} ... {jobs[-1].name}" for jobs in large]
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
