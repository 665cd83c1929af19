"""Time limits in which a job could never get on: refused before anything is submitted."""

import json
import re

from anml.atomic import read_text
from anml.errors import ConfigError
from anml.jobs.launch import Launch

_UNITS = (86_400, 3_600, 60, 1)


def limit_seconds(text: str) -> float | None:
    """Return the seconds of a limit as Slurm writes it: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None: no limit."""
    days, dash, clock = str(text).rpartition("-")
    parts = clock.split(":")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", str(text)):
        return None  # UNLIMITED; sbatch itself says what it does not understand.
    # After days come hours; without days a single number, or the first of two, is minutes.
    units = _UNITS[1:] if dash or len(parts) == 3 else _UNITS[2:]
    return int(days or 0) * _UNITS[0] + sum(int(part) * unit for part, unit in zip(parts, units, strict=False))


def check_time_limits(launch: Launch) -> None:
    """Raise ConfigError where a job would be told to save at once, or before it can come to a checkpoint."""
    profile, problems = launch.profile, []
    if not profile.requeue:
        return
    for kind in ("train", "evaluate"):
        text = profile.sbatch.for_kind(kind).get("time")
        limit = limit_seconds(text) if text is not None else None
        if limit is None:
            continue
        left = limit - profile.signal_seconds
        if left <= 0:
            problems.append(
                f"time: {text} of {kind} jobs: is {limit:.0f} s, and they are told to save {profile.signal_seconds} s "
                "before the end (signal_seconds of the profile): none would get on. Give more --time."
            )
        elif kind == "train" and (rate := _measured_rate(launch)) and launch.config.save_freq / rate > left:
            needed = launch.config.save_freq / rate
            problems.append(
                f"time: {text} of train jobs: leaves {left:.0f} s to train, but at the measured {rate:.3g} steps/s a "
                f"checkpoint comes every {needed:.0f} s (save_freq {launch.config.save_freq}). Give more --time."
            )
    if problems:
        raise ConfigError(problems)


def _measured_rate(launch: Launch) -> float:
    """Return the lowest speed that a training of this experiment logged last, in steps per second; 0: none did."""
    rates = []
    for file in launch.experiment.metrics().parent.glob("train*.jsonl"):
        lines = [line for line in read_text(file).splitlines() if line.endswith("}")]
        rates += [json.loads(lines[-1]).get("steps_per_second", 0.0)] if lines else []
    return min(rates, default=0.0)
