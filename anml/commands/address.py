"""Finds the experiment that a user means."""

import argparse
from pathlib import Path

from anml.config.binding import nearest
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.launch import experiments_dir


def add_address_arguments(parser: argparse.ArgumentParser) -> None:
    """Add PROJECT/GROUP and --experiments-dir."""
    parser.add_argument("experiment", metavar="PROJECT/GROUP", help="the experiment, or the path of its folder")
    parser.add_argument("--experiments-dir", metavar="DIR", help="where experiments are (default: ANML_EXPERIMENTS)")


def find_experiment(options: argparse.Namespace) -> Experiment:
    """Return the experiment. Raises ConfigError naming those there are."""
    root = experiments_dir(options.experiments_dir)
    found = experiment_at(root, options.experiment)
    if found is None:
        raise ConfigError(unknown_experiment(root, options.experiment))
    return found


def experiment_at(root: Path, address: str) -> Experiment | None:
    """Return the experiment of an address below a folder, or with the path of its own folder."""
    for candidate in (root / address, Path(address)):
        if (candidate / "config.yml").is_file():
            return Experiment(candidate.resolve())
    return None


def unknown_experiment(root: Path, address: str) -> str:
    """Return a sentence that names the experiments there are."""
    known = sorted(f"{c.parent.parent.name}/{c.parent.name}" for c in root.glob("*/*/config.yml"))
    hint = nearest(address, known) or (f"; there are: {', '.join(known[-10:])}" if known else "")
    return f"no experiment {address} in {root}{hint}"
