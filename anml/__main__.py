"""Starts every command, `python -m anml` and the scripts beside the package.

Pythons from 3.6 on must be able to read this file, the scripts and `anml/__init__.py`, to say that they are too old.
"""

import sys


def start(module: str) -> int:
    """Run the command of a module and return its exit code; 1 where this Python is too old to run anything."""
    if sys.version_info < (3, 11):  # noqa: UP036
        version = sys.version.split()[0]
        print(
            f"error: anml needs Python 3.11 or later, {sys.executable} is {version}: activate an environment that has "
            "it (`source .venv/bin/activate` after `make setup`; docs/install.md)",
            file=sys.stderr,
        )
        return 1
    from importlib import import_module

    from anml.cli.arguments import run_command

    return run_command(lambda arguments: import_module(module).main(arguments))


if __name__ == "__main__":
    sys.exit(start("anml.cli.subcommands"))
