"""`python -m anml sync PROJECT/GROUP`: sends W&B runs that were recorded offline, from where there is a connection."""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from anml.cli.arguments import EXIT_DONE, EXIT_FAILED, add_address_arguments, find_experiment


def main(arguments: Sequence[str]) -> int:
    """Send every offline run of an experiment."""
    parser = argparse.ArgumentParser(prog="python -m anml sync", description=__doc__, allow_abbrev=False)
    add_address_arguments(parser)
    experiment = find_experiment(parser.parse_args(arguments))
    runs = sorted(str(path) for path in (experiment.wandb_dir / "wandb").glob("offline-run-*"))
    if not runs:
        print("No offline runs here.")
        return EXIT_DONE
    # Paths are explicit and --yes is given: wandb else asks questions, or takes runs of the current folder.
    result = subprocess.run([sys.executable, "-m", "wandb", "sync", "--yes", *runs], check=False)
    return EXIT_DONE if result.returncode == 0 else EXIT_FAILED
