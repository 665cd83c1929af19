"""Freezes what an experiment was launched with: the code, the git state, the packages."""

import importlib.metadata
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
ENTRY_POINTS = ("launch_train.py", "train_anml.py", "eval_anml.py")


def copy_code(target: Path) -> None:
    """Copy the package and its entry points: editing the repository then changes nothing in a launched experiment."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(REPOSITORY / "anml", target / "anml", ignore=ignore)
    for name in ENTRY_POINTS:
        shutil.copy2(REPOSITORY / name, target / name)


def describe_environment(command_line: Sequence[str]) -> dict[str, Any]:
    """Return where an experiment comes from. Versions are those of the launching python."""
    return {
        "launch_id": uuid.uuid4().hex,
        "launched": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": list(command_line),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_diff": _git("diff", "HEAD"),
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": platform.node(),
        "packages": _versions(),
    }


def _git(*arguments: str) -> str | None:
    """Return git's answer about the repository, or None where there is no git or no repository."""
    try:
        result = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return result.stdout.strip()


def _versions() -> dict[str, str]:
    """Read versions from package metadata: the launcher does not import torch."""
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))
