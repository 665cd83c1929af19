"""`clusters`, `shell` and `download`: what to see to before a launch."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from anml.cli.arguments import EXIT_DONE, EXIT_FAILED, add_data_path_argument, positive, print_notices
from anml.config.evaluation import DataRequest, data_path_or_default
from anml.config.facts import DATASETS, canonical_dataset
from anml.config.profile import PROFILES, ClusterProfile, load_profile, profile_names
from anml.errors import ConfigError, SubmissionError
from anml.jobs.containers import container_command, python_of
from anml.jobs.schedulers import CheckResult, scheduler_class

# Runs in the environment of the profile.
_PROBE = (
    "import json, sys, torch; "
    "print(json.dumps([sys.version.split()[0], torch.__version__, torch.version.cuda, torch.version.hip]))"
)


def clusters_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=["list", "check"], default="list")
    parser.add_argument("name", nargs="?", help="a profile's name, or the path of its file")


def clusters(options: argparse.Namespace) -> int:
    """List profiles, or check one. Exit code 1 where the check finds something wrong."""
    if options.action == "list":
        for name in profile_names(PROFILES):
            profile = load_profile(name, PROFILES)
            print(f"{name:12} {profile.scheduler}, {profile.device}   ({PROFILES / name}.yml)")
        return EXIT_DONE
    if options.name is None:
        message = f"clusters check: give the name of a profile: {', '.join(profile_names(PROFILES))}"
        raise ConfigError(message)
    code = EXIT_DONE
    for finding in check_cluster(load_profile(options.name, PROFILES)):
        print(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}", flush=True)
        code = code if finding.ok else EXIT_FAILED
    return code


def check_cluster(profile: ClusterProfile) -> Iterator[CheckResult]:
    """Check everything that a profile promises, from this machine, without submitting anything."""
    yield from _environment(profile)
    yield from scheduler_class(profile.scheduler).check(profile)


def _environment(profile: ClusterProfile) -> Iterator[CheckResult]:
    """Run the profile's setup lines and ask its python which torch it has."""
    python = python_of(profile)
    lines = "\n".join([*profile.setup, container_command(profile, [python, "-c", _PROBE], Path.cwd())])
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


def shell_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="CLUSTER", help="a profile's name, or the path of its file")
    parser.epilog = f"Any sbatch option may be given as --name=value. {parser.epilog}"
    parser.set_defaults(sbatch_options=[])


def shell(options: argparse.Namespace) -> None:
    """Become a shell where jobs run, with the options of a training, the profile's setup and, if it has one, container.

    Commands on standard input are run and their output printed, where there is no terminal.
    """
    profile = load_profile(options.name, PROFILES)
    setup = "\n".join(["[ ! -f ~/.bashrc ] || . ~/.bashrc"] * sys.stdin.isatty() + [*profile.setup, ""])
    words = ["bash", "-i"] if sys.stdin.isatty() else ["bash"]
    inner = container_command(profile, words, Path.cwd())
    if profile.container is None and sys.stdin.isatty():
        # Functions, as conda is one, would not outlive an `exec`.
        lines = f"exec bash --rcfile <(printf %s {shlex.quote(setup)}) -i"
    else:
        lines = f"{setup}exec {inner}"
    command = [*scheduler_class(profile.scheduler).shell(profile, options.sbatch_options), "bash", "-c", lines]
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        message = f"there is no {command[0]} on this machine: run this on a login node, or use the cluster local"
        raise SubmissionError(message) from None


def download_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"No program can download ImageNet: copies of it are converted (docs/data.md). {parser.epilog}"
    parser.add_argument("dataset", choices=sorted(DATASETS), type=canonical_dataset)
    add_data_path_argument(parser)
    parser.add_argument("--im-size", metavar="PIXELS", type=positive, help="height and width (default: the usual one)")


def download(options: argparse.Namespace) -> None:
    """Make the array files that jobs will load."""
    if DATASETS[options.dataset].needs_counting:
        message = f"{options.dataset}: your own images (data_path) are converted when an experiment is launched"
        raise ConfigError(message)
    from anml.data import array_file

    size = options.im_size or DATASETS[options.dataset].default_size
    data_path = data_path_or_default(options.data_path)
    if data_path:
        print_notices([f"data path (--data-path or ANML_DATA): {data_path}"])
    for split in ("train", "eval"):
        print(f"{split:5} {array_file(DataRequest(options.dataset, split, size, data_path))}")
