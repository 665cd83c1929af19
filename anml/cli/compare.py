"""`compare PROJECT`, or `compare PROJECT/GROUP PROJECT/GROUP ...`: several experiments side by side."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from anml.cli.arguments import (
    EXIT_DONE,
    add_experiments_dir_argument,
    check_output,
    experiment_at,
    print_notices,
    unknown_experiment,
)
from anml.config.binding import nearest
from anml.errors import ConfigError
from anml.experiment import Experiment, experiments_folder
from anml.jobs.launch import experiments_dir


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", metavar="PROJECT[/GROUP]", nargs="+",
        help="all experiments of a project that have results, or these, in this order",
    )  # fmt: skip
    parser.add_argument(
        "--flavor", metavar="NAME", action="append", default=[],
        help="only this flavor, whatever an experiment calls it (repeatable; default: all)",
    )  # fmt: skip
    parser.add_argument("--output", metavar="DIR", type=Path, help="where to write (default: the project's folder)")
    add_experiments_dir_argument(parser)


def compare(options: argparse.Namespace) -> int:
    """Write the comparison and print its tables."""
    root = experiments_dir(options.experiments_dir)
    experiments = _experiments(root, options.names)
    output = _output(options.output, experiments, root)
    # A comparison replaces those written before.
    earlier = [
        path for ending in ("html", "csv", "txt", "png") for path in sorted(output.glob(f"comparison*.{ending}"))
    ]
    check_output("--output", *earlier, output / "comparison.html")
    from anml.report.comparison import write_comparison
    from anml.report.index import write_indexes

    comparison = write_comparison(experiments, output, options.flavor, shlex.join(["python", *options.command_line]))
    if output == experiments[0].root.parent:
        print_notices(write_indexes(experiments[0], root))  # The index pages link to the comparison.
    print(comparison.text)
    print(f"\nComparison: {comparison.page}")
    return EXIT_DONE


def _experiments(root: Path, names: Sequence[str]) -> list[Experiment]:
    """Return the experiments of names, each once. Raises ConfigError with every unknown name."""
    experiments: dict[Path, Experiment] = {}
    problems = []
    for name in names:
        single = experiment_at(root, name)
        named = [single] if single else _of_project(root, name)
        problems += [] if named else [_unknown(root, name)]
        experiments |= {experiment.root: experiment for experiment in named}
    if problems:
        raise ConfigError(problems)
    return list(experiments.values())


def _of_project(root: Path, name: str) -> list[Experiment]:
    """Return the experiments of a project, sorted by group."""
    for folder in (root / name, Path(name)):
        groups = sorted(path.parent for path in folder.glob("[!.]*/config.yml"))
        if groups:
            return [Experiment(group.resolve()) for group in groups]
    return []


def _unknown(root: Path, name: str) -> str:
    projects = sorted({config.parent.parent.name for config in root.glob("*/*/config.yml")})
    if "/" in name or not projects:
        return unknown_experiment(root, name)
    return f"no project {name} in {root}{nearest(name, projects) or '; there are: ' + ', '.join(projects)}"


def _output(chosen: Path | None, experiments: Sequence[Experiment], root: Path) -> Path:
    """Return the folder to write to. Raises ConfigError where there is no obvious one."""
    if chosen is not None:
        return chosen.expanduser().resolve()
    projects = {experiment.root.parent for experiment in experiments}
    if len(projects) > 1:
        names = ", ".join(sorted(project.name for project in projects))
        message = f"these experiments are of several projects ({names}): say where to write, with --output DIR"
        raise ConfigError(message)
    if experiments_folder(experiments[0], root) is None:
        message = (
            f"{experiments[0].root}: does not lie in the folder of experiments {root}: name that with "
            "--experiments-dir, or say where to write, with --output DIR"
        )
        raise ConfigError(message)
    return projects.pop()
