"""See `python train_anml.py --help`."""

import sys

from anml.commands.arguments import run_command
from anml.commands.train import main

if __name__ == "__main__":
    sys.exit(run_command(main))
