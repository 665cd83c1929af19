"""`logs`: what the jobs of an experiment print."""

import argparse
import time
from pathlib import Path

from anml.cli.arguments import add_address_arguments, find_experiment
from anml.config.binding import nearest
from anml.errors import ConfigError
from anml.jobs.launch import Launch, load_launch
from anml.jobs.status import GOING, log_tail, read_jobs

TAIL_LINES = 12
ASK_SECONDS = 5.0
READ_SECONDS = 0.5


def logs_arguments(parser: argparse.ArgumentParser) -> None:
    add_address_arguments(parser)
    which = "the whole log of a job, or of a task NAME[3] of an array (default: the end of every log)"
    parser.add_argument("job", metavar="JOB", nargs="?", help=which)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until these jobs have ended")


def logs(options: argparse.Namespace) -> None:
    launch = load_launch(find_experiment(options))
    printer = LogPrinter(_files(launch, options.job))
    if options.job is None:
        printer.print_tails()
    printer.print_new()
    if options.follow:
        _follow(launch, printer)


class LogPrinter:
    """Prints logs as they grow, each piece below the name of its job where there are several."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files
        # How many bytes of each log were read.
        self.read = dict.fromkeys(files, 0)
        self.last_label = next(iter(files)) if len(files) == 1 else ""

    def print_tails(self) -> None:
        """Print the last lines of every log; `print_new` goes on after them."""
        for label, file in self.files.items():
            if file.is_file():
                self.read[label] = file.stat().st_size
                self._print(label, log_tail(file, TAIL_LINES) + "\n")

    def print_new(self) -> None:
        """Print what was written since the last time."""
        for label, file in self.files.items():
            if file.is_file() and file.stat().st_size != self.read[label]:
                with file.open("rb") as stream:
                    stream.seek(self.read[label])
                    content = stream.read()
                self.read[label] += len(content)
                self._print(label, content.decode("utf-8", errors="replace"))

    def _print(self, label: str, text: str) -> None:
        if label != self.last_label:
            print(f"\n==> {label}: {self.files[label]} <==")
        self.last_label = label
        print(text, end="", flush=True)


def _follow(launch: Launch, printer: LogPrinter) -> None:
    scheduler = launch.make_scheduler()
    goes_on = True
    while goes_on:
        # Asked before the logs are read: so the last lines of a job that has ended are printed.
        goes_on = any(o.label in printer.files and o.state in GOING for o in read_jobs(launch.experiment, scheduler))
        until = time.monotonic() + ASK_SECONDS
        printer.print_new()
        while goes_on and time.monotonic() < until:
            time.sleep(READ_SECONDS)
            printer.print_new()


def _files(launch: Launch, wanted: str | None) -> dict[str, Path]:
    """Return the logs of a job, or those of all jobs, by label. Raises ConfigError."""
    tasks = [(job, task) for job in launch.plan.jobs for task in job.task_numbers]
    chosen = [(job, task) for job, task in tasks if wanted in (None, job.name, job.label(task))]
    if wanted is not None and not chosen:
        names = [job.name for job in launch.plan.jobs]
        message = f"{wanted}: no such job{nearest(wanted, names)}; there are: {', '.join(names)}"
        raise ConfigError(message)
    return {job.label(task): launch.experiment.job(job.name, task).log for job, task in chosen}
