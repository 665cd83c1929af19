"""Files and folders that appear whole or not at all, whenever a process is killed or a machine loses power.

A network file system may show what another machine has written up to a minute late: `wait_until` waits for it.
"""

import errno
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# The script of a job on a cluster sets it: how many seconds to wait for what an earlier job has written.
LATENCY_VARIABLE = "ANML_LATENCY_WAIT"
_PAUSE_SECONDS = 0.5
_TRIES_OF_A_STALE_FILE = 5


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a file under a temporary name, then rename it into place. mode: without what the umask takes away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path) -> str:
    """Return a file's text. Raises OSError.

    Where another machine has just replaced the file, NFS calls it stale (ESTALE) until it is opened again.
    """
    for _ in range(_TRIES_OF_A_STALE_FILE):
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            time.sleep(_PAUSE_SECONDS)
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty when the file is not there or damaged.

    Raises OSError when the file cannot be read: that does not mean that it is not there.
    """
    try:
        data = json.loads(read_text(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def wait_until(is_there: Callable[[], bool], folder: Path, seconds: float | None = None) -> bool:
    """Wait for what an earlier job has written below a folder; say whether it came.

    seconds: how long at most; by default what the script of this job says, and 0 outside a job of a cluster.
    """
    if _sees(is_there):
        return True
    seconds = float(os.environ.get(LATENCY_VARIABLE, "0")) if seconds is None else seconds
    end = time.monotonic() + seconds
    if seconds:
        sys.stderr.write(f"{folder}: waiting up to {seconds:g} s for what earlier jobs have written there\n")
    while not _sees(is_there):
        if time.monotonic() >= end:
            return False
        time.sleep(_PAUSE_SECONDS)
        with suppress(OSError):
            os.listdir(folder)  # An NFS client then asks the server again what there is.
    return True


def _sees(is_there: Callable[[], bool]) -> bool:
    try:
        return is_there()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return False  # Another machine has just replaced a file: it is there once it is opened again.


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its name, replacing what was there, when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            sync(written)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _temporary(path: Path) -> Path:
    """Return a new name beside a path. `tempfile` would hide the file from the group, whatever the umask says."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, put onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # Some file systems cannot do it for a folder.
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
