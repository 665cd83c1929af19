"""A time limit in which no job could get on is refused with the numbers; all others are not."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from anml.config.profile import ClusterProfile, JobOptions
from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.job_status import JobStatus, write_status
from anml.jobs.launch import Launch
from anml.jobs.plan import Job, Plan
from anml.jobs.time_limits import check_time_limits


@pytest.mark.parametrize(
    ("time", "rate", "numbers"),
    [
        ("2", None, ["120 s", "signal_seconds"]),
        ("10", 1.0, ["480 s", "every 500 s", "1 steps/s"]),
        ("10", 2.0, None),
        ("3", None, None),
        ("1-00:00", 1.0, None),
        ("UNLIMITED", 1.0, None),
        ("0", 1.0, None),
    ],
)
def test_a_limit_too_short_to_get_on_is_refused(
    tmp_path: Path, time: str, rate: float | None, numbers: list[str] | None
) -> None:
    launch = launch_with(tmp_path, time, rate)
    if numbers is None:
        check_time_limits(launch)
        return
    with pytest.raises(ConfigError) as error:
        check_time_limits(launch)
    assert [number for number in numbers if number not in str(error.value)] == []


@pytest.mark.parametrize(
    ("kept", "given", "is_refused"),
    [(None, "2", True), (None, "60", False), (None, "2x", False), ("60", None, False), ("60", "0.1x", True)],
)
def test_the_limit_of_a_retry_is_the_one_that_its_jobs_will_have(
    tmp_path: Path, kept: str | None, given: str | None, is_refused: bool
) -> None:
    launch = launch_with(tmp_path, "10", 1.0)
    launch.job_options.update({"train": {"time": kept}} if kept else {})
    launch.retry_options.update({"time": given} if given else {})
    with pytest.raises(ConfigError) if is_refused else nullcontext():
        check_time_limits(launch)


def test_a_training_that_is_done_needs_no_time(tmp_path: Path) -> None:
    launch = launch_with(tmp_path, "2", None)
    write_status(launch.experiment.job("train").status, JobStatus(state="done"))
    check_time_limits(launch)


def launch_with(root: Path, time: str, rate: float | None) -> Launch:
    """Return a launch of a training with a time limit, which has trained at a rate before."""
    profile = ClusterProfile(name="x", scheduler="slurm", sbatch=JobOptions(train={"time": time}))
    config = TrainConfig(dataset="glyphs", model="anml", save_freq=500)
    launch = Launch(config, Experiment(root), profile, "disabled", Plan((Job("train", "train", ()),)))
    if rate:
        launch.experiment.metrics().parent.mkdir()
        launch.experiment.metrics().write_text(json.dumps({"step": 5, "steps_per_second": rate}) + "\n")
    return launch
