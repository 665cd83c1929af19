"""`launch_train.py`: one YAML file to an experiment folder and submitted jobs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from anml.commands.arguments import EXIT_DONE, add_set_argument, config_file, print_notices
from anml.commands.outcome import run_and_tell
from anml.config.load import load_train_config
from anml.config.profile import ClusterProfile, load_profile, profile_names
from anml.config.smoke_test import smoke_test
from anml.dry_run import describe
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.launch import Launch, check_with_model, create_experiment, experiments_dir, new_group
from anml.plan import make_plan
from anml.schedulers.select import default_cluster, with_sbatch_overrides
from anml.snapshot import REPOSITORY
from anml.tracking import default_mode

PROFILES = REPOSITORY / "slurm"


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = argparse.ArgumentParser(
        prog="launch_train.py",
        description="Train a model and evaluate it: plans the jobs, makes the experiment folder, submits.",
        epilog="Any sbatch option may be given as --name=value; it overrides the cluster profile.",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", metavar="PATH", type=config_file, required=True, help="training config")
    parser.add_argument("--project", help="project name: a folder of experiments and a W&B project")
    parser.add_argument("--entity", help="W&B entity (team or user)")
    parser.add_argument("--group", help="name of the experiment (default: a new one); an existing one is completed")
    parser.add_argument("--cluster", metavar="NAME", help=f"cluster profile: {', '.join(profile_names(PROFILES))}")
    parser.add_argument("--data-path", metavar="DIR", help="where the data set is (default: ANML_DATA, or download)")
    parser.add_argument("--experiments-dir", metavar="DIR", help="where experiments go (default: ANML_EXPERIMENTS)")
    parser.add_argument("-n", "--dry-run", action="store_true", help="show jobs and scripts, create nothing")
    parser.add_argument("--check", action="store_true", help="with --dry-run: check the model and the data as well")
    parser.add_argument("--st", "--smoke-test", action="store_true", dest="smoke_test", help="everything, but tiny")
    parser.add_argument("--seed", type=int, help="training seed")
    parser.add_argument("--wandb", choices=["online", "offline", "disabled"], help="W&B mode (default: see docs)")
    add_set_argument(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Launch an experiment."""
    options, rest = make_parser().parse_known_args(arguments)
    launch, notices = _decide(options, rest, arguments)
    print_notices(notices)
    if options.check or not options.dry_run:
        print_notices(check_with_model(launch.config))
    if options.dry_run:
        print(describe(launch))
        return EXIT_DONE
    create_experiment(launch)
    print(
        f"Experiment  {launch.experiment.root}\nW&B group   {launch.experiment.group} ({launch.wandb_mode})", flush=True
    )
    return run_and_tell(launch)


def _decide(options: argparse.Namespace, rest: list[str], arguments: Sequence[str]) -> tuple[Launch, list[str]]:
    """Make every decision before anything is created. Raises ConfigError."""
    flags = {name: getattr(options, name) for name in ("project", "entity", "group", "cluster", "seed")}
    flags["data_path"] = str(Path(options.data_path).expanduser().resolve()) if options.data_path else None
    config, notices, _ = load_train_config(options.config, options.overrides, flags)
    config = smoke_test(config) if options.smoke_test else config
    if not config.project:
        message = "--project is missing: it names the folder of experiments and the W&B project"
        raise ConfigError(message)
    profile, more = _choose_profile(config.cluster, rest)
    project = experiments_dir(options.experiments_dir) / _folder_name(config.project, "--project")
    group = _folder_name(config.group, "--group") if config.group else new_group(project)
    config = config.model_copy(update={"cluster": profile.name, "group": group})
    mode = options.wandb or profile.wandb or default_mode()
    plan = make_plan(config, profile.points_per_job, profile.max_array_size)
    command_line = ["launch_train.py", *arguments]
    return Launch(config, Experiment(project / group), profile, mode, plan, command_line), notices + more


def _choose_profile(name: str | None, rest: list[str]) -> tuple[ClusterProfile, list[str]]:
    notices = []
    if name is None:
        name, why = default_cluster()
        notices.append(f"no --cluster given: using {name}, {why}")
    profile = load_profile(name, PROFILES)
    if rest and profile.scheduler == "local":
        notices.append(f"{' '.join(rest)}: sbatch options have no effect on cluster {profile.name}")
    own = [flag for action in make_parser()._actions for flag in action.option_strings]
    return with_sbatch_overrides(profile, rest, own), notices


def _folder_name(name: str, option: str) -> str:
    """Return a name that can be a folder. Raises ConfigError."""
    if not name or name[0] in ".-" or "/" in name or any(ord(character) < 32 for character in name):
        message = f"{option} {name!r}: it names a folder: it may not start with `.` or `-`, nor contain `/`"
        raise ConfigError(message)
    return name
