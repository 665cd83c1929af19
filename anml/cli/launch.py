"""What `launch_train.py` does once its arguments are parsed: decide everything, check it, create, submit."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from anml.cli.arguments import EXIT_DONE, collecting, print_notices
from anml.cli.outcome import run_and_tell
from anml.config.binding import located
from anml.config.load import LoadedTrain, load_train_config, smoke_test
from anml.config.profile import PROFILES, ClusterProfile, load_profile
from anml.config.training import TrainConfig
from anml.config.yaml import Source
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.launch import Launch, check_with_model, create_experiment, experiments_dir, new_group
from anml.jobs.plan import make_plan
from anml.jobs.schedulers import default_cluster, scheduler_class
from anml.jobs.submission import describe
from anml.tracking import default_mode

# Stands for the name that a launch would choose.
NEW_GROUP = "NEW-GROUP"
# Folders; the longest file name that file systems take is 255 bytes.
_LONGEST_NAME = 200


def launch(options: argparse.Namespace, rest: list[str], own_options: list[str], arguments: Sequence[str]) -> int:
    """Launch an experiment, or show what a launch would do. `rest` are sbatch options."""
    loaded, profile = _read(options, rest, own_options)
    config = smoke_test(loaded.config) if options.smoke_test else loaded.config
    decided = _decide(options, config, profile, arguments)
    print_notices(loaded.notices)
    if options.check or not options.dry_run:
        print_notices(_check(decided.config, loaded.source))
    if options.dry_run:
        print(describe(decided))
        return EXIT_DONE
    create_experiment(decided, experiments_dir(options.experiments_dir))
    where = f"Experiment  {decided.experiment.root}"
    print(f"{where}\nW&B group   {decided.experiment.group} ({decided.wandb_mode})", flush=True)
    return run_and_tell(decided)


def _read(options: argparse.Namespace, rest: list[str], own_options: list[str]) -> tuple[LoadedTrain, ClusterProfile]:
    """Return config and profile. Raises ConfigError with every problem of files and command line."""
    problems: list[str] = []
    loaded = profile = None
    flags = {name: getattr(options, name) for name in ("project", "entity", "group", "cluster", "seed")}
    flags["data_path"] = str(Path(options.data_path).expanduser().resolve()) if options.data_path else None
    with collecting(problems):
        loaded = load_train_config(options.config, options.overrides, flags)
    with collecting(problems):
        profile = _choose_profile(loaded.config.cluster if loaded else options.cluster, rest, own_options)
    if loaded:
        problems += _check_names(loaded.config)
    if loaded and loaded.config.seeds and options.seed is not None:
        problems.append(f"--seed {options.seed}: this config trains several; use --set seeds=[{options.seed}]")
    if loaded is None or profile is None or problems:
        raise ConfigError(problems)
    return loaded, profile


def _choose_profile(name: str | None, rest: list[str], own_options: list[str]) -> ClusterProfile:
    if name is None:
        name, why = default_cluster()
        print_notices([f"no --cluster given: using {name}, {why}"])
    profile = load_profile(name, PROFILES)
    scheduler = scheduler_class(profile.scheduler)
    if rest and scheduler.runs_here:
        print_notices([f"{' '.join(rest)}: sbatch options have no effect on cluster {profile.name}"])
    return scheduler.with_options(profile, rest, own_options)


def _check_names(config: TrainConfig) -> list[str]:
    """Return what is wrong with the names that become folders."""
    if not config.project:
        return ["--project is missing: it names the folder of experiments and the W&B project"]
    problems = []
    for option, name in (("--project", config.project), ("--group", config.group or "any")):
        if name[0] in ".-" or "/" in name or any(ord(character) < 32 for character in name):
            problems.append(f"{option} {name!r}: it names a folder: it may not start with `.` or `-`, nor contain `/`")
        elif len(name.encode()) > _LONGEST_NAME:
            problems.append(f"{option} {name[:20]}...: is too long for a folder's name; take at most {_LONGEST_NAME}")
    return problems


def _decide(
    options: argparse.Namespace, config: TrainConfig, profile: ClusterProfile, arguments: Sequence[str]
) -> Launch:
    """Make every decision before anything is created."""
    project = _usable(experiments_dir(options.experiments_dir)) / str(config.project)
    # A name drawn now would not be the launch's; this way two dry runs of a config show the same text.
    group = config.group or (NEW_GROUP if options.dry_run else new_group(project))
    config = config.model_copy(update={"cluster": profile.name, "group": group})
    mode = options.wandb or profile.wandb or default_mode()
    plan = make_plan(config, profile.points_per_job, profile.max_array_size)
    root = (project / group).resolve()  # Through links: jobs are found again by the mark of one true path.
    scheduler_class(profile.scheduler).check_root(root)
    return Launch(config, Experiment(root), profile, mode, plan, ["launch_train.py", *arguments])


def _usable(experiments: Path) -> Path:
    """Return the folder of experiments. Raises ConfigError when nothing can be made in it."""
    there = next(folder for folder in (experiments, *experiments.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        message = (
            f"{experiments}: experiments cannot be kept here, because {there} is not a folder that you may write to; "
            "choose another with --experiments-dir or ANML_EXPERIMENTS"
        )
        raise ConfigError(message)
    return experiments


def _check(config: TrainConfig, source: Source) -> list[str]:
    """Check what needs the model and the data, and say in which line what is wrong was written."""
    try:
        return check_with_model(config)
    except ConfigError as error:
        raise ConfigError(located(source, error.problems)) from None
