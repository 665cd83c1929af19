"""Slurm. slurm_options.py renders the scripts; only controller.py runs Slurm's commands.

simple_slurm's own `sbatch` is not used: it runs a shell, loses sbatch's words and fails with a bare assertion.
"""

import hashlib
import itertools
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import get_args

from anml.atomic import write_text
from anml.config.profile import ClusterProfile, SbatchOptions, merged
from anml.errors import ConfigError, SubmissionError
from anml.experiment import Experiment, task_name
from anml.jobs.containers import REQUEUE_VARIABLE
from anml.jobs.escalation import FACTOR, amount, check_factors, option_words
from anml.jobs.interrupts import ended_as_by_ctrl_c
from anml.jobs.plan import Job, JobKind
from anml.jobs.schedulers import CheckResult, Scheduler, SchedulerState
from anml.jobs.schedulers.controller import (
    ControllerAwayError,
    SlurmJob,
    all_jobs,
    dropped_settings,
    jobs_by_id,
    patiently,
    run,
    run_once,
    shown_jobs,
)
from anml.jobs.schedulers.slurm_options import (
    count_gpus,
    memory_of_job,
    parse_options,
    profile_problems,
    render_options,
    unlisted_of_profile,
    unlisted_options,
)

KINDS: tuple[JobKind, ...] = get_args(JobKind)
# What scancel says of jobs that need no cancelling any more.
_HAS_ENDED = ("invalid job id", "already completing", "completed")
# A submission in doubt may still be accepted: how many seconds to look for it before submitting again.
SETTLE_SECONDS = 15.0
# How scontrol calls what a job asks for: in MB, and as days, hours, minutes and seconds.
_OF_SCONTROL = {"mem": "MinMemoryNode={:.0f}", "time": "TimeLimit=0-0:0:{:.0f}"}
_JOB_ID = re.compile(r"(?:Submitted batch job )?(\d+)(?:;\S+| on cluster \S+)?")


class SlurmScheduler(Scheduler):
    """Submits with `sbatch`, one call a job or array.

    Several jobs may be the tasks of one array, `jobs/train-array-1/`: links in there lead to the jobs' own folders.
    """

    task_variable = "SLURM_ARRAY_TASK_ID"
    forgets_ended_jobs = True
    can_requeue = True
    # Of fewer, squeue shows each by its name.
    array_from = 8

    def __init__(self, experiment: Experiment, profile: ClusterProfile, wandb_mode: str) -> None:
        super().__init__(experiment, profile, wandb_mode)
        # Slurm does not know the folders of jobs: this mark of the experiment, in their names, tells which are ours.
        self.mark = hashlib.sha256(str(experiment.root).encode()).hexdigest()[:8]
        # The ids that are not new.
        self.seen: set[str] = set()

    def render(self, job: Job) -> str:
        # Without CPU binding every job would otherwise take all cores of its node.
        threads = 'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"'
        return render_options(self._options(job), [threads, self.script_body(job)])

    def command(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> list[str]:
        command = ["sbatch", "--parsable"]
        is_whole = job.tasks is None or len(tasks) == job.tasks
        needs = [f"{'afterany' if job.after_any else 'afterok'}:{':'.join(after)}"] if after else []
        # No copy starts beside another, whatever the names of both are due to. A part of an array may: the rest runs.
        if needs := needs + ["singleton"] * is_whole:
            command.append(f"--dependency={','.join(needs)}")
            if after and not job.after_any:
                # Without it a job whose dependency failed waits for ever, and the report behind it.
                command.append("--kill-on-invalid-dep=yes")
        if not is_whole:
            # Overrides the script's own range: some of the array is done.
            command.append(f"--array={','.join(map(str, tasks))}{self._throttle}")
        return [*command, str(self.experiment.job(job.name).script)]

    def submit(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> str:
        """Submit a job and return its id; waits with back-off while the controller is away."""
        for task in tasks:
            self.experiment.job(job.name, task).log.parent.mkdir(parents=True, exist_ok=True)
        return self._submit(job, self.command(job, after, tasks))

    def submit_array(self, jobs: Mapping[int, Job], after: str) -> dict[str, str]:
        kind = next(iter(jobs.values())).kind
        names = (f"{kind}-array-{number}" for number in itertools.count(1))
        name = next(name for name in names if not self.experiment.job(name).root.exists())
        folder = self.experiment.job(name).root
        folder.mkdir(parents=True)
        for number, job in jobs.items():
            (folder / task_name(number)).symlink_to(Path("..", job.name))
        array = Job(name, kind, (), tasks=len(jobs))
        options = self._options(array) | {"array": ",".join(map(str, jobs))}
        run_task = f"exec bash {shlex.quote(str(folder))}/$(printf task-%04d ${self.task_variable})/job.sh"
        write_text(folder / "job.sh", render_options(options, [run_task]), mode=0o777)
        # With both at once tasks wait though those that they need are done (22.05).
        needs = f"aftercorr:{after}" if after else "singleton"
        command = ["sbatch", "--parsable", f"--dependency={needs}", "--kill-on-invalid-dep=yes", f"{folder}/job.sh"]
        id_ = self._submit(array, command)
        return {job.name: f"{id_}_{number}" for number, job in jobs.items()}

    def _submit(self, job: Job, command: list[str]) -> str:
        def submit_once() -> str:
            try:
                result = run(command)
            except ControllerAwayError as error:
                if error.in_doubt and (id_ := self._accepted(job)):
                    return id_
                raise
            return self._read_id(job, result)

        id_ = patiently(submit_once, self.stop)
        self.seen.add(id_)
        return id_

    def _read_id(self, job: Job, result: CompletedProcess[str]) -> str:
        """Return the id that sbatch prints, on a line of its own; sites let sbatch print more."""
        ids = {match[1] for line in result.stdout.splitlines() if (match := _JOB_ID.fullmatch(line.strip()))}
        if result.returncode == 0 and len(ids) == 1:
            return ids.pop()
        words = " ".join(filter(None, (result.stderr.strip(), result.stdout.strip())))
        # Nothing may be left running that nobody knows.
        self.cancel(new := [] if result.returncode else self._new_ids(job, all_jobs()))
        problem = "sbatch refused it" if result.returncode else f"sbatch did not print its id ({len(new)} taken back)"
        message = f"{job.name}: {problem}: {words}"
        raise SubmissionError(message)

    def _accepted(self, job: Job) -> str | None:
        """Return the id of a submission that seemed to fail, if it gets through; it may even have ended."""
        end = time.monotonic() + SETTLE_SECONDS
        while not (new := self._new_ids(job, all_jobs())) and time.monotonic() < end:
            time.sleep(1)
        # squeue may answer from a copy some minutes old.
        new = new or self._new_ids(job, shown_jobs())
        return new[-1] if new else None

    def _new_ids(self, job: Job, jobs: Sequence[SlurmJob]) -> list[str]:
        return [queued.id for queued in jobs if queued.name == self._name(job.name) and queued.id not in self.seen]

    def cancel(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        result = patiently(lambda: run(["scancel", *ids]))
        problems = [line for line in result.stderr.splitlines() if not any(word in line.lower() for word in _HAS_ENDED)]
        if result.returncode != 0 and problems:
            users = {f"{job.id} is {job.user}'s" for job in all_jobs() if {job.id, f"{job.id}_{job.task}"} & {*ids}}
            message = f"scancel {' '.join(ids)} failed: {' '.join(problems)} ({', '.join(sorted(users))})"
            raise SubmissionError(message)

    def queue(self) -> Iterator[tuple[str, int | None, SchedulerState]]:
        """Yield the jobs with a recorded id, and those with our mark in their names, which a launch left unrecorded."""
        recorded = self.recorded_ids()
        arrays = {id_: id_.partition("_")[0] for id_ in recorded}
        ids = set(arrays.values())
        # The name must fit as well: a controller that was set up anew counts ids from 1 again.
        jobs = [job for job in all_jobs() if job.name.endswith(f".{self.mark}") or job.id in ids]
        missing = arrays.keys() - {each for job in jobs for each in (job.id, f"{job.id}_{job.task}")}
        jobs += jobs_by_id([id_ for id_ in missing if self.may_live(recorded[id_])])
        for job in sorted(jobs, key=lambda job: int(job.id)):
            name, task, answer = self._of_plan(job)
            if job.name.endswith(f".{self.mark}") or recorded.get(answer.id) == name:
                self.seen.add(job.id)
                yield name, task, answer

    def _of_plan(self, job: SlurmJob) -> tuple[str, int | None, SchedulerState]:
        """Return the name that the plan has for a job or a task, its task in the plan, and its state."""
        name = job.name.rpartition(".")[0]
        link = self.experiment.job(name, job.task).log.parent
        if not link.is_symlink():
            return name, job.task, job.answer
        return link.readlink().name, None, replace(job.answer, id=f"{job.id}_{job.task}")

    def _name(self, name: str) -> str:
        return f"{name}.{self.mark}"

    @property
    def _throttle(self) -> str:
        return f"%{self.profile.array_throttle}" if self.profile.array_throttle else ""

    def _options(self, job: Job) -> dict[str, str | int | bool]:
        """Return the sbatch options of a job: the profile's, and what the launcher decides."""
        folder = str(self.experiment.job(job.name).root).replace("%", "%%")
        log = f"{folder}/log.txt" if job.tasks is None else f"{folder}/task-%4a/log.txt"
        options = merged(self.profile.sbatch.for_kind(job.kind), self.job_options.get(job.name, {}))
        options |= {"job-name": self._name(job.name), "output": log, "open-mode": "append"}
        if job.tasks is not None:
            options["array"] = f"0-{job.tasks - 1}{self._throttle}"
        if self.profile.requeue and job.kind != "report":
            return options | {"requeue": True, "signal": f"B:USR1@{self.profile.signal_seconds}"}
        return options | {"no-requeue": True}

    @classmethod
    def with_options(cls, profile: ClusterProfile, arguments: list[str], own_options: list[str]) -> ClusterProfile:
        """Return the profile with the options on top. Raises ConfigError, also for the profile's own options."""
        if dropped := dropped_settings():
            print(f"note: {', '.join(dropped)}: left out, the profile alone counts", file=sys.stderr)
        options = parse_options(arguments)
        changed = profile.model_copy(update={"sbatch": profile.sbatch.overridden(options)})
        problems = profile_problems(changed)
        if doubts := [*unlisted_of_profile(profile), *unlisted_options(options, own_options)]:
            problems += cls._told_by_sbatch(changed, doubts)
        if problems:
            raise ConfigError(problems)
        return changed

    @classmethod
    def _told_by_sbatch(cls, profile: ClusterProfile, doubts: list[str]) -> list[str]:
        """Return what is wrong with options that are not listed: sbatch decides, where it can be asked."""
        if shutil.which("sbatch") is None:
            return doubts
        refusals = [finding.what for kind in KINDS if not (finding := cls._check_job(profile, kind)).ok]
        # Without its configuration sbatch knows nothing.
        is_unknown = any("unrecognized option" in words or "configuration source" in words for words in refusals)
        return doubts if is_unknown else refusals[:1]

    @classmethod
    def retry_options(cls, profile: ClusterProfile, arguments: list[str]) -> SbatchOptions:
        # An empty value takes an option away.
        given = {name: False if value == "" else value for name, value in parse_options(arguments).items()}
        check_factors(profile, given)
        cls.with_options(profile, option_words({n: v for n, v in given.items() if not FACTOR.fullmatch(str(v))}), [])
        return given

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
        answer = run_once(["scontrol", "show", "config"])
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
        problems = profile_problems(profile)
        yield from (CheckResult(False, problem) for problem in problems)
        for kind in () if problems else KINDS:
            yield cls._check_job(profile, kind)

    @classmethod
    def try_out(cls, profile: ClusterProfile, script: Path, log: Path) -> None:
        """Run a script as a job that asks for what a training does; says every few seconds what it waits for."""
        name = f"anml-check{log.parent.name}"  # The folder's name is new.
        command = ["sbatch", "--parsable", f"--job-name={name}", f"--output={log}"]
        options = cls.with_options(profile, [], []).sbatch.for_kind("train") | {"time": 30}
        command += option_words(options)
        with ended_as_by_ctrl_c():
            try:
                submitted = patiently(lambda: run([*command, str(script)]))
                ids = [match[1] for line in submitted.stdout.splitlines() if (match := _JOB_ID.fullmatch(line.strip()))]
                if submitted.returncode != 0 or not ids:
                    message = f"sbatch refused the check: {submitted.stderr.strip() or submitted.stdout.strip()}"
                    raise SubmissionError(message)
                _wait_for_end(ids[0])
            finally:  # By its name: sbatch may have submitted it without a word, or twice.
                run_once(["scancel", f"--name={name}"])

    @classmethod
    def _check_job(cls, profile: ClusterProfile, kind: JobKind) -> CheckResult:
        """Let sbatch validate a script of one kind without submitting it."""
        with tempfile.TemporaryDirectory() as folder:
            experiment = Experiment(Path(folder) / "project" / "group")
            script = experiment.job(kind).script
            write_text(script, cls(experiment, profile, "disabled").render(Job(kind, kind, ("--version",))))
            result = run_once(["sbatch", "--test-only", str(script)])
        if result.returncode != 0:
            reason = result.stderr.strip().removeprefix("sbatch: error: ")
            return CheckResult(False, f"sbatch would refuse {kind} jobs: {reason} (profile: sbatch, {kind})")
        return CheckResult(True, f"sbatch accepts {kind} jobs")

    @classmethod
    def gpus(cls, profile: ClusterProfile, kind: JobKind) -> int:
        return count_gpus(profile.sbatch.for_kind(kind))

    @classmethod
    def memory(cls, profile: ClusterProfile, kind: JobKind) -> tuple[float, str] | None:
        return memory_of_job(profile.sbatch.for_kind(kind), profile)

    @classmethod
    def shell(cls, profile: ClusterProfile, arguments: list[str]) -> list[str]:
        """Return srun with the options of a training, and those of a command line on top."""
        options = cls.with_options(profile, arguments, []).sbatch.for_kind("train")
        return ["srun", "--job-name=anml-shell", *option_words(options), *["--pty"] * sys.stdin.isatty()]

    @classmethod
    def this_job(cls) -> str:
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get(cls.task_variable)
        # The id of an array is that of all its tasks.
        return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")

    @classmethod
    def restarts(cls) -> int | None:
        return int(os.environ.get("SLURM_RESTART_COUNT", "0")) if "SLURM_JOB_ID" in os.environ else None

    @classmethod
    def requeue(cls, more: SbatchOptions) -> str:
        changes = [_OF_SCONTROL[name].format(amount(name, str(value))) for name, value in more.items()]
        if REQUEUE_VARIABLE in os.environ and shutil.which("scontrol") is None:
            Path(os.environ[REQUEUE_VARIABLE]).write_text(" ".join(changes))
            return ""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # The requeue sends it, to what is started here as well.
        try:
            result = run_once(["scontrol", "requeue", cls.this_job()])
            if changes:  # Only an administrator may change a job that runs. It starts when this process has ended.
                changed = run_once(["scontrol", "update", f"JobId={cls.this_job()}", *changes])
                sys.stderr.write(changed.stderr)
        except OSError as error:
            return f"scontrol cannot be run here: {error}"
        # scontrol may say no and still exit with 0.
        words = result.stderr.strip()
        return f"scontrol requeue: {words}" if result.returncode != 0 or words else ""


def _wait_for_end(id_: str) -> None:
    """Wait until a job has ended, and say every 15 seconds what it does. Raises SubmissionError."""
    for second in itertools.count():
        live = [job for job in jobs_by_id([id_]) if job.answer.is_live and job.answer.phase != "ending"]
        if not live:
            return
        if second % 15 == 14:
            reason = "" if live[0].reason == "None" else f" ({live[0].reason})"
            print(f"job {id_} is {live[0].state.lower()}{reason}; Ctrl-C ends it", file=sys.stderr, flush=True)
        time.sleep(1)
