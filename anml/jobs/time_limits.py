"""Time limits in which a job could never get on: refused before anything is submitted."""

import json

from anml.atomic import read_text
from anml.config.profile import merged
from anml.errors import ConfigError
from anml.jobs.escalation import FACTOR, amount, multiplied
from anml.jobs.job_status import read_status
from anml.jobs.launch import Launch
from anml.jobs.plan import Job


def check_time_limits(launch: Launch) -> None:
    """Raise ConfigError where a job would be told to save at once, or before it can come to a checkpoint."""
    if not launch.profile.requeue:
        return
    jobs = [job for job in launch.plan.jobs if job.kind != "report" and not _is_done(launch, job)]
    limits = {(job.kind, text) for job in jobs if (text := _limit_of(launch, job))}
    if problems := [problem for kind, text in sorted(limits) if (problem := _problem(launch, kind, text))]:
        raise ConfigError(problems)


def _is_done(launch: Launch, job: Job) -> bool:
    return read_status(launch.experiment.job(job.name).status).state == "done"


def _limit_of(launch: Launch, job: Job) -> str | None:
    """Return the limit with which a job would be submitted."""
    given = launch.retry_options
    asked = merged(launch.profile.sbatch.for_kind(job.kind), launch.job_options.get(job.name, {}))
    if (factor := FACTOR.fullmatch(str(given.get("time")))) and "time" in asked:
        return multiplied("time", str(asked["time"]), float(factor[1]))
    text = merged(asked, given).get("time")
    return None if text is None else str(text)


def _problem(launch: Launch, kind: str, text: str) -> str:
    """Say why no job of this kind would get on within a limit; "" where it would."""
    profile, config = launch.profile, launch.config
    try:
        limit = amount("time", text)
    except ConfigError:
        return ""  # UNLIMITED; sbatch itself says what it does not understand.
    left = limit - profile.signal_seconds
    if limit and left <= 0:  # To Slurm 0 is no limit.
        return (
            f"time: {text} of {kind} jobs: is {limit:.0f} s, and they are told to save {profile.signal_seconds} s "
            "before the end (signal_seconds of the profile): none would get on. Give more --time."
        )
    if limit and kind == "train" and (rate := _measured_rate(launch)) and config.save_freq / rate > left:
        return (
            f"time: {text} of train jobs: leaves {left:.0f} s to train, but at the measured {rate:.3g} steps/s a "
            f"checkpoint comes every {config.save_freq / rate:.0f} s (save_freq {config.save_freq}). Give more --time."
        )
    return ""


def _measured_rate(launch: Launch) -> float:
    """Return the lowest speed that a training of this experiment logged last, in steps per second; 0: none did."""
    rates = []
    for file in launch.experiment.metrics().parent.glob("train*.jsonl"):
        lines = [line for line in read_text(file).splitlines() if line.endswith("}")]
        rates += [json.loads(lines[-1]).get("steps_per_second", 0.0)] if lines else []
    return min(rates, default=0.0)
