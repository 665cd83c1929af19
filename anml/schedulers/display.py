"""Shows a running local job: a progress bar at a terminal, a line now and then where output goes to a file."""

import sys
import time
from typing import TYPE_CHECKING

from anml.job_status import JobStatus

if TYPE_CHECKING:
    from tqdm import tqdm

# Between two lines about the same job, where there is no terminal.
LINE_SECONDS = 15.0
_STARTING = "{desc}: starting, {elapsed}"
_RUNNING = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}]"


class JobDisplay:
    """What a person sees of one job."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar = _bar(label) if sys.stderr.isatty() else None
        self.last_line = time.monotonic()

    def show(self, status: JobStatus) -> None:
        """Show how far the job is."""
        if self.bar is not None:
            if status.total:
                self.bar.bar_format, self.bar.unit, self.bar.total = _RUNNING, status.unit, status.total
                self.bar.n = status.done
            self.bar.refresh()
        elif status.total and time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            self._line(f"{self.label}: {status.done:.0f} of {status.total:.0f} {status.unit}")

    def end(self, status: JobStatus, log: str) -> None:
        """Show how the job ended."""
        if self.bar is not None:
            self.bar.close()
        if status.state != "done":
            self._line(f"{self.label}: {status.state}: {status.message or 'see the log'}\n  log: {log}")
        elif self.bar is None:
            self._line(f"{self.label}: done in {status.elapsed:.0f} s")

    def _line(self, text: str) -> None:
        if self.bar is not None:
            self.bar.clear()
        print(text, file=sys.stderr, flush=True)


def _bar(label: str) -> "tqdm":
    from tqdm import tqdm  # Only where a bar is shown: a dry run does without.

    return tqdm(desc=label, bar_format=_STARTING)
