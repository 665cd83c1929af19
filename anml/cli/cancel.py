"""`python -m anml cancel PROJECT/GROUP`: ends an experiment's jobs, and only those."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from anml.cli.arguments import EXIT_DONE, add_address_arguments, find_experiment
from anml.jobs.job_status import read_status, write_status
from anml.jobs.launch import load_launch
from anml.jobs.schedulers import make_scheduler


def main(arguments: Sequence[str]) -> int:
    """Cancel what waits or runs."""
    parser = argparse.ArgumentParser(prog="python -m anml cancel", description=__doc__, allow_abbrev=False)
    add_address_arguments(parser)
    launch = load_launch(find_experiment(parser.parse_args(arguments)))
    scheduler = make_scheduler(launch.experiment, launch.profile, launch.wandb_mode)
    live = scheduler.live_ids()
    scheduler.cancel(sorted({id_ for ids in live.values() for id_ in ids}))
    for job in launch.plan.jobs:
        for task in job.task_numbers if job.name in live else ():
            status_file = launch.experiment.job(job.name, task).status
            status = read_status(status_file)
            if status.state == "pending":
                write_status(status_file, replace(status, state="cancelled", message="by `cancel`"))
    print(f"Cancelled: {', '.join(live)}" if live else "Nothing waits or runs.")
    return EXIT_DONE
