"""What a job asks for when it is submitted again: more memory or time, and other nodes."""

import math
import re
from collections import Counter
from collections.abc import Sequence

from anml.config.profile import MEMORY, ClusterProfile, SbatchOptions, merged
from anml.errors import ConfigError
from anml.jobs.job_status import JobStatus
from anml.jobs.plan import Job

# How often a job may fail on a node before its retries keep away from it.
FAILURES_OF_A_NODE = 2
FACTOR = re.compile(r"(\d+(?:\.\d+)?)x")
_MEGABYTES = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}
# The scheduler's words for a job that had too little, by what it had too little of.
_SHORTAGES = {"mem": ("OUT_OF_MEMORY",), "time": ("TIMEOUT", "DEADLINE")}
# Slurm's word for a job that no node can take.
NO_NODE_LEFT = "BadConstraints"
# Ends that no node is to blame for.
_BLAMELESS = ("OUT_OF_MEMORY", "TIMEOUT", "DEADLINE", "PREEMPTED", "CANCELLED")


def check_factors(profile: ClusterProfile, given: SbatchOptions) -> None:
    """Raise ConfigError where a factor, as in `--mem=2x`, has nothing to multiply."""
    asked = profile.sbatch.for_kind("train")
    names = [name for name, value in given.items() if FACTOR.fullmatch(str(value)) and not _name_in(asked, name)]
    if names:
        raise ConfigError([f"--{name}={given[name]}: profile {profile.name} gives a job no {name}" for name in names])


def options_again(
    profile: ClusterProfile, job: Job, last: SbatchOptions, given: SbatchOptions, before: Sequence[JobStatus],
    endings: Sequence[str],
) -> SbatchOptions:  # fmt: skip
    """Return the options that a job is submitted with beyond its profile's.

    last: those of its last submission. given: those of `retry`; a factor counts for what has run before, and takes the
    place of a step of `escalate`. before: the statuses of its tasks. endings: what the scheduler says of their ends.
    """
    asked = merged(profile.sbatch.for_kind(job.kind), last)
    has_run = any(status.attempt for status in before)
    steps = next_steps(profile, asked, endings)
    changes = {}
    for name, value in given.items():
        if not (factor := FACTOR.fullmatch(str(value))):
            changes[name] = value
        elif has_run and (present := _name_in(asked, name)):
            changes[present] = multiplied(present, str(asked[present]), float(factor[1]))
    if "exclude" not in given and (nodes := bad_nodes(before)):
        others = [node for node in str(asked.get("exclude") or "").split(",") if node and node not in nodes]
        # Rather a bad node than none.
        excluded = others if any(NO_NODE_LEFT in ending for ending in endings) else [*others, *nodes]
        changes["exclude"] = ",".join(excluded) or False
    return merged(merged(last, steps), changes)


def option_words(options: SbatchOptions) -> list[str]:
    """Return options as words of a command line; false stands for an option that is left out."""
    shown = {name: value for name, value in options.items() if value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in shown.items()]


def failed_on(status: JobStatus, ending: str) -> tuple[str, ...]:
    """Return the nodes on which a task has failed so far, its last attempt included."""
    failed = status.state in ("failed", "running") and not any(word in ending for word in _BLAMELESS)
    return (*status.failed_on, *([status.node] if failed and status.node else []))


def bad_nodes(before: Sequence[JobStatus]) -> list[str]:
    """Return the nodes that have failed one of these tasks twice."""
    counts = [Counter(status.failed_on) for status in before]
    return sorted({node for count in counts for node, times in count.items() if times >= FAILURES_OF_A_NODE})


def next_steps(profile: ClusterProfile, asked: SbatchOptions, endings: Sequence[str]) -> SbatchOptions:
    """Return the next larger values of `escalate` for what a job had too little of."""
    steps = {}
    for name, words in _SHORTAGES.items():
        present = _name_in(asked, name)
        if any(word in ending for word in words for ending in endings):
            now = amount(name, str(asked[present])) if present in ("time", "mem") else 0.0
            larger = [value for value in getattr(profile.escalate, name) if amount(name, str(value)) > now]
            steps |= {name: min(larger, key=lambda value: amount(name, str(value)))} if larger else {}
    return steps


def _name_in(asked: SbatchOptions, name: str) -> str | None:
    """Return the option by which a job asks for this: for memory there are several."""
    return next((other for other in (MEMORY if name in MEMORY else (name,)) if other in asked), None)


def multiplied(name: str, value: str, factor: float) -> str:
    """Return a value of an sbatch option times a factor, rounded up: `16G` twice is `32G`."""
    if name == "time" or name in MEMORY:
        return written(name, amount(name, value) * factor)
    return str(math.ceil(float(value) * factor))


def written(name: str, value: float) -> str:
    """Return a memory size of so many MB, or a time of so many seconds, as sbatch takes it; rounded up."""
    if name == "time":
        minutes = math.ceil(value / 60)
        return f"{minutes // 1440}-{minutes // 60 % 24:02}:{minutes % 60:02}:00"
    megabytes = math.ceil(value)
    return f"{megabytes}M" if megabytes % 1024 else f"{megabytes // 1024}G"


def amount(name: str, value: str) -> float:
    """Return a memory size in MB, or a time in seconds. Raises ConfigError for what sbatch would not understand."""
    try:
        if name != "time":
            number, unit = re.fullmatch(r"([\d.]+)([KMGT]?)B?", value.upper()).groups()  # type: ignore[union-attr]
            return float(number) * _MEGABYTES[unit]
        days, _, clock = value.rpartition("-")
        parts = [int(part) for part in clock.split(":")]
        # Without days: minutes, minutes:seconds or hours:minutes:seconds. Behind days, hours come first.
        parts = parts if days or len(parts) == 3 else [0, *parts]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    except (AttributeError, ValueError):
        message = f"{name}: {value!r} is no amount of {'time' if name == 'time' else 'memory'} that sbatch takes"
        raise ConfigError(message) from None
