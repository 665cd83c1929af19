"""What a job asks for when it is submitted again."""

import pytest

from anml.config.profile import ClusterProfile, Escalation, JobOptions
from anml.errors import ConfigError
from anml.jobs.escalation import amount, bad_nodes, check_factors, failed_on, multiplied, options_again
from anml.jobs.job_status import JobStatus
from anml.jobs.plan import Job

JOB = Job("train-step-000010", "train", ())


def profile(train: dict, **escalate: tuple[str, ...]) -> ClusterProfile:
    return ClusterProfile(name="c", scheduler="slurm", sbatch=JobOptions(train=train), escalate=Escalation(**escalate))


@pytest.mark.parametrize(
    ("name", "value", "factor", "expected"),
    [
        ("mem", "16G", 2, "32G"), ("mem", "1G", 1.5, "1536M"), ("mem", "500", 2, "1000M"), ("mem", "1T", 2, "2048G"),
        ("mem-per-cpu", "2GB", 3, "6G"), ("time", "2-00:00:00", 2, "4-00:00:00"), ("time", "30", 2, "0-01:00:00"),
        ("time", "00:20:00", 2, "0-00:40:00"), ("time", "90:30", 2, "0-03:01:00"), ("time", "1-12", 2, "3-00:00:00"),
        ("time", "1-12:30", 2, "3-01:00:00"), ("cpus-per-task", "3", 2, "6"),
    ],
)  # fmt: skip
def test_amounts_are_multiplied_in_their_units(name: str, value: str, factor: float, expected: str) -> None:
    assert multiplied(name, value, factor) == expected


@pytest.mark.parametrize(
    ("asked", "ending", "expected"),
    [
        ({"mem": "16G"}, "OUT_OF_MEMORY (None)", {"mem": "32G"}),
        ({"mem": "32G"}, "OUT_OF_MEMORY (None)", {"mem": "64G"}),
        ({"mem": "64G"}, "OUT_OF_MEMORY (None)", {}),
        ({"mem-per-cpu": "4G"}, "OUT_OF_MEMORY (None)", {"mem": "32G"}),
        ({"time": "1:00:00"}, "TIMEOUT (TimeLimit)", {"time": "4:00:00"}),
        ({"time": "1:00:00", "mem": "16G"}, "FAILED (NonZeroExitCode)", {}),
    ],
    ids=str,
)
def test_what_was_too_little_is_raised_to_the_next_step(asked: dict, ending: str, expected: dict) -> None:
    steps = profile(asked, mem=("64G", "32G"), time=("4:00:00", "1-00:00:00"))
    assert options_again(steps, JOB, {}, {}, [JobStatus("running", attempt=1)], [ending]) == expected


def test_later_steps_follow_from_the_last_submission() -> None:
    steps = profile({"mem": "16G"}, mem=("32G", "64G"))
    again = options_again(steps, JOB, {"mem": "32G"}, {}, [JobStatus(attempt=2)], ["OUT_OF_MEMORY"])
    assert again == {"mem": "64G"}


def test_a_factor_is_for_what_has_run_and_any_other_option_for_all() -> None:
    given, site = {"mem": "2x", "partition": "big"}, profile({"mem-per-cpu": "2G"})
    assert options_again(site, JOB, {}, given, [JobStatus(attempt=1)], []) == {"mem-per-cpu": "4G", "partition": "big"}
    assert options_again(site, JOB, {}, given, [JobStatus()], []) == {"partition": "big"}


def test_a_factor_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="--time=2x"):
        check_factors(profile({"mem": "2G"}), {"mem": "2x", "time": "2x"})


@pytest.mark.parametrize(
    ("state", "ending", "counts"),
    [("failed", "FAILED", 1), ("running", "NODE_FAIL", 1), ("running", "OUT_OF_MEMORY", 0), ("running", "TIMEOUT", 0),
     ("cancelled", "CANCELLED", 0), ("interrupted", "", 0), ("done", "", 0)],
)  # fmt: skip
def test_only_failures_that_a_node_may_be_to_blame_for_count(state, ending: str, counts: int) -> None:
    assert failed_on(JobStatus(state, node="n1", failed_on=["n2"]), ending) == ("n2", *["n1"] * counts)


def test_nodes_that_failed_a_task_twice_are_excluded_beside_those_of_the_profile() -> None:
    before = [JobStatus(failed_on=["n1", "n2", "n1"]), JobStatus(failed_on=["n2", "n3"])]
    assert bad_nodes(before) == ["n1"]
    assert options_again(profile({"exclude": "n9"}), JOB, {}, {}, before, []) == {"exclude": "n9,n1"}
    assert options_again(profile({}), JOB, {}, {"exclude": False}, before, []) == {"exclude": False}


def test_a_bad_node_is_better_than_none() -> None:
    before, own = [JobStatus(failed_on=["n1", "n1"])], {"exclude": "n9,n1"}
    assert options_again(profile({}), JOB, own, {}, before, ["FAILED (BadConstraints)"]) == {"exclude": "n9"}


def test_no_amount_is_an_error_in_words() -> None:
    with pytest.raises(ConfigError, match="mem: 'much'"):
        amount("mem", "much")
