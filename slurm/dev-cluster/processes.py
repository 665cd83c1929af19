"""Processes known by id and start time, so that a recycled id is never signalled; read from /proc, nothing by name."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process; `started` (clock ticks since boot) tells it from a later one with the same id."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether it still runs. A zombie does not: in a container nobody may ever reap it."""
        entry = _stat(self.pid)
        return entry is not None and entry.process == self

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless the process is gone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):  # it may end between the two lines
                os.kill(self.pid, number)


@dataclass(frozen=True)
class Entry:
    """What /proc/PID/stat says of a living process."""

    process: Process
    parent: int
    command: str


def _stat(pid: int) -> Entry | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The command stands in parentheses and may itself contain any character.
    command, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return None if fields[0] in "ZX" else Entry(Process(pid, int(fields[19])), int(fields[1]), command)


def lookup(pid: int) -> Process | None:
    """Return the living process with this id."""
    entry = _stat(pid)
    return entry.process if entry else None


def living() -> list[Entry]:
    """List every living process of the machine."""
    entries = [_stat(int(folder.name)) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    return [entry for entry in entries if entry]


def works_in(process: Process, folder: Path) -> bool:
    """Tell if its current folder lies in `folder`; False where we may not look."""
    try:
        return Path(os.readlink(f"/proc/{process.pid}/cwd")).is_relative_to(folder)
    except OSError:
        return False


def was_given(process: Process, marks: list[str]) -> bool:
    """Tell if it was started with these variables: NAME=VALUE, or NAME= for any value; False where we may not look."""
    try:
        given = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    names = {pair.partition(b"=")[0] + b"=" for pair in given}
    return {mark.encode() for mark in marks} <= names | set(given)


def family(roots: Iterable[Process], entries: list[Entry]) -> set[Process]:
    """Return the roots with all their descendants, without the calling process and its ancestors."""
    members = set(roots)
    while True:
        pids = {process.pid for process in members}
        grown = members | {entry.process for entry in entries if entry.parent in pids}
        if grown == members:
            return members - _own_line(entries)
        members = grown


def _own_line(entries: list[Entry]) -> set[Process]:
    by_pid = {entry.process.pid: entry for entry in entries}
    line, pid = set(), os.getpid()
    while pid in by_pid:
        line.add(by_pid[pid].process)
        pid = by_pid[pid].parent
    return line


def wait_gone(processes: Iterable[Process], seconds: float) -> bool:
    """Wait until none of them lives; False when the time is over before."""
    end = time.monotonic() + seconds
    waiting = list(processes)
    while waiting := [process for process in waiting if process.alive]:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
