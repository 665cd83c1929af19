"""The errors a user can cause or meet. Each message says what is wrong, where, and what to do."""

from collections.abc import Sequence


class AnmlError(Exception):
    """Base of every error that is shown to the user without a traceback."""

    exit_code = 1


class ConfigError(AnmlError):
    """The user's input is wrong. Holds every problem found, so that they are mended in one go."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(AnmlError):
    """A data set is missing, damaged, or does not hold what was asked of it."""


class CheckpointError(AnmlError):
    """A checkpoint is missing, damaged, or does not belong to this experiment."""


class SubmissionError(AnmlError):
    """A scheduler refused a job or could not be reached."""


class JobError(AnmlError):
    """A job cannot run on this machine, or ended without finishing its work."""
