"""`python -m anml retry PROJECT/GROUP`: submits again what failed or never ran, and nothing else."""

import argparse
from collections.abc import Sequence

from anml.cli.arguments import add_address_arguments, find_experiment
from anml.cli.outcome import run_and_tell
from anml.jobs.launch import load_launch


def main(arguments: Sequence[str]) -> int:
    """Submit (or, on the machine at hand, run) every job that is not done, with the dependencies it still has."""
    parser = argparse.ArgumentParser(prog="python -m anml retry", description=__doc__, allow_abbrev=False)
    add_address_arguments(parser)
    return run_and_tell(load_launch(find_experiment(parser.parse_args(arguments))))
