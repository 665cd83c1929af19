"""`python -m anml report-job`: the last job of every plan."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from anml.cli.arguments import add_job_arguments, print_notices
from anml.config.load import load_experiment_config
from anml.experiment import Experiment
from anml.jobs.job import JobContext, check_folder, run_job
from anml.tracking import Tracker


def main(arguments: Sequence[str]) -> int:
    """Write the report and send the best accuracies to W&B."""
    parser = argparse.ArgumentParser(prog="python -m anml report-job", allow_abbrev=False)
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--wandb", choices=["online", "offline", "disabled"], default="disabled")
    add_job_arguments(parser)
    options = parser.parse_args(arguments)
    experiment = Experiment(Path(options.run_dir))

    def work(context: JobContext) -> bool:
        from anml.report.index import write_indexes
        from anml.report.write import write_report

        check_folder(experiment.root, options.min_free_gb)
        context.progress(0, 1, "reports")
        summary = write_report(experiment)
        print_notices(write_indexes(experiment))
        config = load_experiment_config(experiment.config_file).config
        tracker = Tracker(experiment, config, "report", "report", options.wandb)
        tracker.summary(summary.best_accuracies())
        tracker.finish()
        context.progress(1, 1, "reports")
        return True

    return run_job(experiment, options.job, None, work)
