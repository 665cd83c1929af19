"""`compare PROJECT`, or `compare PROJECT/GROUP PROJECT/GROUP ...`: several experiments side by side."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from anml.cli.arguments import add_experiments_dir_argument, check_output, collecting, find_experiments, print_notices
from anml.errors import ConfigError
from anml.experiment import Experiment, experiments_folder
from anml.jobs.launch import experiments_dir


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    what = "all experiments of a project that have results, or these, in this order"
    parser.add_argument("names", metavar="PROJECT[/GROUP]", nargs="+", help=what)
    flavor = "only this flavor, whatever an experiment calls it (repeatable; default: all)"
    parser.add_argument("--flavor", metavar="NAME", action="append", default=[], help=flavor)
    parser.add_argument("--output", metavar="DIR", type=Path, help="where to write (default: the project's folder)")
    add_experiments_dir_argument(parser)


def compare(options: argparse.Namespace) -> None:
    root = experiments_dir(options.experiments_dir)
    experiments = _experiments(root, options.names)
    output = _output(options.output, experiments, root)
    # A comparison replaces those written before.
    earlier = [path for path in output.glob("comparison*") if path.suffix in (".html", ".csv", ".txt", ".png")]
    check_output("--output", *sorted(earlier), output / "comparison.html")
    from anml.report.comparison import write_comparison
    from anml.report.index import write_indexes

    comparison = write_comparison(experiments, output, options.flavor, shlex.join(["python", *options.command_line]))
    if output == experiments[0].root.parent:
        print_notices(write_indexes(experiments[0], root))  # The index pages link to the comparison.
    print(comparison.text)
    print(f"\nComparison: {comparison.page}")


def _experiments(root: Path, names: Sequence[str]) -> list[Experiment]:
    """Return the experiments of names, each once. Raises ConfigError with every unknown name."""
    experiments: dict[Path, Experiment] = {}
    problems: list[str] = []
    for name in names:
        with collecting(problems):
            experiments |= {named.root: named for named in find_experiments(root, name, or_project=True)}
    if problems:
        raise ConfigError(problems)
    return list(experiments.values())


def _output(chosen: Path | None, experiments: Sequence[Experiment], root: Path) -> Path:
    """Return the folder to write to: the chosen one, else that of the project."""
    if chosen is not None:
        return chosen.expanduser().resolve()
    projects = {experiment.root.parent for experiment in experiments}
    if len(projects) > 1:
        names = ", ".join(sorted(project.name for project in projects))
        message = f"these experiments are of several projects ({names}): say where to write, with --output DIR"
        raise ConfigError(message)
    if experiments_folder(experiments[0], root) is None:
        message = f"{experiments[0].root}: is not below {root}: give --experiments-dir, or --output DIR to write to"
        raise ConfigError(message)
    return projects.pop()
