"""The machine at hand as a scheduler: scripts run as processes, in the order of their dependencies."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from anml.config.profile import ClusterProfile
from anml.errors import ConfigError, SubmissionError
from anml.experiment import Experiment, JobFolder
from anml.jobs.interrupts import ended_as_by_ctrl_c
from anml.jobs.job_status import ENDED, JobStatus, State, duration, read_status, unmet_need, write_status
from anml.jobs.plan import Job, JobKind, Plan
from anml.jobs.process import Process, this_process
from anml.jobs.schedulers import Entry, Scheduler, SchedulerState
from anml.jobs.schedulers.controller import environment_outside_slurm
from anml.jobs.schedulers.slurm import SlurmScheduler
from anml.jobs.schedulers.slurm_options import parse_options, unlisted_options

# Seconds that the jobs get to save their work after Ctrl-C.
GRACE_SECONDS = 30.0
POLL_SECONDS = 0.1
# Seconds between two looks at what waits, unless a job of this launcher ends.
LOOK_SECONDS = 1.0
# Seconds between two lines about the same job, where there is no terminal.
LINE_SECONDS = 15.0
_STARTING = "{desc}: starting, {elapsed}"
_RUNNING = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}]"


class RunningJob:
    """The process of a job, or of one task of an array, shown as a bar at a terminal, else by a line now and then."""

    def __init__(self, label: str, folder: JobFolder, process: subprocess.Popen) -> None:
        from tqdm import tqdm  # Only where jobs run: a dry run does without.

        self.label, self.folder, self.process, self.last_line = label, folder, process, time.monotonic()
        self.bar = tqdm(desc=label, bar_format=_STARTING, disable=None)  # None: disabled where there is no terminal.

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the job, unless it has ended: another process may have its id then."""
        if self.process.poll() is None:
            _signal_group(self.process.pid, number)

    def has_ended(self) -> bool:
        """Show how far the job is. Say whether it has ended, and write how if it has not done so itself."""
        code, status = self.process.poll(), read_status(self.folder.status)
        self._show(status)
        if code is None:
            if status.state == "cancelled":  # While it was starting, when `cancel` did not know its process.
                self.signal(signal.SIGKILL)
            return False
        if status.state not in ENDED:
            killed = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
            message = killed or f"ended with exit code {code} before it could say why"
            status = replace(status, state="failed", message=message, ended=time.time())
            write_status(self.folder.status, status)
        self.bar.close()
        if status.state != "done":
            problem = f"{status.state}: {status.message or 'see the log'}"
            self.bar.write(f"{self.label}: {problem}\n  log: {self.folder.log}", sys.stderr)
        elif self.bar.disable:
            self.bar.write(f"{self.label}: done in {duration(status.elapsed)}", sys.stderr)
        return True

    def _show(self, status: JobStatus) -> None:
        if status.total:
            self.bar.bar_format, self.bar.unit, self.bar.total = _RUNNING, status.unit, status.total
            self.bar.n = status.done
            if self.bar.disable and time.monotonic() - self.last_line > LINE_SECONDS:
                self.last_line = time.monotonic()
                self.bar.write(f"{self.label}: {status.done:.0f} of {status.total:.0f} {status.unit}", sys.stderr)
        self.bar.refresh()


# The state of an array is that of its task that comes first here: while a task is to come, the array has not ended.
_WORST_FIRST: tuple[State, ...] = (
    "running", "requeued", "pending", "failed", "cancelled", "interrupted", "skipped", "done"
)  # fmt: skip


class LocalScheduler(Scheduler):
    """Queues on `submit`, runs on `finish`."""

    # The same as Slurm's: the code that earlier versions have frozen reads that one.
    task_variable = SlurmScheduler.task_variable
    runs_here = True

    def __init__(self, experiment: Experiment, profile: ClusterProfile, wandb_mode: str) -> None:
        super().__init__(experiment, profile, wandb_mode)
        self.queued: list[tuple[Job, int | None]] = []

    @classmethod
    def with_options(cls, profile: ClusterProfile, arguments: list[str], own_options: list[str]) -> ClusterProfile:
        """Return the profile as it is: sbatch options are checked and have no effect. Raises ConfigError."""
        if problems := unlisted_options(parse_options(arguments), own_options):
            raise ConfigError(problems)
        return profile

    @classmethod
    def memory(cls, profile: ClusterProfile, kind: JobKind) -> tuple[float, str] | None:
        """Return the memory of this machine with its swap space, where Linux tells."""
        file = Path("/proc/meminfo")
        sizes = re.findall(r"(?:MemTotal|SwapTotal): *(\d+) kB", file.read_text() if file.is_file() else "")
        words = "this machine, swap space included; choose a smaller model, or a cluster (--cluster)"
        return (sum(map(int, sizes)) * 1024, words) if sizes else None

    def command(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> list[str]:
        return ["bash", str(self.experiment.job(job.name).script)]

    def submit(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> str:
        """Queue tasks of a job; the job's name is their id."""
        for task in tasks:
            self.queued.append((job, task))
            status_file = self.experiment.job(job.name, task).status
            write_status(status_file, replace(read_status(status_file), state="pending", **asdict(this_process())))
        return job.name

    def finish(self, plan: Plan) -> None:
        """Run all queued jobs. Ctrl-C, SIGTERM or SIGHUP ends the running ones and leaves everything resumable."""
        waiting = list(self.queued)
        running: list[RunningJob] = []
        next_look = 0.0
        with ended_as_by_ctrl_c():
            try:
                while waiting or running:
                    free = self.profile.job_limit - len(running)
                    # A look reads a file of each job that waits: ten looks a second at 42 of them took 14% of a core.
                    if free and time.monotonic() >= next_look:
                        next_look = time.monotonic() + LOOK_SECONDS
                        # Another process may have cancelled a job that waits.
                        waiting = [i for i in waiting if self._status(*i).state == "pending"]
                        waiting = [i for i in waiting if not self._skip(*i, plan)]
                        for item in [i for i in waiting if self._is_ready(i[0], plan)][:free]:
                            waiting.remove(item)
                            running.append(self._start(*item))
                    time.sleep(POLL_SECONDS)
                    if ended := [item for item in running if item.has_ended()]:
                        running, next_look = [item for item in running if item not in ended], 0.0
            except KeyboardInterrupt:
                _interrupt(running)
                raise

    def queue(self) -> Iterator[tuple[str, int | None, SchedulerState]]:
        """Yield what runs, and what waits for a launcher that still runs; all else is in the jobs' status files."""
        for status_file, status in self._unended():
            name, task = self.experiment.job_of(status_file)
            if status.presence == "alive" and (status.state == "pending" or self._runs(name, status)):
                yield name, task, SchedulerState(name, "waiting" if status.state == "pending" else "running")

    def live_ids(self, queue: Iterable[Entry] | None = None) -> dict[str, list[str]]:
        """Raise SubmissionError where this machine cannot tell: a job would run twice, or a stranger's process end."""
        files = {file: status for file, status in self._unended() if status.presence == "unknown"}
        if files:
            shown = ", ".join(str(file.parent.relative_to(self.experiment.jobs)) for file in files)
            owners = " and ".join(sorted({f"process {owner.pid} of {owner.host}" for owner in files.values()}))
            message = (
                f"{self.experiment.jobs}: {shown}: started by {owners}; only that machine (or container, or user) can "
                "tell whether they still wait or run. Use this command there. If it is gone for good, delete the "
                "status.json of these jobs, and use it here."
            )
            raise SubmissionError(message)
        return super().live_ids(queue)

    def cancel(self, ids: Sequence[str]) -> None:
        """End the named jobs that wait or run on this machine, also those of another launcher."""
        files = [file for name in ids for file in sorted(self.experiment.job(name).root.rglob("status.json"))]
        unended = [(file, status) for file in files if (status := read_status(file)).state not in ENDED]
        # Waiting jobs first: else the launcher would start one while its predecessor is being ended.
        for file, status in sorted(unended, key=lambda pair: pair[1].state == "running"):
            cancelled = replace(status, state="cancelled", ended=time.time())
            write_status(file, cancelled)
            if status.state == "running" and self._runs(self.experiment.job_of(file)[0], status):
                _signal_group(status.pid, signal.SIGKILL)
                write_status(file, cancelled)  # The job may have written its status in between.

    def _unended(self) -> list[tuple[Path, JobStatus]]:
        """Return the status files, and the statuses, of jobs that wait for a launcher or run, as written."""
        statuses = [(file, read_status(file)) for file in sorted(self.experiment.jobs.rglob("status.json"))]
        return [(file, status) for file, status in statuses if status.pid and status.state in ("running", "pending")]

    def _runs(self, name: str, process: Process) -> bool:
        """Say whether a process is this job. Where an experiment was copied, the process is the original's."""
        arguments = re.search(r" --run-dir (.+) --job (\S+)", process.command_line)
        if arguments is None or process.presence != "alive":
            return False
        return arguments[2] == name and Path(arguments[1]).resolve() == self.experiment.root.resolve()

    def _start(self, job: Job, task: int | None) -> RunningJob:
        folder = self.experiment.job(job.name, task)
        folder.log.parent.mkdir(parents=True, exist_ok=True)
        environment = environment_outside_slurm() | ({} if task is None else {self.task_variable: str(task)})
        if self.profile.job_limit > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.profile.job_limit)))
        with folder.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(job, (), ()), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip
        return RunningJob(job.label(task), folder, process)

    def _status(self, job: Job, task: int | None) -> JobStatus:
        return read_status(self.experiment.job(job.name, task).status)

    def _is_ready(self, job: Job, plan: Plan) -> bool:
        # A job that fails just now is seen in the next round, by `_skip`.
        return all(self._state(name, plan) in (ENDED if job.after_any else ("done",)) for name in job.after)

    def _skip(self, job: Job, task: int | None, plan: Plan) -> bool:
        """Skip a job that needs another's success when that one ended without it. Return whether it did."""
        failed = [n for n in job.after if not job.after_any and self._state(n, plan) in set(ENDED) - {"done"}]
        if failed:
            status_file = self.experiment.job(job.name, task).status
            write_status(status_file, JobStatus(state="skipped", message=unmet_need(failed[0])))
        return bool(failed)

    def _state(self, name: str, plan: Plan) -> State:
        """Return the state of a whole job: that of its worst task."""
        tasks = [self._status(plan.job(name), task) for task in plan.job(name).task_numbers]
        # A job that another launcher started may have been killed together with that launcher.
        states = {"failed" if status.has_vanished else status.state for status in tasks}
        return next(state for state in _WORST_FIRST if state in states)


def _interrupt(running: list[RunningJob]) -> None:
    with contextlib.suppress(OSError):  # The terminal may be closed.
        print("\nStopping: the running jobs save their work ...", file=sys.stderr)
    for item in running:
        item.signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for item in running:
        try:
            item.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            item.signal(signal.SIGKILL)
            item.process.wait()
        item.has_ended()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
