"""Cluster profiles (`slurm/*.yml`): where jobs run, with which device, environment and limits."""

import re
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
    "gridengine": "anml.jobs.schedulers.gridengine:GridEngineScheduler",
}

Device = Literal["auto", "cuda", "rocm", "cpu"]
WandbMode = Literal["online", "offline", "disabled"]


def _plain(value: Any) -> Any:
    if not isinstance(value, (str, int)):
        message = "must be text, a whole number, or true for an option without a value"
        raise ValueError(message)
    return value


SbatchOptions = dict[str, Annotated[Any, AfterValidator(_plain)]]


# Options that ask for the same in other words: they exclude each other.
MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
_GPUS = ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")


class JobOptions(Record):
    """sbatch options by kind of job; those under `all` hold for every kind."""

    all: SbatchOptions = {}
    train: SbatchOptions = {}
    evaluate: SbatchOptions = {}
    report: SbatchOptions = {}

    @property
    def names(self) -> list[str]:
        """The names of all options, with dashes."""
        return list(dict.fromkeys(name for layer in self.layers().values() for name in layer))

    def layers(self) -> dict[str, SbatchOptions]:
        """Return the options under each key, with underscores in names as dashes."""
        layers = {key: getattr(self, key) for key in type(self).model_fields}
        return {key: {name.replace("_", "-"): value for name, value in layer.items()} for key, layer in layers.items()}

    def for_kind(self, kind: str) -> SbatchOptions:
        """Return the options of one kind of job."""
        return merged(self.layers()["all"], self.layers()[kind])

    def overridden(self, options: SbatchOptions) -> "JobOptions":
        """Return these with options on top, for jobs of every kind."""
        return JobOptions(**{key: merged(layer, options) for key, layer in self.layers().items()})


def exclusive_options(options: SbatchOptions) -> list[tuple[str, ...]]:
    """Return the options that exclude each other: memory twice, or GPUs twice."""
    memory = tuple(name for name in MEMORY if name in options)
    gpus = tuple(name for name in _GPUS if name in options)
    gpus += ("gres",) * (gpus != () and _without_gpus(options) != options)
    return [names for names in (memory, gpus) if len(names) > 1]


def merged(options: SbatchOptions, later: SbatchOptions) -> SbatchOptions:
    """Return options with later ones on top: `mem-per-cpu` also replaces `mem`, `gpus` the GPUs in `gres`."""
    kept = dict(options)
    if any(name in later for name in MEMORY):
        kept = {name: value for name, value in kept.items() if name not in MEMORY}
    if any(name in later for name in _GPUS) or _without_gpus(later) != later:
        kept = {name: value for name, value in _without_gpus(kept).items() if name not in _GPUS}
    return kept | later


def _without_gpus(options: SbatchOptions) -> SbatchOptions:
    """Return options without the GPUs in `gres`, which may name other things beside them."""
    parts = str(options.get("gres", "")).split(",")
    others = ",".join(part for part in parts if not re.match(r"(gres[:/])?(gpu|shard|mps)\b", part))
    rest = {name: value for name, value in options.items() if name != "gres"}
    return options if others == ",".join(parts) else rest | ({"gres": others} if others else {})


class Container(Record):
    """The container that a job's python runs in, after the setup lines, which run outside of it.

    image: a file, or an address that the runtime knows. binds: other folders that jobs need, as the runtime writes them
    (`/data` or `/scratch/data:/data:ro`).
    """

    image: str
    runtime: Literal["apptainer", "singularity", "pyxis"] = "apptainer"
    binds: Many[str] = ()


class Escalation(Record):
    """What a job gets when it is submitted again after it ran out of memory, or of time: the next larger value."""

    mem: Many[str] = ()
    time: Many[str] = ()


class ClusterProfile(Record):
    """Everything that differs from one cluster to the next.

    scheduler: a key of SCHEDULERS, or the user's own FILE.py:CLASS (seen from the profile) or MODULE:CLASS.
    setup: shell lines run before the job (module load, conda activate, exports). max_array_size: the site's
    MaxArraySize (`scontrol show config`). array_throttle: tasks of an array that run at once. points_per_job: sweep
    points of one job (absent: a whole flavor is one job). signal_seconds: how long before the time limit a job is told
    to save and requeue. max_requeues: a job gives up after more attempts in a row than this that got no further.
    job_limit: jobs that run at once on the machine at hand (local scheduler). min_free_gb: disk space a job insists on.
    latency_wait: how many seconds a job waits until its node sees the files that jobs before it have written on others.
    ssh: how ssh on this machine calls the cluster's login node (`user@login`, or a Host of ~/.ssh/config); absent: this
    machine is one. ssh_folder: the folder there, in the home directory if it is not absolute, that launches over ssh
    use.
    """

    name: str
    scheduler: Annotated[str, name_or_reference(SCHEDULERS)]
    device: Device = "auto"
    setup: Many[str] = ()
    python: str | None = None
    container: Container | None = None
    sbatch: JobOptions = JobOptions()
    escalate: Escalation = Escalation()
    max_array_size: Annotated[int, Field(ge=2)] = 1001
    array_throttle: Count | None = None
    points_per_job: Count | None = None
    requeue: bool = True
    signal_seconds: Annotated[int, Field(ge=10)] = 120
    max_requeues: NotNegative = 50
    wandb: WandbMode | None = None
    job_limit: Count = 1
    min_free_gb: Annotated[float, Field(ge=0)] = 1.0
    latency_wait: Annotated[float, Field(ge=0)] = 60.0
    # ssh would take what begins with a dash for an option.
    ssh: Annotated[str, Field(pattern=r"^[^\s-]\S*$")] | None = None
    ssh_folder: Annotated[str, Field(pattern=r"^[^\s-]")] = "anml"


def load_profile(name: str, folder: Path) -> ClusterProfile:
    """Read a profile by its name in a folder, or by the path of a YAML file. Raises ConfigError."""
    by_path = Path(name)
    path = by_path if by_path.suffix in (".yml", ".yaml") else folder / f"{name}.yml"
    if not path.is_file():
        names = profile_names(folder)
        hint = nearest(name, names) or f"; there are: {', '.join(names)}"
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


def load_profile_here(name: str, folder: Path) -> ClusterProfile:
    """Read a profile whose scheduler this machine reaches itself. Raises ConfigError, also for one with `ssh`."""
    profile = load_profile(name, folder)
    if profile.ssh:
        message = (
            f"profile {profile.name}: {profile.ssh} is reached by ssh (`launch --cluster`); use this command there"
        )
        raise ConfigError(message)
    return profile


def profile_names(folder: Path) -> list[str]:
    """Return the names of the profiles in a folder."""
    return sorted(path.stem for path in folder.glob("*.yml"))
