"""Tells what is wrong with a cluster profile, before an experiment finds out."""

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anml.config.profile import ClusterProfile
from anml.experiment import Experiment
from anml.jobs.plan import Job, JobKind
from anml.jobs.schedulers import make_scheduler

# Run inside the profile's own environment.
_PROBE = (
    "import json, sys, torch; "
    "print(json.dumps([sys.version.split()[0], torch.__version__, torch.version.cuda, torch.version.hip]))"
)
KINDS: tuple[JobKind, ...] = ("train", "evaluate", "report")


@dataclass(frozen=True)
class CheckResult:
    """One thing that was looked at."""

    ok: bool
    what: str


def check_cluster(profile: ClusterProfile) -> Iterator[CheckResult]:
    """Look at everything that a profile promises, from this machine, without submitting anything."""
    yield from _environment(profile)
    if profile.scheduler != "slurm":
        return
    if shutil.which("sbatch") is None:
        yield CheckResult(False, "there is no sbatch here: run this on a login node of the cluster")
        return
    answer = _run(["scontrol", "show", "config"])
    if answer.returncode != 0:
        yield CheckResult(False, f"Slurm's controller does not answer: {answer.stderr.strip()}")
        return
    yield CheckResult(True, "Slurm's controller answers")
    yield _array_size(profile, answer.stdout)
    for kind in KINDS:
        yield _job(profile, kind)


def _environment(profile: ClusterProfile) -> Iterator[CheckResult]:
    """Run the profile's setup lines and ask its python which torch it has."""
    python = profile.python or sys.executable
    lines = [*profile.setup, f"{shlex.quote(python)} -c {shlex.quote(_PROBE)}"]
    result = _run(["bash", "-c", "\n".join(lines)])
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        yield CheckResult(False, f"setup lines and `{python}` with torch do not work here: {last}")
        return
    version, torch, cuda, hip = json.loads(result.stdout.strip().splitlines()[-1])
    yield CheckResult(True, f"python {version} with torch {torch} starts after the setup lines")
    build = "rocm" if hip else "cuda" if cuda else "cpu"
    if profile.device in ("cuda", "rocm") and build != profile.device:
        environment = {"cuda": "environment.yml", "rocm": "environment-rocm.yml"}[profile.device]
        yield CheckResult(
            False, f"the profile is for {profile.device}, this torch is a {build} build: use {environment}"
        )
    else:
        yield CheckResult(True, f"torch is a {build} build, the profile says device: {profile.device}")


def _array_size(profile: ClusterProfile, config: str) -> CheckResult:
    sizes = [line.split("=")[1].strip() for line in config.splitlines() if line.startswith("MaxArraySize")]
    if sizes and int(sizes[0]) < profile.max_array_size:
        return CheckResult(
            False, f"max_array_size is {profile.max_array_size}, but this site's is {sizes[0]}: set it to that"
        )
    return CheckResult(True, f"max_array_size {profile.max_array_size} is within the site's limit")


def _job(profile: ClusterProfile, kind: JobKind) -> CheckResult:
    """Let sbatch validate a script of one kind without submitting it."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(Path(folder) / "project" / "group")
        job = Job(kind, kind, ("--version",))
        script = experiment.job(job.name).script
        script.parent.mkdir(parents=True)
        script.write_text(make_scheduler(experiment, profile, "disabled").render(job))
        result = _run(["sbatch", "--test-only", str(script)])
    if result.returncode != 0:
        reason = result.stderr.strip().removeprefix("sbatch: error: ")
        return CheckResult(False, f"sbatch would refuse a {kind} job: {reason} (profile: sbatch, {kind})")
    return CheckResult(True, f"sbatch accepts a {kind} job")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
