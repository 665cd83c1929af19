"""The errors a user can cause or meet. Each message says what is wrong, where, and what to do."""

import sys
from collections.abc import Sequence
from pathlib import Path


class AnmlError(Exception):
    """Base of every error that is shown to the user without a traceback."""

    exit_code = 1


class ConfigError(AnmlError):
    """The user's input is wrong. problems: all of them, each once, so that the user can correct them at once."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


class DataError(AnmlError):
    """A data set is missing or damaged, or lacks what was asked for."""


class CheckpointError(AnmlError):
    """A checkpoint is missing, damaged, or does not belong to this experiment."""


class SubmissionError(AnmlError):
    """A scheduler refused a job or could not be reached."""


class JobError(AnmlError):
    """A job cannot run on this machine, or ended without finishing its work."""


def missing_package(error: Exception) -> str:
    """Return one line about a package that this code imports and this Python lacks; "" for any other error.

    Where a user's code or another package imports it, a traceback says more.
    """
    if not isinstance(error, ModuleNotFoundError):
        return ""
    import traceback  # Slow to import, and --help must answer at once.

    package = (error.name or "anml").partition(".")[0]
    importer = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    if package == "anml" or not importer.is_relative_to(Path(__file__).parent):
        return ""
    return (
        f"the package {package} is not installed for {sys.executable}: activate the environment that has it "
        "(`source .venv/bin/activate` after `make setup`), or install requirements.txt (docs/install.md)"
    )
