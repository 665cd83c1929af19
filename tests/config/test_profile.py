"""Cluster profiles."""

from pathlib import Path

import pytest

from anml.config.profile import load_profile, profile_names
from anml.errors import ConfigError

PROFILES = Path(__file__).resolve().parents[2] / "slurm"


def wrong(name: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_profile(name, PROFILES)
    return list(caught.value.problems)


@pytest.mark.parametrize("name", ["dggpu", "bdgpu", "local"])
def test_the_profiles_here_load(name: str) -> None:
    assert load_profile(name, PROFILES).name == name


def test_every_profile_here_has_a_name() -> None:
    assert {"bdgpu", "dggpu", "local"} <= set(profile_names(PROFILES))


def test_a_profile_may_lie_anywhere(write) -> None:
    write("mine.yml", "scheduler: slurm\n")
    assert load_profile("mine.yml", PROFILES).name == "mine"


def test_a_time_is_text_with_or_without_quotes(write) -> None:
    write("mine.yml", "scheduler: slurm\nsbatch: {all: {time: 2:00:00}}\n")
    assert load_profile("mine.yml", PROFILES).sbatch.for_kind("train") == {"time": "2:00:00"}


def test_options_of_a_kind_of_job_override_those_of_all(write) -> None:
    write("mine.yml", "scheduler: slurm\nsbatch: {all: {mem: 1G, cpus_per_task: 4}, report: {mem: 2G}}\n")
    assert load_profile("mine.yml", PROFILES).sbatch.for_kind("report") == {"mem": "2G", "cpus-per-task": 4}


def test_an_unknown_cluster_is_told_with_the_nearest() -> None:
    assert wrong("lcal")[0].startswith(
        f"--cluster lcal: there is no profile {PROFILES / 'lcal.yml'}; did you mean 'local'?"
    )


def test_a_name_like_no_other_is_told_with_all_there_are() -> None:
    assert "; there are: bdgpu, dggpu, gridengine, local" in wrong("zzz")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "scheduler: slrum",
            "scheduler: \"slrum\" is not allowed; allowed: slurm, local, gridengine; did you mean 'slurm'?",
        ),
        ("{scheduler: slurm, devce: cuda}", "devce: unknown key; did you mean 'device'?"),
        ("{scheduler: slurm, setup: conda}", 'setup: must be a list, found "conda"'),
        ("{scheduler: slurm, sbatch: {trian: {}}}", "sbatch.trian: unknown key; did you mean 'train'?"),
        (
            "{scheduler: slurm, sbatch: {all: {mem: 1.5}}}",
            "sbatch.all.mem: must be text, a whole number, or true for an option without a value, found 1.5",
        ),
        ("{scheduler: local, job_limit: 0}", "job_limit: must be 1 or more, found 0"),
        ("device: cuda", "scheduler: is required but missing"),
        ("[1]", "the file: must be a mapping (key: value), found [1]"),
    ],
)
def test_a_wrong_profile_is_explained(write, text: str, message: str) -> None:
    write("mine.yml", text)
    assert wrong("mine.yml") == [f"mine.yml:1: {message}"]
