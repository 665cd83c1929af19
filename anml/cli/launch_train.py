"""`launch_train.py`: one YAML file to an experiment folder and submitted jobs."""

import argparse
from collections.abc import Sequence

from anml.cli.arguments import add_common_arguments, add_data_path_argument, config_file
from anml.config.profile import PROFILES


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = argparse.ArgumentParser(
        prog="launch_train.py",
        description="Train a model and evaluate it: plans the jobs, makes the experiment folder, submits.",
        epilog="Any sbatch option may be given as --name=value; it overrides the cluster profile.",
        allow_abbrev=False,
    )
    clusters = ", ".join(sorted(path.stem for path in PROFILES.glob("*.yml")))
    parser.add_argument("-c", "--config", metavar="PATH", type=config_file, required=True, help="training config")
    parser.add_argument("--project", help="project name: a folder of experiments and a W&B project")
    parser.add_argument("--entity", help="W&B entity (team or user)")
    parser.add_argument("--group", help="name of the experiment (default: a new one); an existing one is completed")
    parser.add_argument("--cluster", metavar="NAME", help=f"cluster profile: {clusters}, or the path of one")
    add_data_path_argument(parser)
    parser.add_argument("--experiments-dir", metavar="DIR", help="where experiments go (default: ANML_EXPERIMENTS)")
    parser.add_argument("-n", "--dry-run", action="store_true", help="show jobs and scripts, create nothing")
    parser.add_argument("--check", action="store_true", help="with --dry-run: check the model and the data as well")
    parser.add_argument("--st", "--smoke-test", action="store_true", dest="smoke_test", help="everything, but tiny")
    parser.add_argument("--seed", type=int, help="training seed")
    parser.add_argument("--wandb", choices=["online", "offline", "disabled"], help="W&B mode (default: see docs)")
    add_common_arguments(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Launch an experiment."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    from anml.cli.launch import launch  # --help has no need of it.

    own_options = [flag for action in parser._actions for flag in action.option_strings]
    return launch(options, rest, own_options, arguments)
