"""A time limit in which no job could get on is refused with the numbers; all others are not."""

import json
from pathlib import Path

import pytest

from anml.config.profile import ClusterProfile, JobOptions
from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.launch import Launch
from anml.jobs.plan import Plan
from anml.jobs.time_limits import check_time_limits, limit_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 300), ("5:30", 330), ("1:00:00", 3600), ("2-00", 172_800), ("1-2:03", 93_780), ("1-00:00:01", 86_401),
     ("UNLIMITED", None), ("tomorrow", None)],
)  # fmt: skip
def test_limits_are_read_as_slurm_writes_them(text: str, seconds: int | None) -> None:
    assert limit_seconds(text) == seconds


@pytest.mark.parametrize(
    ("time", "rate", "numbers"),
    [
        ("2", None, ["120 s", "signal_seconds"]),
        ("10", 1.0, ["480 s", "every 500 s", "1 steps/s"]),
        ("10", 2.0, None),
        ("3", None, None),
    ],
)
def test_a_limit_too_short_to_get_on_is_refused(
    tmp_path: Path, time: str, rate: float | None, numbers: list[str] | None
) -> None:
    profile = ClusterProfile(name="x", scheduler="slurm", sbatch=JobOptions(train={"time": time}))
    config = TrainConfig(dataset="glyphs", model="anml", save_freq=500)
    launch = Launch(config, Experiment(tmp_path), profile, "disabled", Plan(()))
    if rate:
        launch.experiment.metrics().parent.mkdir()
        launch.experiment.metrics().write_text(json.dumps({"step": 5, "steps_per_second": rate}) + "\n")
    if numbers is None:
        check_time_limits(launch)
        return
    with pytest.raises(ConfigError) as error:
        check_time_limits(launch)
    assert [number for number in numbers if number not in str(error.value)] == []
