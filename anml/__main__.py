"""Starts every command: `anml`, `python -m anml` and the scripts beside the package.

Pythons from 3.6 on must be able to read this file, the scripts and `anml/__init__.py`, to say that they are too old.
"""

import sys


def start(program: str, *command: str) -> int:
    """Run a command and return its exit code. program: what the user typed; command: what a script stands for."""
    if sys.version_info < (3, 11):  # noqa: UP036
        version = sys.version.split()[0]
        print(
            f"error: anml needs Python 3.11 or later, {sys.executable} is {version}: activate an environment that has "
            "it (`source .venv/bin/activate` after `make setup`; docs/install.md)",
            file=sys.stderr,
        )
        return 1
    from anml.cli.main import main, run_command

    # Modules of the current folder, which a config may refer to, are found too, after all others.
    sys.path.append("")
    return run_command(lambda arguments: main([*command, *arguments], program))


def console() -> int:
    return start("anml")


if __name__ == "__main__":
    sys.exit(start("python -m anml"))
