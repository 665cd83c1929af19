"""`anml clusters check`: what is wrong with a cluster profile, before an experiment finds out."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator

from anml.config.profile import ClusterProfile
from anml.jobs.schedulers import CheckResult, scheduler_class

# Runs in the environment of the profile.
_PROBE = (
    "import json, sys, torch; "
    "print(json.dumps([sys.version.split()[0], torch.__version__, torch.version.cuda, torch.version.hip]))"
)


def check_cluster(profile: ClusterProfile) -> Iterator[CheckResult]:
    """Check everything that a profile promises, from this machine, without submitting anything."""
    yield from _environment(profile)
    yield from scheduler_class(profile.scheduler).check(profile)


def _environment(profile: ClusterProfile) -> Iterator[CheckResult]:
    """Run the profile's setup lines and ask its python which torch it has."""
    python = profile.python or sys.executable
    lines = "\n".join([*profile.setup, f"{shlex.quote(python)} -c {shlex.quote(_PROBE)}"])
    result = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=False, timeout=120)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        yield CheckResult(False, f"setup lines and `{python}` with torch do not work here: {last}")
        return
    version, torch, cuda, hip = json.loads(result.stdout.strip().splitlines()[-1])
    yield CheckResult(True, f"python {version} with torch {torch} starts after the setup lines")
    build = "rocm" if hip else "cuda" if cuda else "cpu"
    environment = {"cuda": "environment.yml", "rocm": "environment-rocm.yml"}.get(profile.device)
    if environment and build != profile.device:
        what = f"the profile is for {profile.device}, this torch is a {build} build: use {environment}"
        yield CheckResult(False, what)
    else:
        yield CheckResult(True, f"torch is a {build} build, the profile says device: {profile.device}")
