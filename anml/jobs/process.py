"""The identity of a process: its id alone is not enough, since a later process may have the same.

Only this module asks whether a recorded process still runs: Linux answers in /proc, other systems by `ps`.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

_PROC = Path("/proc")
# In seconds. A file's time is of the file server's clock, a process's start of its own machine's.
_CLOCK_SLACK = 60.0
_NEVER = -1.0


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process as it is recorded; pid 0: none.

    boot: differs each time the machine starts. pid_space: which processes its id is counted among (a container has its
    own). pid_started: seconds from the machine's start to its own. Without /proc the first two are empty, and the
    seconds are since 1970. Records of earlier versions have host and pid alone.
    """

    host: str = ""
    pid: int = 0
    boot: str = ""
    pid_space: str = ""
    pid_started: float = 0.0

    @property
    def presence(self) -> Literal["alive", "gone", "unknown"]:
        """Say whether the process still runs. unknown: only another machine, container or user can tell."""
        if not self.pid or self.host != socket.gethostname():
            return "unknown"
        if self.boot and self.boot != _boot():
            return "gone"
        if self.boot and self.pid_space != _pid_space():
            return "unknown"
        try:
            started = _start_of(self.pid)
        except PermissionError:
            return "unknown"
        return "alive" if started is not None and self.pid_started in (0.0, started) else "gone"

    @property
    def command_line(self) -> str:
        """The command line of the process that has this id now, words joined by spaces; empty when there is none."""
        if not _has_proc():
            return _ps(self.pid, "command=")
        try:
            return (_PROC / f"{self.pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
        except OSError:
            return ""


Recorded = TypeVar("Recorded", bound=Process)


def this_process() -> Process:
    pid = os.getpid()
    started = _start_of(pid) or 0.0
    return Process(host=socket.gethostname(), pid=pid, boot=_boot(), pid_space=_pid_space(), pid_started=started)


def recorded_process(data: Mapping[str, Any], file: Path, kind: type[Recorded] = Process) -> Recorded:
    """Return the process that a file names.

    Of a record with host and pid alone, it is the process with this id that is older than the file. A younger one is a
    stranger: it has got the id later.
    """
    process = kind(**{field.name: data[field.name] for field in fields(kind) if field.name in data})
    if process.pid_started or process.presence != "alive" or not file.exists():
        return process
    started = _start_of(process.pid) or 0.0
    since_1970 = started + (time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) if _has_proc() else 0.0)
    return replace(process, pid_started=started if since_1970 <= file.stat().st_mtime + _CLOCK_SLACK else _NEVER)


def _start_of(pid: int) -> float | None:
    """Return when a process started, None when it has ended. Raises PermissionError where that is hidden from us."""
    if not _has_proc():
        state, _, started = _ps(pid, "state=,lstart=").partition(" ")
        is_running = started and not state.startswith("Z")
        return time.mktime(time.strptime(started.strip(), "%a %b %d %H:%M:%S %Y")) if is_running else None
    try:
        text = (_PROC / f"{pid}/stat").read_text(errors="replace")
    except OSError:
        # Some machines hide the processes of other users; a signal may not be sent to them, but finds them.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
        return None
    # The command stands in parentheses and may itself contain any character; after it, fields 3 (state) to 22 (start).
    values = text.rpartition(")")[2].split()
    # A zombie does nothing any more, and in a container it may stay for ever.
    return None if values[0] in "ZX" else int(values[19]) / os.sysconf("SC_CLK_TCK")


def _ps(pid: int, columns: str) -> str:
    command, environment = ["ps", "-o", columns, "-p", str(pid)], os.environ | {"LC_ALL": "C"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()


def _has_proc() -> bool:
    return (_PROC / "self/stat").exists()


def _boot() -> str:
    file = _PROC / "sys/kernel/random/boot_id"
    return file.read_text().strip() if file.exists() else ""


def _pid_space() -> str:
    link = _PROC / "self/ns/pid"
    return os.readlink(link) if link.is_symlink() else ""
