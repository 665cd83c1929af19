"""`report`, the `report-job` that ends every plan, and `sync`, which sends W&B runs."""

import argparse
import subprocess
import sys
from pathlib import Path

from anml.cli.arguments import (
    EXIT_DONE,
    EXIT_FAILED,
    add_address_arguments,
    add_job_arguments,
    find_experiment,
    print_notices,
)
from anml.config.load import load_experiment_config
from anml.experiment import Experiment
from anml.jobs.job import JobContext, check_folder, run_job
from anml.jobs.launch import experiments_dir
from anml.tracking import Tracker

report_arguments = sync_arguments = add_address_arguments


def report(options: argparse.Namespace) -> int:
    """Write the report and print the accuracy table."""
    experiment = find_experiment(options)
    from anml.report.index import write_indexes
    from anml.report.write import write_report

    summary = write_report(experiment)
    print_notices(write_indexes(experiment, experiments_dir(options.experiments_dir)))
    print((experiment.report / "accuracy.txt").read_text(encoding="utf-8"))
    print(f"Report: {summary.page}")
    return EXIT_DONE


def report_job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", required=True)
    add_job_arguments(parser)


def report_job(options: argparse.Namespace) -> int:
    """Write the report and send the best accuracies to W&B."""
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


def sync(options: argparse.Namespace) -> int:
    """Send every offline run of an experiment."""
    runs = sorted(str(path) for path in (find_experiment(options).wandb_dir / "wandb").glob("offline-run-*"))
    if not runs:
        print("No offline runs here.")
        return EXIT_DONE
    # Without --yes and paths, wandb asks questions, or takes the runs of the current folder.
    result = subprocess.run([sys.executable, "-m", "wandb", "sync", "--yes", *runs], check=False)
    return EXIT_DONE if result.returncode == 0 else EXIT_FAILED
