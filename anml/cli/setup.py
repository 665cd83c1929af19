"""`clusters`, `shell`, `selftest` and `download`: what to see to before a launch."""

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

from anml import __version__
from anml.atomic import read_text, wait_until, write_json, write_text
from anml.cli.arguments import (
    DEVICES,
    EXIT_DONE,
    EXIT_FAILED,
    add_data_path_argument,
    add_experiments_dir_argument,
    add_job_arguments,
    check_output,
    positive,
    print_notices,
)
from anml.config.evaluation import DataRequest, data_path_or_default
from anml.config.facts import DATASETS, canonical_dataset
from anml.config.profile import PROFILES, ClusterProfile, load_profile, load_profile_here, profile_names
from anml.config.training import TrainConfig
from anml.errors import ConfigError, JobError, SubmissionError
from anml.experiment import Experiment
from anml.jobs.containers import container_command, python_of
from anml.jobs.job import JobContext, run_job
from anml.jobs.launch import IS_CHECKOUT, REPOSITORY, Launch, create_experiment, experiments_dir, new_group
from anml.jobs.plan import Job, Plan
from anml.jobs.schedulers import CheckResult, Scheduler, scheduler_class, setup_lines
from anml.jobs.schedulers.controller import environment_outside_slurm
from anml.jobs.status import GOING, log_tail, read_jobs
from anml.jobs.submission import run_launch

# Seconds between two looks at a job that is waited for.
POLL_SECONDS = 2.0

# Runs in the environment of the profile. Its answer goes into a file: setup lines may print before it and after it.
_PROBE = """
import importlib.metadata, json, platform, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
versions = {name: version(name) for name in json.loads(sys.argv[2])}
import torch
build = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
with open(sys.argv[1], "w") as file:
    json.dump([platform.node(), platform.python_version(), build, versions], file)
"""


def clusters_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=["list", "check"], default="list")
    parser.add_argument("name", nargs="?", help="a profile's name, or the path of its file")
    parser.add_argument("--run", action="store_true", help="with check: run the selftest as a job, and wait for it")
    parser.add_argument("--quick", action="store_true", help="with --run: small sizes, a rehearsal")
    add_experiments_dir_argument(parser)


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
    code, profile = EXIT_DONE, load_profile_here(options.name, PROFILES)
    for finding in check_cluster(profile):
        print(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}", flush=True)
        code = code if finding.ok else EXIT_FAILED
    if options.run and code == EXIT_DONE:
        return _run_selftest(options, profile)
    if options.run:
        print("The selftest was not run: first mend what is BAD.")
    return code


def _run_selftest(options: argparse.Namespace, profile: ClusterProfile) -> int:
    """Launch the selftest as the only job of an experiment, wait for its end, and show its log."""
    experiments = experiments_dir(options.experiments_dir)
    root = experiments / "selftest" / new_group(experiments / "selftest")
    words = ("-m", "anml", "selftest", "--json", str(root / "selftest.json"), *(["--quick"] if options.quick else []))
    # Only its name and its place are read: a selftest has configs of its own.
    config = TrainConfig(project="selftest", group=root.name, cluster=profile.name, dataset="glyphs", model="anml")
    job = Job("selftest", "train", words)
    launch = Launch(config, Experiment(root), profile, "disabled", Plan((job,)), options.command_line)
    create_experiment(launch, experiments)
    run_launch(launch, lambda ids: print(f"waiting for job {ids[job.name]}: python -m anml status {root}", flush=True))
    while (outcome := read_jobs(launch.experiment, launch.make_scheduler())[0]).state in GOING:
        time.sleep(POLL_SECONDS)
    log = outcome.folder.log
    print(log.read_text(encoding="utf-8") if log.is_file() else f"no log: {outcome.message}")
    return EXIT_DONE if outcome.state == "done" else EXIT_FAILED


def selftest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=DEVICES, default="auto", help="what to test (default: a GPU, if any)")
    parser.add_argument("--quick", action="store_true", help="small sizes: a rehearsal of seconds")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the table here, as JSON")
    parser.add_argument("--run-dir", type=Path, help=argparse.SUPPRESS)
    add_job_arguments(parser)


def selftest(options: argparse.Namespace) -> int:
    """Check all that a training and an evaluation need of this machine. Exit code 1 where a check fails."""
    if options.json:
        check_output("--json", options.json)

    def work(_: JobContext) -> bool:
        from anml.machine import prepare_device
        from anml.selftest import run_selftest

        device = prepare_device(options.cluster_device, options.device)
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_selftest(device, Path(folder), options.quick, lambda line: print(line, flush=True))
        if options.json:
            write_json(options.json, outcome | {"anml": __version__})
        if outcome["failed"]:
            message = f"selftest failed: {', '.join(outcome['failed'])}"
            raise JobError(message)
        return True

    return run_job(Experiment(options.run_dir) if options.run_dir else None, options.job, None, work)


def check_cluster(profile: ClusterProfile) -> Iterator[CheckResult]:
    """Check everything that a profile promises. Runs its setup where jobs run: on Slurm, as a short job."""
    backend = scheduler_class(profile.scheduler)
    yield from backend.check(profile)
    folder = experiments_dir(None)  # The nodes must see it.
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".check-") as name:
        try:
            yield from _environment(profile, backend, Path(name))
        except SubmissionError as error:
            yield CheckResult(False, str(error))


def _environment(profile: ClusterProfile, backend: type[Scheduler], folder: Path) -> Iterator[CheckResult]:
    """Run the setup lines of a profile and ask its python what it has."""
    script, log, answer = folder / "check.sh", folder / "log.txt", folder / "answer.json"
    python, wanted = python_of(profile), _requirements()
    command = container_command(profile, [python, "-c", _PROBE, str(answer), json.dumps(list(wanted))], folder)
    write_text(script, "\n".join(["#!/bin/bash", *setup_lines(profile), command, ""]), mode=0o755)
    backend.try_out(profile, script, log)
    wait_until(lambda: answer.is_file() or log_tail(log) != "", folder, profile.latency_wait)
    if not answer.is_file():
        tail = log_tail(log, 3) or "no output: does the node see this folder?"
        yield CheckResult(False, f"setup lines and `{python}` with torch do not work: {tail}")
        return
    node, version, build, versions = json.loads(read_text(answer))
    yield CheckResult(True, f"on {node}, python {version} with torch {versions['torch']} starts after the setup lines")
    missing = [name for name, version in versions.items() if version is None]
    others = [f"{name} {v} ({wanted[name]})" for name, v in versions.items() if v and v.split("+")[0] != wanted[name]]
    if missing:
        yield CheckResult(False, f"it lacks {', '.join(missing)}, which requirements.txt asks for")
    yield CheckResult(True, f"it has other versions than required: {', '.join(others) or 'none'}")
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
    profile = load_profile_here(options.name, PROFILES)
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
        os.execvpe(command[0], command, environment_outside_slurm())
    except FileNotFoundError:
        message = f"there is no {command[0]} on this machine: run this on a login node, or use the cluster local"
        raise SubmissionError(message) from None


def _requirements() -> dict[str, str]:
    """Return the versions that requirements.txt pins, by package."""
    if IS_CHECKOUT:
        lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    else:
        lines = requires("anml") or []
    pins = [re.match(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    return {pin[1]: pin[2] for pin in pins if pin}


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
