"""See `python eval_anml.py --help`."""

import sys

from anml.__main__ import start

if __name__ == "__main__":
    sys.exit(start("eval_anml.py", "evaluate"))
