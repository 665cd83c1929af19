"""sbatch options given on the command line: checked by name against those that sbatch has."""

from anml.config.binding import nearest
from anml.config.profile import ClusterProfile
from anml.errors import ConfigError

# Decided by the launcher; a user's value would break dependencies, logs or requeueing.
_OURS = {
    "array", "clusters", "dependency", "error", "help", "job-name", "kill-on-invalid-dep", "no-requeue", "open-mode",
    "output", "parsable", "quiet", "requeue", "signal", "test-only", "usage", "wait", "wrap",
}  # fmt: skip


def parse_sbatch_options(arguments: list[str], own_options: list[str]) -> dict[str, str | int | bool]:
    """Return options by name (with dashes) for arguments like `--mem=64G`. Raises ConfigError with every problem."""
    problems, options = [], {}
    for argument in arguments:
        name, sign, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            problems.append(f"{argument}: not understood; sbatch options are written --name=value")
        elif name in _OURS:
            problems.append(f"--{name}: is set by the launcher or the profile and cannot be chosen")
        elif name not in sbatch_option_names():
            known = sorted(sbatch_option_names() | {option.removeprefix("--") for option in own_options})
            hint = nearest(name, known).replace("'", "")
            problems.append(
                f"--{name}: neither an option of this command nor of sbatch{hint.replace('mean ', 'mean --')}"
            )
        else:
            options[name] = value if sign else True
    if problems:
        raise ConfigError(problems)
    return options


def check_profile_options(profile: ClusterProfile) -> None:
    """Raise ConfigError for options of a profile that sbatch does not have, or that the launcher decides."""
    problems = []
    for name in dict.fromkeys(
        name for kind in ("train", "evaluate", "report") for name in profile.sbatch.for_kind(kind)
    ):
        if name in _OURS:
            problems.append(f"profile {profile.name}: sbatch: {name}: is set by the launcher and cannot be chosen")
        elif name not in sbatch_option_names():
            hint = nearest(name, sbatch_option_names())
            problems.append(f"profile {profile.name}: sbatch: {name}: sbatch has no such option{hint}")
    if problems:
        raise ConfigError(problems)


def sbatch_option_names() -> set[str]:
    """Return the long names of all sbatch options, as simple_slurm knows them."""
    from anml.schedulers.slurm import known_options

    return known_options()
