"""`python -m anml report PROJECT/GROUP`: writes an experiment's report again."""

import argparse
from collections.abc import Sequence

from anml.cli.arguments import EXIT_DONE, add_address_arguments, find_experiment, print_notices
from anml.jobs.launch import experiments_dir


def main(arguments: Sequence[str]) -> int:
    """Write the report and print the accuracy table."""
    parser = argparse.ArgumentParser(prog="python -m anml report", description=__doc__, allow_abbrev=False)
    add_address_arguments(parser)
    options = parser.parse_args(arguments)
    experiment = find_experiment(options)
    from anml.report.index import write_indexes
    from anml.report.write import write_report

    summary = write_report(experiment)
    print_notices(write_indexes(experiment, experiments_dir(options.experiments_dir)))
    print((experiment.report / "accuracy.txt").read_text(encoding="utf-8"))
    print(f"Report: {summary.page}")
    return EXIT_DONE
