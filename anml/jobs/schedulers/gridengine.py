"""Grid Engine (Son of Grid Engine, Univa, Altair): qsub, qstat, qdel, qacct.

What differs from Slurm: options are qsub's, by their letters; tasks count from 1; a job that waits for others
(`-hold_jid`) starts whatever became of them, so its script looks itself; a job is requeued by exit code 99.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import CompletedProcess

from anml.config.profile import ClusterProfile, SbatchOptions, merged
from anml.errors import ConfigError, SubmissionError
from anml.experiment import Experiment
from anml.jobs.containers import REQUEUE_VARIABLE, WAIT_FOR_CHILD
from anml.jobs.plan import Job, JobKind
from anml.jobs.schedulers import CheckResult, Scheduler, SchedulerState
from anml.jobs.schedulers.controller import run_once
from anml.jobs.schedulers.slurm_options import parse_options

# Options that the launcher decides.
_OURS = {"N", "S", "b", "e", "hold-jid", "hold-jid-ad", "j", "notify", "o", "r", "sync", "t", "tc", "terse"}
_ID = re.compile(r"(\d+)(?:\.\d+-\d+:\d+)?")

# Signals reach every process of a job: USR1 at s_rt, or before it is suspended; USR2 before it is killed, which a
# training knows as TERM. bash runs a trap only while it waits.
_SCRIPT = """\
#!/bin/bash
[ "${{SGE_TASK_ID:-undefined}}" = undefined ] || export {variable}=$((SGE_TASK_ID - 1))
anml_folder={folder}${{{variable}:+/$(printf 'task-%04d' "${variable}")}}
exec >> "$anml_folder/log.txt" 2>&1
{needs}export OMP_NUM_THREADS="${{NSLOTS:-1}}" {requeue}="$anml_folder/.requeue"
rm -f "${requeue}"
trap '' USR1
(
trap '' USR2
{body}) &
anml_child=$!
trap 'kill -TERM $anml_child' USR2
{wait}
if [ -e "${requeue}" ]; then exit 99; fi
exit $anml_code
"""
_NEEDS = """\
anml_is_done() {{
    [ -n "$(find "$1" -name status.json)" ] || return 1
    [ -z "$(find "$1" -name status.json -exec grep -L '"state": "done"' {{}} +)" ]
}}
for anml_need in {needs}; do
    until anml_is_done "$anml_need"; do
        if [ $SECONDS -ge {latency:.0f} ]; then echo "$anml_need: did not succeed: this job does nothing"; exit 0; fi
        sleep 1
    done
done
"""


class GridEngineScheduler(Scheduler):
    """Submits with `qsub`, one call a job or array; several where tasks in between are left out."""

    task_variable = "ANML_TASK"
    forgets_ended_jobs = True
    can_requeue = True

    def __init__(self, experiment: Experiment, profile: ClusterProfile, wandb_mode: str) -> None:
        super().__init__(experiment, profile, wandb_mode)
        # In the names of jobs, which tell whose they are where a launch that was killed has left no record.
        self.mark = f"a{hashlib.sha256(str(experiment.root).encode()).hexdigest()[:8]}."

    def render(self, job: Job) -> str:
        folders = [shlex.quote(str(self.experiment.job(name).root)) for name in job.after]
        needs = _NEEDS.format(needs=" ".join(folders), latency=self.profile.latency_wait)
        return _SCRIPT.format(
            variable=self.task_variable, folder=shlex.quote(str(self.experiment.job(job.name).root)),
            needs="" if job.after_any or not job.after else needs, requeue=REQUEUE_VARIABLE, body=self.script_body(job),
            wait=WAIT_FOR_CHILD,
        )  # fmt: skip

    def command(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> list[str]:
        """Return the command line that submits tasks of a job; a shell's where they are not one range."""
        # -V: as with Slurm, jobs have the environment of the launch. The script says where its output goes.
        command = ["qsub", "-terse", "-N", f"{self.mark}{job.name}", "-S", "/bin/bash", "-V", "-notify", "-r", "y"]
        command += ["-j", "y", "-o", "/dev/null", *self._option_words(job)]
        command += ["-hold_jid", ",".join(after)] if after else []
        script = str(self.experiment.job(job.name).script)
        if job.tasks is None:
            return [*command, script]
        command += ["-tc", str(self.profile.array_throttle)] if self.profile.array_throttle else []
        commands = [[*command, "-t", f"{first + 1}-{last + 1}", script] for first, last in _ranges(tasks)]
        return commands[0] if len(commands) == 1 else ["sh", "-c", " && ".join(map(shlex.join, commands))]

    def submit(self, job: Job, after: Sequence[str], tasks: Sequence[int | None]) -> str:
        """Submit a job; return its id, or several with commas, which all commands of Grid Engine take."""
        for task in tasks:
            self.experiment.job(job.name, task).log.parent.mkdir(parents=True, exist_ok=True)
        before = {state.id for name, _, state in self.queue() if name == job.name}
        result = _run(self.command(job, after, tasks))
        ids = [match[1] for line in result.stdout.splitlines() if (match := _ID.fullmatch(line.strip()))]
        if result.returncode != 0 or len(ids) != len(list(_ranges(tasks))):
            # Nothing may be left running that nobody knows.
            queued = {state.id for name, _, state in list(self.queue()) if name == job.name}
            self.cancel(sorted((queued - before) | set(ids)))
            message = f"{job.name}: qsub refused it: {_words(result)}"
            raise SubmissionError(message)
        return ",".join(ids)

    def cancel(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        result = _run(["qdel", ",".join(ids)])
        problems = [line for line in _words(result).splitlines() if "denied" in line and "does not exist" not in line]
        if problems or (result.returncode != 0 and "denied" not in _words(result)):
            message = f"qdel {','.join(ids)} failed: {' '.join(problems) or _words(result)}"
            raise SubmissionError(message)

    def queue(self) -> Iterator[tuple[str, int | None, SchedulerState]]:
        """Yield the jobs with a recorded id, and those with our mark in their names, which a launch left unrecorded."""
        missing = self.recorded_ids()
        listed = _run(["qstat", "-u", "*", "-g", "d", "-xml"])
        if listed.returncode != 0:
            message = f"qstat failed, so the state of the jobs is not known: {_words(listed)}"
            raise SubmissionError(message)
        jobs = [_listed(element) for element in ElementTree.fromstring(listed.stdout).iter("job_list")]
        for name, task, state in sorted(jobs, key=lambda job: int(job[2].id)):
            if name.startswith(self.mark):
                missing.pop(state.id, None)
                yield name.removeprefix(self.mark), task, state
        for id_, name in missing.items():
            if self.may_live(name):
                yield from ((name, task, state) for task, state in _accounted(id_, f"{self.mark}{name}"))

    def _option_words(self, job: Job) -> list[str]:
        options = merged(self.profile.sbatch.for_kind(job.kind), self.job_options.get(job.name, {}))
        requests = [str(options.pop("l"))] if options.get("l") else []
        if nodes := options.pop("exclude", ""):  # Nodes that failed this job twice.
            requests.append("h=" + "&".join(f"!{node}" for node in str(nodes).split(",")))
        if (limit := _limit(requests)) and self.profile.requeue and job.kind != "report":
            requests.append(f"s_rt={limit - self.profile.signal_seconds}")
        words = [word for name, value in options.items() if value is not False for word in _option(name, value)]
        return words + (["-l", ",".join(requests)] if requests else [])

    @classmethod
    def with_options(cls, profile: ClusterProfile, arguments: list[str], own_options: list[str]) -> ClusterProfile:
        """Return the profile with options of qsub on top, written `--q=all.q`. Raises ConfigError."""
        options = parse_options(arguments)
        changed = profile.model_copy(update={"sbatch": profile.sbatch.overridden(options)})
        problems = [f"{name}: is set by the launcher" for name in changed.sbatch.names if name in _OURS]
        for kind in ("train", "evaluate") if profile.requeue else ():
            limit = _limit([changed.sbatch.for_kind(kind).get("l", "")])
            if 0 < limit <= profile.signal_seconds:
                problems.append(f"{kind}: h_rt={limit} leaves no time before the signal (signal_seconds): give more")
        lacks = [
            key
            for key in ("container", "escalate")
            if getattr(profile, key) != ClusterProfile.model_fields[key].default
        ]
        problems += [f"{key}: jobs on Grid Engine have none" for key in lacks]
        if problems:
            raise ConfigError([f"profile {profile.name}: {problem}" for problem in problems])
        return changed

    @classmethod
    def retry_options(cls, profile: ClusterProfile, arguments: list[str]) -> SbatchOptions:
        cls.with_options(profile, arguments, [])
        return dict(parse_options(arguments))

    @classmethod
    def check(cls, profile: ClusterProfile) -> Iterator[CheckResult]:
        answer = run_once(["qstat"]) if shutil.which("qsub") else None
        what = "there is no qsub here: run this on a login node" if answer is None else f"qstat: {_words(answer)}"
        ok = answer is not None and answer.returncode == 0
        yield CheckResult(ok, "Grid Engine answers" if ok else what)

    @classmethod
    def try_out(cls, profile: ClusterProfile, script: Path, log: Path) -> None:
        """Run a script as a job that asks for what a training does, and wait for its end."""
        scheduler = cls(Experiment(log.parent), cls.with_options(profile, [], []), "disabled")
        options = scheduler._option_words(Job("check", "train", ()))
        command = ["qsub", "-sync", "y", "-S", "/bin/bash", "-V", "-N", "anml-check", "-j", "y", "-o", str(log)]
        result = subprocess.run([*command, *options, str(script)], capture_output=True, text=True, check=False)
        if result.returncode != 0 and not log.is_file():
            message = f"qsub refused the check: {_words(result)}"
            raise SubmissionError(message)

    @classmethod
    def gpus(cls, profile: ClusterProfile, kind: JobKind) -> int:
        requests = str(profile.sbatch.for_kind(kind).get("l", ""))
        return sum(int(number) for number in re.findall(r"\b\w*gpus?=(\d+)", requests))

    @classmethod
    def shell(cls, profile: ClusterProfile, arguments: list[str]) -> list[str]:
        message = f"profile {profile.name}: `qrsh` or `qlogin` opens a shell where jobs of Grid Engine run"
        raise ConfigError(message)

    @classmethod
    def this_job(cls) -> str:
        id_, task = os.environ.get("JOB_ID", ""), os.environ.get(cls.task_variable)
        return f"{id_}_{task}" if task else id_

    @classmethod
    def restarts(cls) -> int | None:
        return int(os.environ["RESTARTED"]) if "RESTARTED" in os.environ else None

    @classmethod
    def requeue(cls, more: SbatchOptions) -> str:
        """Tell the script around this job to end with the code that requeues it. more: nothing, see `with_options`."""
        Path(os.environ[REQUEUE_VARIABLE]).touch()
        return ""


def _run(command: list[str]) -> CompletedProcess[str]:
    """Run a command of Grid Engine. Raises SubmissionError where there is none."""
    if shutil.which(command[0]) is None:
        message = f"there is no {command[0]} on this machine: run this on a login node, or use --cluster local"
        raise SubmissionError(message)
    return run_once(command)


def _words(result: CompletedProcess[str]) -> str:
    return "\n".join(filter(None, (result.stderr.strip(), result.stdout.strip())))


def _ranges(tasks: Sequence[int | None]) -> list[tuple[int, int]]:
    """Return the first and the last of each run of numbers in a row; one range where there are no numbers."""
    ranges: list[tuple[int, int]] = []
    for task in sorted(task or 0 for task in tasks):
        if ranges and ranges[-1][1] == task - 1:
            ranges[-1] = ranges[-1][0], task
        else:
            ranges.append((task, task))
    return ranges


def _option(name: str, value: object) -> list[str]:
    return [f"-{name}", *([] if value is True else shlex.split(str(value)))]


def _limit(requests: Sequence[object]) -> int:
    """Return the seconds of `h_rt=3600` or `h_rt=1:00:00` among what `-l` asks for; 0: it asks for no limit."""
    match = re.search(r"\bh_rt=([\d:]+)", ",".join(map(str, requests)))
    hours, minutes, seconds = ([0, 0] + [int(part or 0) for part in match[1].split(":")] if match else [0, 0, 0])[-3:]
    return (hours * 60 + minutes) * 60 + seconds


def _listed(job: ElementTree.Element) -> tuple[str, int | None, SchedulerState]:
    """Return name, task and state of a job in the output of qstat. Its letters: E error, d being deleted, w waits."""
    id_, task, state = job.findtext("JB_job_number", ""), job.findtext("tasks", ""), job.findtext("state", "")
    if "E" in state:
        phase, words = "waiting", f"{state}: `qstat -j {id_}` says why, `qmod -cj {id_}` lets it try again"
    elif "d" in state:
        phase, words = "ending", state
    else:
        phase, words = ("waiting", state) if "w" in state else ("running", "" if state in "rt" else state)
    answer = SchedulerState(id_, phase, words, job.findtext("JB_owner", ""))
    return job.findtext("JB_name", ""), int(task) - 1 if task.isdigit() else None, answer


def _accounted(id_: str, name: str) -> Iterator[tuple[int | None, SchedulerState]]:
    """Yield the tasks of a job that has ended without success, as far as accounting knows them."""
    ended: dict[int | None, SchedulerState] = {}
    for text in run_once(["qacct", "-j", id_]).stdout.split("=" * 62):
        facts = dict(line.split(None, 1) for line in text.splitlines() if len(line.split(None, 1)) == 2)
        # After a requeue a task has several records; the last counts. Ids begin again at 1 some time.
        if facts.get("jobname", "").strip() == name:
            task, failed = facts["taskid"].strip(), " ".join(facts["failed"].split())
            words = f"exit status {facts['exit_status'].strip()}" + (f", failed {failed}" if failed != "0" else "")
            words += f", ran {facts['ru_wallclock'].strip()}, {facts['maxvmem'].strip()} of memory"
            ended[int(task) - 1 if task.isdigit() else None] = SchedulerState(id_, "failed", words)
    yield from ((task, state) for task, state in ended.items() if not state.words.startswith("exit status 0, ran"))
