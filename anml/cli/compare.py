"""`python -m anml compare PROJECT`, or PROJECT/GROUP PROJECT/GROUP ...: several experiments side by side."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from anml.cli.arguments import EXIT_DONE, check_output, experiment_at, print_notices, unknown_experiment
from anml.config.binding import nearest
from anml.errors import ConfigError
from anml.experiment import Experiment, experiments_folder
from anml.jobs.launch import experiments_dir


def main(arguments: Sequence[str]) -> int:
    """Write the comparison and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m anml compare", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "names", metavar="PROJECT[/GROUP]", nargs="+",
        help="all experiments of a project that have results, or these, in this order",
    )  # fmt: skip
    parser.add_argument(
        "--flavor", metavar="NAME", action="append", default=[],
        help="only this flavor, whatever an experiment calls it (repeatable; default: all)",
    )  # fmt: skip
    parser.add_argument("--output", metavar="DIR", type=Path, help="where to write (default: the project's folder)")
    parser.add_argument("--experiments-dir", metavar="DIR", help="where experiments are (default: ANML_EXPERIMENTS)")
    options = parser.parse_args(arguments)
    root = experiments_dir(options.experiments_dir)
    experiments = _experiments(root, options.names)
    output = _output(options.output, experiments, root)
    check_output("--output", *_earlier(output), output / "comparison.html")
    from anml.report.comparison import write_comparison
    from anml.report.index import write_indexes

    command = shlex.join(["python", "-m", "anml", "compare", *arguments])
    comparison = write_comparison(experiments, output, options.flavor, command)
    if output == experiments[0].root.parent:
        print_notices(write_indexes(experiments[0], root))  # They link to it.
    print(comparison.text)
    print(f"\nComparison: {comparison.page}")
    return EXIT_DONE


def _experiments(root: Path, names: Sequence[str]) -> list[Experiment]:
    """Return the experiments that are meant, each once. Raises ConfigError naming every mistake."""
    found: dict[Path, Experiment] = {}
    problems = []
    for name in names:
        own = experiment_at(root, name)
        group = [own] if own else _of_project(root, name)
        problems += [] if group else [_unknown(root, name)]
        found |= {experiment.root: experiment for experiment in group}
    if problems:
        raise ConfigError(problems)
    return list(found.values())


def _of_project(root: Path, name: str) -> list[Experiment]:
    """Return the experiments of a project, by the names of their groups."""
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


def _earlier(output: Path) -> list[Path]:
    """Return what a comparison may replace in a folder."""
    return [path for ending in ("html", "csv", "txt", "png") for path in sorted(output.glob(f"comparison*.{ending}"))]


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
