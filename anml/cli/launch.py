"""`launch`: decide everything, check it, create the experiment, submit its jobs, and say how a local launch went."""

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from anml.cli.arguments import (
    EXIT_DONE,
    EXIT_FAILED,
    add_address_arguments,
    add_config_arguments,
    collecting,
    find_experiment,
    print_notices,
)
from anml.cli.evaluate import checkpoint_paths
from anml.config.binding import located
from anml.config.load import LoadedTrain, load_experiment_config, load_train_config
from anml.config.profile import PROFILES, ClusterProfile, WandbMode, load_profile_here
from anml.config.smoke_test import smoke_test
from anml.config.training import TrainConfig
from anml.config.yaml import Source
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.addition import added_jobs, named_checkpoints, with_code, with_more, write_addition
from anml.jobs.job_status import JobStatus, read_status
from anml.jobs.launch import (
    REPOSITORY,
    Launch,
    check_with_model,
    create_experiment,
    experiments_dir,
    load_launch,
    new_group,
)
from anml.jobs.plan import Job, make_plan
from anml.jobs.schedulers import default_cluster, scheduler_class
from anml.jobs.status import read_jobs
from anml.jobs.submission import describe, run_launch
from anml.jobs.time_limits import check_time_limits
from anml.tracking import default_mode

# The dry run shows this in place of the name that a launch would draw, so that two dry runs show the same text.
NEW_GROUP = "NEW-GROUP"
# In bytes. File systems take names of 255 bytes, and experiments are made under a longer name first.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class LaunchOptions:
    """What is to be launched, and how: the arguments of the command, and of `anml.launch`.

    config: the path of a training config, or one that is read already.
    """

    config: Path | Source
    overrides: Sequence[str] = ()
    vary: Sequence[str] = ()
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    cluster: str | None = None
    experiments_dir: str | None = None
    data_path: str | None = None
    seed: int | None = None
    wandb: WandbMode | None = None
    smoke_test: bool = False
    sbatch_options: list[str] = field(default_factory=list)
    own_options: list[str] = field(default_factory=list)
    command_line: Sequence[str] = ()


def launch(options: argparse.Namespace) -> int:
    asked = LaunchOptions(**{each.name: getattr(options, each.name) for each in fields(LaunchOptions)})
    loaded, decided = decide(asked, options.dry_run)
    if options.check and options.dry_run:
        _check_with_model(loaded, decided)
    if options.dry_run:
        print(describe(decided))
        return EXIT_DONE
    return start(loaded, decided, experiments_dir(options.experiments_dir))


def decide(options: LaunchOptions, is_dry_run: bool = False) -> tuple[LoadedTrain, Launch]:
    """Return the config, and everything that a launch needs decided. Raises ConfigError with every problem."""
    loaded, profile = _read(options)
    config = smoke_test(loaded.config, _on_gpu(loaded.config, profile)) if options.smoke_test else loaded.config
    decided = _decide(options, config, profile, is_dry_run)
    print_notices(loaded.notices)
    check_time_limits(decided)
    return loaded, decided


def start(loaded: LoadedTrain, decided: Launch, experiments: Path) -> int:
    """Create the experiment and submit its jobs, or run them here. Returns the exit code."""
    _check_with_model(loaded, decided)
    create_experiment(decided, experiments)
    print(f"Experiment  {decided.experiment.root}")
    print(f"W&B group   {decided.experiment.group} ({decided.wandb_mode})", flush=True)
    return run_and_report(decided)


def _check_with_model(loaded: LoadedTrain, decided: Launch) -> None:
    try:
        print_notices(check_with_model(decided.config, decided.profile))
    except ConfigError as error:
        raise ConfigError(located(loaded.source, error.problems)) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_address_arguments(parser)
    what = "more flavors (`eval:` with their settings), larger sweeps, more seeds, later checkpoints"
    add_config_arguments(parser, what)
    checkpoint = "evaluate other checkpoints too: the folder of one or a .pth, called NAME in results"
    parser.add_argument("--checkpoint", metavar="[NAME=]PATH", nargs="+", action="extend", default=[], help=checkpoint)
    new_code = "freeze the present code beside that of the experiment, for the jobs that are added"
    parser.add_argument("--new-code", action="store_true", help=new_code)
    parser.add_argument("-n", "--dry-run", action="store_true", help="show the jobs that would be added, add nothing")


def add(options: argparse.Namespace) -> int:
    before = load_launch(find_experiment(options))
    words = [word if Path(word).exists() else word.rpartition("=")[2] for word in options.checkpoint]
    checkpoint_paths(words, "--checkpoint")
    more = named_checkpoints(before.config, options.checkpoint) if options.checkpoint else None
    flags = {"data_path": options.data_path, "eval_checkpoints": more}
    loaded = load_experiment_config(before.experiment.config_file, options.overrides, flags, options.config)
    after = with_more(before, loaded.config, options.command_line)
    after = with_code(before, after, options.new_code)
    print_notices(loaded.notices)
    new = added_jobs(before, after)
    check_time_limits(replace(after, plan=new))
    if options.dry_run:
        print(describe(replace(after, plan=new)))
        return EXIT_DONE
    there, others = before.config.added_checkpoints, after.config.added_checkpoints
    # Those that are there are copies: their originals may be gone.
    added = {name: other for name, other in others.items() if name not in there}
    _check_codes(before, after, after.config.model_copy(update={"eval_checkpoints": added or None}))
    print(f"Adds {len(new.jobs) - 1} jobs to {before.experiment.root}", flush=True)
    return run_and_report(after, lambda: write_addition(before, after))


def _check_codes(before: Launch, after: Launch, config: TrainConfig) -> None:
    """Check a config with every copy of the code that is to read it, which may be of an earlier version.

    Jobs that are done read it no more. Raises ConfigError.
    """
    undone = [job.name for job in read_jobs(before.experiment) if job.state != "done"]
    newest = after.snapshots.get("report", "")
    for name in {newest, *(before.snapshots.get(job, "") for job in undone)}:
        code = before.experiment.snapshot(name)
        try:
            print_notices(check_with_model(config, after.profile, code if code.exists() else REPOSITORY))
        except ConfigError as error:
            if not code.exists():
                raise
            advice = "add with --new-code" if name == newest else "first retry or cancel the jobs that are not done"
            why = f"by {code}, the code of this experiment; where that is older: {advice}"
            raise ConfigError([f"{text} ({why})" for text in error.problems]) from None


def _read(options: LaunchOptions) -> tuple[LoadedTrain, ClusterProfile]:
    """Read config and profile. Raises ConfigError with every problem of files and command line."""
    problems: list[str] = []
    loaded = profile = None
    flags = {name: getattr(options, name) for name in ("project", "entity", "group", "cluster", "seed")}
    flags["data_path"] = str(Path(options.data_path).expanduser().resolve()) if options.data_path else None
    with collecting(problems):
        loaded = load_train_config(options.config, [*options.overrides, *_varied(options.vary, problems)], flags)
    with collecting(problems):
        profile = _choose_profile(loaded.config.cluster if loaded else options.cluster, options)
    if loaded:
        problems += name_problems(loaded.config.project, loaded.config.group)
        if loaded.config.precision == "tf32" and profile and profile.device in ("cpu", "rocm"):
            problems.append(f"precision: tf32 needs NVIDIA GPUs; the profile {profile.name} is for {profile.device}")
        if loaded.config.seeds and options.seed is not None:
            problems.append(f"--seed {options.seed}: this config trains several; use --set seeds=[{options.seed}]")
    if loaded is None or profile is None or problems:
        raise ConfigError(problems)
    return loaded, profile


def _varied(options: Sequence[str], problems: list[str]) -> list[str]:
    """Return the overrides that `--vary key=value,value` stands for."""
    wrong = [option for option in options if not all(option.partition("="))]
    problems += [f"--vary {option}: write it as key=value,value, as --vary outer_lr=0.001,0.003" for option in wrong]
    pairs = [option.partition("=") for option in options if option not in wrong]
    return [f"vary.{key.strip()}=[{values}]" for key, _, values in pairs]


def _choose_profile(name: str | None, options: LaunchOptions) -> ClusterProfile:
    if name is None:
        name, why = default_cluster()
        print_notices([f"no --cluster given: using {name}, {why}"])
    profile = load_profile_here(name, PROFILES)  # cli/remote.py has seen to the others.
    scheduler = scheduler_class(profile.scheduler)
    if options.sbatch_options and scheduler.runs_here:
        given = " ".join(options.sbatch_options)
        print_notices([f"{given}: sbatch options have no effect on cluster {profile.name}"])
    return scheduler.with_options(profile, options.sbatch_options, options.own_options)


def _on_gpu(config: TrainConfig, profile: ClusterProfile) -> bool:
    """Say whether the jobs will have a GPU, as far as it can be told without torch."""
    if "cpu" in (config.device, profile.device):
        return False
    here = [path for path in (Path("/dev/nvidiactl"), Path("/dev/kfd")) if path.exists()]  # NVIDIA, AMD.
    return profile.device != "auto" or config.device == "cuda" or bool(here)


def name_problems(project: str | None, group: str | None) -> list[str]:
    """Return what is wrong with the names that become folders."""
    if not project:
        return ["--project is missing: it names the folder of experiments and the W&B project"]
    problems = []
    for option, name in (("--project", project), ("--group", group or "any")):
        if name[0] in ".-" or "/" in name or any(ord(character) < 32 for character in name):
            problems.append(f"{option} {name!r}: it names a folder: it may not start with `.` or `-`, nor contain `/`")
        elif len(name.encode()) > _LONGEST_NAME:
            problems.append(f"{option} {name[:20]}...: is too long for a folder's name; take at most {_LONGEST_NAME}")
    return problems


def _decide(options: LaunchOptions, config: TrainConfig, profile: ClusterProfile, is_dry_run: bool) -> Launch:
    """Make every decision before anything is created."""
    experiments = experiments_dir(options.experiments_dir)
    existing = next(folder for folder in (experiments, *experiments.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        message = (
            f"{experiments}: {existing} is not a folder that you may write to; choose another with --experiments-dir "
            "or ANML_EXPERIMENTS"
        )
        raise ConfigError(message)
    project = experiments / str(config.project)
    group = config.group or (NEW_GROUP if is_dry_run else new_group(project))
    root = (project / group).resolve()  # Without links: commands find jobs again by this path.
    scheduler_class(profile.scheduler).check_root(root)
    config = config.model_copy(update={"cluster": profile.name, "group": group})
    plan = make_plan(config, profile.points_per_job, profile.max_array_size)
    mode = options.wandb or profile.wandb or default_mode()
    return Launch(config, Experiment(root), profile, mode, plan, options.command_line)


def run_and_report(launch: Launch, begin: Callable[[], None] = lambda: None) -> int:
    """Submit the jobs of a launch, or run them on this machine and print the accuracies. Returns the exit code."""
    # Commands need the path of an experiment only where it is not in the usual folder.
    root, usual = launch.experiment.root, experiments_dir(None)
    address = shlex.quote(f"{root.parent.name}/{root.name}" if root.parent.parent == usual else str(root))
    if not scheduler_class(launch.profile.scheduler).runs_here:
        run_launch(launch, lambda ids: _announce(ids, address), begin)
        return EXIT_DONE
    try:
        run_launch(launch, begin=begin)
    except KeyboardInterrupt:
        print(f"\nStopped. To continue: python -m anml retry {address}")
        # The jobs of this launcher have ended; a job that another launcher started may still run.
        running = [label for _, label, s in _statuses(launch) if s.state == "running" and not s.has_vanished]
        if names := ", ".join(running):
            print(f"Not stopped, another launcher started it: {names}. To end it: python -m anml cancel {address}")
        raise
    table, page = launch.experiment.report / "accuracy.txt", launch.experiment.report / "index.html"
    if table.is_file():
        print(f"\n{table.read_text(encoding='utf-8')}")
    print(f"Report: {page}" if page.is_file() else "There is no report: see the log of the report job.")
    undone = {job.name: None for job, _, s in _statuses(launch) if job.kind != "report" and s.state != "done"}
    if undone:
        print(f"Not done: {', '.join(undone)}. See: python -m anml status {address}")
    return EXIT_FAILED if undone else EXIT_DONE


def _statuses(launch: Launch) -> list[tuple[Job, str, JobStatus]]:
    """Return every job, or task of an array, with its label and status."""
    tasks = [(job, task) for job in launch.plan.jobs for task in job.task_numbers]
    return [(job, job.label(task), read_status(launch.experiment.job(job.name, task).status)) for job, task in tasks]


def _announce(ids: dict[str, str], address: str) -> None:
    print(f"Submitted {len(ids)} jobs:" if ids else "Nothing to submit: every job is done, waits or runs.")
    for name, id_ in ids.items():
        print(f"  {id_}  {name}")
    print(f"Follow them with  python -m anml status {address} --watch")
