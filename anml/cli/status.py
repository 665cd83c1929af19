"""`python -m anml status PROJECT/GROUP`: every job, honestly."""

import argparse
import textwrap
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from anml.cli.arguments import EXIT_DONE, EXIT_FAILED, add_address_arguments, find_experiment
from anml.jobs.job_status import duration
from anml.jobs.launch import Launch, load_launch
from anml.jobs.schedulers import Scheduler, make_scheduler
from anml.jobs.status import GOING, JobOutcome, gpu_hours, log_tail, read_jobs

_STYLE = {"done": "green", "running": "cyan", "failed": "bold red", "cancelled": "red"}
LOG_TAIL_LINES = 12
WATCH_SECONDS = 5.0


def main(arguments: Sequence[str]) -> int:
    """Show the status; with --watch until everything has ended. Exit code 1 when a job failed."""
    parser = argparse.ArgumentParser(prog="python -m anml status", description=__doc__, allow_abbrev=False)
    add_address_arguments(parser)
    parser.add_argument("-w", "--watch", action="store_true", help="keep showing it until every job has ended")
    options = parser.parse_args(arguments)
    launch = load_launch(find_experiment(options))
    scheduler = make_scheduler(launch.experiment, launch.profile, launch.wandb_mode)
    reports = read_jobs(launch.experiment, scheduler)
    console = Console(highlight=False)
    if options.watch:
        reports = _watch(console, launch, scheduler, reports)
    console.print(_page(launch, reports))
    return EXIT_FAILED if any(report.state in ("failed", "skipped", "cancelled") for report in reports) else EXIT_DONE


def _watch(console: Console, launch: Launch, scheduler: Scheduler, reports: list[JobOutcome]) -> list[JobOutcome]:
    with Live(_page(launch, reports), console=console, auto_refresh=False, transient=True) as live:
        while any(report.state in GOING for report in reports):
            time.sleep(WATCH_SECONDS)
            reports = read_jobs(launch.experiment, scheduler)
            live.update(_page(launch, reports), refresh=True)
    return reports


def _page(launch: Launch, reports: Sequence[JobOutcome]) -> Group:
    counts = {state: sum(r.state == state for r in reports) for state in dict.fromkeys(r.state for r in reports)}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    experiment = launch.experiment
    head = f"{experiment.project}/{experiment.group} on {launch.profile.name}: {summary}"
    hours = gpu_hours(launch, reports)
    lines = [
        Text(head + (f"; {hours:.2f} GPU-hours" if launch.profile.device in ("cuda", "rocm") else ""), style="bold")
    ]
    page = experiment.report / "index.html"
    tail = [Text(f"Report: {page}")] if page.is_file() else []
    return Group(*lines, _table(reports), *_failures(launch, reports), *tail)


def _table(reports: Sequence[JobOutcome]) -> Table:
    table = Table(Column("job", no_wrap=True), "state", "progress", "time", "why", box=None, pad_edge=False)
    for report in _shown(reports):
        state = Text(report.state, style=_STYLE.get(report.state, ""))
        table.add_row(
            Text(report.label),
            state,
            _progress(report),
            duration(report.status.elapsed) if report.status.elapsed else "",
            Text(report.message),
        )
    return table


def _shown(reports: Sequence[JobOutcome]) -> list[JobOutcome]:
    """Leave out tasks of arrays that are like the one before them: a thousand lines tell nobody anything."""
    shown: list[JobOutcome] = []
    for report in reports:
        before = shown[-1] if shown else None
        same = before and before.job.name == report.job.name and before.state == report.state
        if not (same and report.state in ("pending", "done", "skipped")):
            shown.append(report)
    return shown


def _progress(report: JobOutcome) -> str:
    status = report.status
    if report.state not in ("running", "interrupted", "failed") or not status.total:
        return ""
    rate = f", {status.rate:.3g}/s" if status.rate else ""
    left = (status.total - status.done) / status.rate if status.rate and report.state == "running" else 0
    return f"{status.done:.0f}/{status.total:.0f} {status.unit}{rate}{f', {duration(left)} left' if left else ''}"


def _failures(launch: Launch, reports: Sequence[JobOutcome]) -> list[Text]:
    texts = []
    for report in [r for r in reports if r.state == "failed"][:3]:
        log = launch.experiment.job(report.job.name, report.task).log
        texts.append(Text(f"\n{report.label} failed. The end of {log}:", style="red"))
        texts.append(Text(textwrap.indent(log_tail(log, LOG_TAIL_LINES), "  ") or "  (no log)"))
    return texts
