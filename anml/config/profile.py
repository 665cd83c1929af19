"""Cluster profiles (`slurm/*.yml`): where jobs run, with which device, environment and limits."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from anml.config import shipped
from anml.config.binding import (
    Count,
    Many,
    NotNegative,
    Record,
    bind,
    make_references_absolute,
    name_or_reference,
    nearest,
)
from anml.config.yaml import read_yaml
from anml.errors import ConfigError

# The shipped profiles.
PROFILES = shipped("slurm")

# The backends; each is a subclass of jobs.schedulers.Scheduler.
SCHEDULERS = {
    "slurm": "anml.jobs.schedulers.slurm:SlurmScheduler",
    "local": "anml.jobs.schedulers.local:LocalScheduler",
}

Device = Literal["auto", "cuda", "rocm", "cpu"]
WandbMode = Literal["online", "offline", "disabled"]


def _plain(value: Any) -> Any:
    if not isinstance(value, (str, int)):
        message = "must be text, a whole number, or true for an option without a value"
        raise ValueError(message)
    return value


SbatchOptions = dict[str, Annotated[Any, AfterValidator(_plain)]]


class JobOptions(Record):
    """sbatch options by kind of job; those under `all` hold for every kind."""

    all: SbatchOptions = {}
    train: SbatchOptions = {}
    evaluate: SbatchOptions = {}
    report: SbatchOptions = {}

    def for_kind(self, kind: str) -> SbatchOptions:
        """Return the options of one kind of job, with underscores in names as dashes."""
        merged = {**self.all, **getattr(self, kind)}
        return {name.replace("_", "-"): value for name, value in merged.items()}


class ClusterProfile(Record):
    """Everything that differs from one cluster to the next.

    scheduler: a key of SCHEDULERS, or the user's own FILE.py:CLASS (seen from the profile) or MODULE:CLASS.
    setup: shell lines run before the job (module load, conda activate, exports). max_array_size: the site's
    MaxArraySize (`scontrol show config`). array_throttle: tasks of an array that run at once. points_per_job: sweep
    points of one job (absent: a whole flavor is one job). signal_seconds: how long before the time limit a training
    is told to save and requeue. max_requeues: a job requeued more often than this gives up. job_limit: jobs that run
    at once on the machine at hand (local scheduler). min_free_gb: disk space a job insists on.
    """

    name: str
    scheduler: Annotated[str, name_or_reference(SCHEDULERS)]
    device: Device = "auto"
    setup: Many[str] = ()
    python: str | None = None
    sbatch: JobOptions = JobOptions()
    max_array_size: Annotated[int, Field(ge=2)] = 1001
    array_throttle: Count | None = None
    points_per_job: Count | None = None
    requeue: bool = True
    signal_seconds: Annotated[int, Field(ge=10)] = 120
    max_requeues: NotNegative = 50
    wandb: WandbMode | None = None
    job_limit: Count = 1
    min_free_gb: Annotated[float, Field(ge=0)] = 1.0


def load_profile(name: str, folder: Path) -> ClusterProfile:
    """Read a profile by its name in a folder, or by the path of a YAML file. Raises ConfigError."""
    by_path = Path(name)
    path = by_path if by_path.suffix in (".yml", ".yaml") else folder / f"{name}.yml"
    if not path.is_file():
        known = profile_names(folder)
        hint = nearest(name, known) or f"; there are: {', '.join(known)}"
        message = f"--cluster {name}: there is no profile {path}{hint} (a file in {folder} describes each cluster)"
        raise ConfigError(message)
    source = read_yaml(path)
    if isinstance(source.data, dict):
        source.data.setdefault("name", path.stem)
        make_references_absolute(source, [("scheduler",)])
    profile, problems = bind(ClusterProfile, source)
    if profile is None:
        raise ConfigError(problems)
    return profile


def profile_names(folder: Path) -> list[str]:
    """Return the names of the profiles in a folder."""
    return sorted(path.stem for path in folder.glob("*.yml"))
