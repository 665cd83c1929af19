"""`usage`: what the jobs of an experiment asked for, what they used of it, and what would have been enough."""

import argparse
import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from anml.cli.arguments import add_address_arguments, find_experiment
from anml.config.profile import MEMORY, merged
from anml.jobs.escalation import amount, written
from anml.jobs.job_status import JobStatus, duration, read_status
from anml.jobs.launch import Launch, load_launch
from anml.jobs.plan import Job
from anml.jobs.schedulers import scheduler_class

# How much more than the most that was used is advised.
MARGIN = 1.25

usage_arguments = add_address_arguments


def usage(options: argparse.Namespace) -> None:
    launch = load_launch(find_experiment(options))
    table = Table("jobs", "what", "asked for", "used at most", "enough", box=None, pad_edge=False)
    for kind in ("train", "evaluate", "report"):
        jobs = [job for job in launch.plan.jobs if job.kind == kind]
        tasks = [read_status(launch.experiment.job(job.name, task).status) for job in jobs for task in job.task_numbers]
        ran = [status for status in tasks if status.attempt]
        for number, row in enumerate(_rows(launch, jobs[-1], ran) if ran else ()):
            table.add_row(f"{len(ran)} {kind}" if number == 0 else "", *row)
    Console(highlight=False).print(table if table.row_count else "No job has run.")


def _rows(launch: Launch, job: Job, ran: Sequence[JobStatus]) -> list[tuple[str, str, str, str]]:
    """Return what jobs of a kind asked for and used. job: one of them, which stands for all."""
    asked = merged(launch.profile.sbatch.for_kind(job.kind), launch.job_options.get(job.name, {}))
    memory, gpu_memory = (max(s.memory_gb for s in ran), max(s.gpu_memory_gb for s in ran))
    seconds = max(status.elapsed for status in ran)
    unit = next((name for name in MEMORY if name in asked), "mem")
    per = "" if unit == "mem" else f" per {unit.rpartition('-')[2].upper()}"
    # Earlier versions measured no memory. sbatch counts in units of 1024 MB.
    enough = f"--mem={math.ceil(memory * MARGIN * 1e9 / 2**30)}G" if memory else ""
    limit = duration(amount("time", str(asked["time"]))) if "time" in asked else "default"
    rows = [
        ("memory", f"{asked.get(unit, 'default')}{per}", f"{memory:.1f} GB", enough),
        ("time", limit, duration(seconds), f"--time={written('time', seconds * MARGIN)}"),
    ]
    if gpus := scheduler_class(launch.profile.scheduler).gpus(launch.profile, job.kind):
        rows.append(("GPU memory", f"{gpus} GPU", f"{gpu_memory:.1f} GB", "" if gpu_memory else "no GPU"))
    return rows
