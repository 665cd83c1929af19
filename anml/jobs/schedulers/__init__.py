"""The table of schedulers, and the cluster to use when none is named."""

import shutil

from anml.config.profile import ClusterProfile
from anml.experiment import Experiment
from anml.jobs.schedulers.base import Scheduler
from anml.jobs.schedulers.local import LocalScheduler
from anml.jobs.schedulers.slurm import SlurmScheduler

# The table of schedulers, and the cluster to use when none is named.


def make_scheduler(experiment: Experiment, profile: ClusterProfile, wandb_mode: str) -> Scheduler:
    """Return the scheduler that a profile names."""
    if profile.scheduler == "local":
        return LocalScheduler(experiment, profile, wandb_mode)
    return SlurmScheduler(experiment, profile, wandb_mode)


def default_cluster() -> tuple[str, str]:
    """Return the profile to use when none is named, and why."""
    if shutil.which("sbatch"):
        return "dggpu", "because this machine has sbatch"
    return "local", "because this machine has no sbatch"


def with_sbatch_overrides(profile: ClusterProfile, arguments: list[str], own_options: list[str]) -> ClusterProfile:
    """Return the profile with sbatch options of the command line on top.

    own_options: the launcher's own options, offered beside sbatch's when one is misspelt. Raises ConfigError.
    """
    if not arguments and profile.scheduler != "slurm":
        return profile
    from anml.jobs.schedulers.slurm import check_profile_options, parse_sbatch_options

    if profile.scheduler == "slurm":
        check_profile_options(profile)
    overrides = parse_sbatch_options(arguments, own_options)
    by_kind = {kind: {**getattr(profile.sbatch, kind), **overrides} for kind in ("train", "evaluate", "report")}
    return profile.model_copy(update={"sbatch": profile.sbatch.model_copy(update=by_kind)})
