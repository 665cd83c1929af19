"""`python -m anml COMMAND`: everything that is not launching, training or evaluating."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from anml.cli.arguments import EXIT_DONE, EXIT_USAGE, VERSION

# Command: module of anml.cli that has a `main`, and one line for the list below.
COMMANDS = {
    "status": ("status", "what ran, what runs, what failed and why"),
    "retry": ("retry", "submit again what failed or never ran"),
    "cancel": ("cancel", "end an experiment's jobs, and only those"),
    "clusters": ("clusters", "list cluster profiles; `clusters check NAME` tells what is wrong with one"),
    "report": ("report", "write an experiment's report again"),
    "compare": ("compare", "write a comparison of a project's experiments, or of those named"),
    "export": ("export", "write a checkpoint to share: the model and a card that says where it comes from"),
    "download": ("download", "fetch and convert a data set ahead of time"),
    "sync": ("sync", "send W&B runs that were recorded offline"),
}
INTERNAL = {"check-config": "check_config", "report-job": "report_job"}


def main(arguments: Sequence[str]) -> int:
    """Find the command and run it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return EXIT_DONE if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        print(VERSION)
        return EXIT_DONE
    name, rest = arguments[0], arguments[1:]
    module = INTERNAL.get(name) or (COMMANDS[name][0] if name in COMMANDS else None)
    if module is None:
        from anml.config.binding import nearest  # --help has no need of it.

        print(f"unknown command {name!r}{nearest(name, COMMANDS)}\n\n{_usage()}", file=sys.stderr)
        return EXIT_USAGE
    command: Callable[[Sequence[str]], int] = import_module(f"anml.cli.{module}").main
    return command(rest)


def _usage() -> str:
    lines = [f"  {name:10} {line}" for name, (_, line) in COMMANDS.items()]
    last = "Each has its own --help; --version prints the version."
    return "\n".join(["usage: python -m anml COMMAND ...", "", *lines, "", last])
