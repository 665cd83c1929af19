"""`python -m anml report PROJECT/GROUP`: writes an experiment's report again."""

import argparse
from collections.abc import Sequence

from anml.commands.address import add_address_arguments, find_experiment
from anml.commands.arguments import EXIT_DONE


def main(arguments: Sequence[str]) -> int:
    """Write the report and print the accuracy table."""
    parser = argparse.ArgumentParser(prog="python -m anml report", description=__doc__, allow_abbrev=False)
    add_address_arguments(parser)
    experiment = find_experiment(parser.parse_args(arguments))
    from anml.report.write import write_report

    summary = write_report(experiment)
    print((experiment.report / "accuracy.txt").read_text(encoding="utf-8"))
    print(f"Report: {summary.page}")
    return EXIT_DONE
