"""Checks the folder that a job writes to."""

import os
import shutil
from pathlib import Path

from anml.errors import JobError


def check_folder(folder: Path, min_free_gb: float) -> None:
    """Raise JobError unless a folder can be written to and has space left."""
    if not os.access(folder, os.W_OK):
        message = f"{folder}: cannot be written to from this machine. Is the file system mounted here, and yours?"
        raise JobError(message)
    free = shutil.disk_usage(folder).free / 1e9
    if free < min_free_gb:
        message = f"{folder}: {free:.1f} GB of disk left, this job wants {min_free_gb:g} GB. Make space, then retry."
        raise JobError(message)
