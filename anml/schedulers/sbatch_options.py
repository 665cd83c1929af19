"""sbatch options given on the command line: checked by name against those that sbatch has."""

from anml.config.binding import nearest
from anml.config.profile import ClusterProfile
from anml.config.training import TrainConfig
from anml.errors import ConfigError, SubmissionError
from anml.schedulers.slurm import known_options

# Decided by the launcher; a user's value would break dependencies, logs or requeueing.
_OURS = {
    "array", "clusters", "dependency", "error", "help", "job-name", "kill-on-invalid-dep", "no-requeue", "open-mode",
    "output", "parsable", "quiet", "requeue", "signal", "test-only", "usage", "wait", "wrap",
}  # fmt: skip


def parse_sbatch_options(arguments: list[str], own_options: list[str]) -> dict[str, str | int | bool]:
    """Return options by name (with dashes) for arguments like `--mem=64G`. Raises ConfigError with every problem."""
    problems = [problem for argument in arguments if (problem := _problem(argument, own_options))]
    if problems:
        raise ConfigError(problems)
    parts = [argument.removeprefix("--").partition("=") for argument in arguments]
    return {name: value if sign else True for name, sign, value in parts}


def _problem(argument: str, own_options: list[str]) -> str:
    """Return what is wrong with an argument, or an empty string."""
    name, _, value = argument.removeprefix("--").partition("=")
    key = name.replace("-", "_")
    if not argument.startswith("--"):
        return f"{argument}: not understood; sbatch options are written --name=value"
    if name in _OURS:
        return f"--{name}: is set by the launcher or the profile and cannot be chosen"
    try:
        of_sbatch, doubt = known_options(), ""
    except SubmissionError as error:  # The machine at hand needs none of them.
        of_sbatch, doubt = set(), f" ({error})"
    if name in of_sbatch:
        return ""
    if key in TrainConfig.model_fields:
        return f"--{name}: is a key of the config: --set {key}={value or 'VALUE'}"
    known = sorted(of_sbatch | {option.removeprefix("--") for option in own_options})
    hint = nearest(name, known).replace("'", "").replace("mean ", "mean --")
    return f"--{name}: neither an option of this command nor of sbatch{hint}{doubt}"


def check_profile_options(profile: ClusterProfile) -> None:
    """Raise ConfigError for options of a profile that sbatch does not have, or that the launcher decides."""
    problems, of_sbatch = [], known_options()
    for name in dict.fromkeys(
        name for kind in ("train", "evaluate", "report") for name in profile.sbatch.for_kind(kind)
    ):
        if name in _OURS:
            problems.append(f"profile {profile.name}: sbatch: {name}: is set by the launcher and cannot be chosen")
        elif name not in of_sbatch:
            hint = nearest(name, of_sbatch)
            problems.append(f"profile {profile.name}: sbatch: {name}: sbatch has no such option{hint}")
    if problems:
        raise ConfigError(problems)
