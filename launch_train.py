"""See `python launch_train.py --help`."""

import sys

from anml.commands.arguments import run_command
from anml.commands.launch_train import main

if __name__ == "__main__":
    sys.exit(run_command(main))
