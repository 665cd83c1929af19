"""`status`, `retry` and `cancel`: the jobs of an experiment after its launch."""

import argparse
import shutil
import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from anml.cli.arguments import EXIT_DONE, EXIT_FAILED, add_address_arguments, find_experiment
from anml.cli.launch import run_and_report
from anml.jobs.job_status import duration
from anml.jobs.launch import Launch, load_launch, moved_from
from anml.jobs.schedulers import scheduler_class
from anml.jobs.status import BAD, GOING, JobOutcome, count_states, gpu_hours, is_report_stale, log_tail, read_jobs
from anml.jobs.submission import cancel_pending, one_at_a_time
from anml.jobs.time_limits import check_time_limits

_STYLE = {"done": "green", "running": "cyan", "failed": "bold red", "cancelled": "red"}
LOG_TAIL_LINES = 12
WATCH_SECONDS = 5.0
# How long a cancel waits for a launch that is submitting.
LAUNCH_SECONDS = 120.0

cancel_arguments = add_address_arguments


def status_arguments(parser: argparse.ArgumentParser) -> None:
    add_address_arguments(parser)
    parser.add_argument("-w", "--watch", action="store_true", help="keep showing it until every job has ended")


def status(options: argparse.Namespace) -> int:
    """Show every job; with --watch until all have ended. Exit code 1 when a job failed."""
    launch = load_launch(find_experiment(options))
    scheduler = launch.make_scheduler()
    reports = read_jobs(launch.experiment, scheduler)
    console = Console(highlight=False)
    if options.watch:
        with Live(_page(launch, reports), console=console, auto_refresh=False, transient=True) as live:
            while any(report.state in GOING for report in reports):
                time.sleep(WATCH_SECONDS)
                reports = read_jobs(launch.experiment, scheduler)
                live.update(_page(launch, reports), refresh=True)
    console.print(_page(launch, reports))
    # Here a launcher may go on with an interrupted job; a cluster has ended it.
    bad = BAD if scheduler.forgets_ended_jobs else ("failed", "skipped", "cancelled")
    return EXIT_FAILED if any(report.state in bad for report in reports) else EXIT_DONE


def retry_arguments(parser: argparse.ArgumentParser) -> None:
    add_address_arguments(parser)
    parser.set_defaults(sbatch_options=[])
    factors = "Any sbatch option may be given as --name=value; --mem=2x and --time=2x double what a job had."
    parser.epilog = f"{factors} {parser.epilog}"


def retry(options: argparse.Namespace) -> int:
    """Submit (or run on this machine) every job that is not done, with the dependencies that are not done either."""
    launch = load_launch(find_experiment(options))
    given = scheduler_class(launch.profile.scheduler).retry_options(launch.profile, options.sbatch_options)
    launch = replace(launch, retry_options=given)
    check_time_limits(launch)
    return run_and_report(launch)


def cancel(options: argparse.Namespace) -> None:
    """Cancel what waits or runs, and only jobs of this experiment."""
    launch = load_launch(find_experiment(options))
    moved_from(launch.experiment)  # Raises ConfigError for a copy.
    scheduler = launch.make_scheduler()
    # A launch that is at work would go on to submit.
    with one_at_a_time(launch.experiment, patience=LAUNCH_SECONDS):
        live = scheduler.live_ids()
        scheduler.cancel(sorted({id_ for ids in live.values() for id_ in ids}))
        cancel_pending(launch, live, "by `cancel`")
    print(f"Cancelled: {', '.join(live)}" if live else "Nothing waits or runs.")


def _page(launch: Launch, reports: Sequence[JobOutcome]) -> Group:
    experiment, profile = launch.experiment, launch.profile
    head = f"{experiment.project}/{experiment.group} on {profile.name}: {count_states(reports)}"
    head += f"; {gpu_hours(launch, reports):.2f} GPU-hours" if profile.device in ("cuda", "rocm") else ""
    page = experiment.report / "index.html"
    older = " (older than its jobs; `python -m anml report` writes it again)"
    note = older if is_report_stale(experiment, reports) else ""
    tail = [Text(f"Report: {page}{note}")] if page.is_file() else []
    return Group(Text(head, style="bold"), _table(reports), *_failures(reports), *tail)


def _table(reports: Sequence[JobOutcome]) -> Table:
    # A name that would take more than half of the terminal is folded: it would leave no place for the rest.
    longest = max((len(report.label) for report in reports), default=0)
    job = Column("job", width=min(longest, shutil.get_terminal_size().columns // 2), overflow="fold")
    table = Table(job, "state", "progress", "time", Column("why", overflow="fold"), box=None, pad_edge=False)
    for (_, state), group in groupby(reports, key=lambda report: (report.job.name, report.state)):
        same = list(group)
        # An array may have a thousand tasks: of those in a row that all wait or are done, the first is shown.
        for report in same[:1] if state in ("pending", "done", "skipped") else same:
            elapsed = duration(report.status.elapsed) if report.status.elapsed else ""
            styled = Text(state, style=_STYLE.get(state, ""))
            table.add_row(Text(report.label), styled, _progress(report), elapsed, Text(report.message))
    return table


def _progress(report: JobOutcome) -> str:
    status = report.status
    if report.state not in ("running", "interrupted", "failed") or not status.total:
        return ""
    text = f"{status.done:.0f}/{status.total:.0f} {status.unit}"
    if status.rate:
        text += f", {status.rate:.3g}/s"
        if report.state == "running" and status.done < status.total:
            text += f", {duration((status.total - status.done) / status.rate)} left"
    return text


def _failures(reports: Sequence[JobOutcome]) -> list[Text]:
    texts = []
    for report in [r for r in reports if r.state == "failed"][:3]:
        texts.append(Text(f"\n{report.label} failed. The end of {report.folder.log}:", style="red"))
        texts.append(Text(textwrap.indent(log_tail(report.folder.log, LOG_TAIL_LINES), "  ") or "  (no log)"))
    return texts
