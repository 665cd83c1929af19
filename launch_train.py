"""See `python launch_train.py --help`."""

import sys

from anml.__main__ import start

if __name__ == "__main__":
    sys.exit(start("launch_train.py", "launch"))
