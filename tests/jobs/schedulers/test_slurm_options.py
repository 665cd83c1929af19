"""Options of sbatch: how a command line and a profile combine, and how many GPUs they ask for."""

import os
from pathlib import Path

import pytest

from anml.config.profile import ClusterProfile, JobOptions
from anml.errors import ConfigError
from anml.jobs.schedulers.slurm import SlurmScheduler
from anml.jobs.schedulers.slurm_options import count_gpus, parse_options


def profile(**layers: dict) -> ClusterProfile:
    return ClusterProfile(name="c", scheduler="slurm", sbatch=JobOptions(**layers))


def with_options(arguments: list[str], **layers: dict) -> dict:
    """Return the options of a training, once those of a command line are on top."""
    return SlurmScheduler.with_options(profile(**layers), arguments, []).sbatch.for_kind("train")


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ({}, 0),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:2"}, 2),
        ({"gres": "gpu:a100:2"}, 2),
        ({"gres": "gpu:a100"}, 1),
        ({"gres": "gpu:2,tmpspace:10G"}, 2),
        ({"gres": "tmpspace:10G,gpu:a100:1(S:0),gpu:v100:2"}, 3),
        ({"gres": "tmpspace:4"}, 0),
        ({"gres": "gpu:2", "nodes": "1-2"}, 4),
        ({"gres": "gpu:1g.10gb:1"}, 1),
        ({"gres": "shard:4"}, 1),
        ({"gpus": 2}, 2),
        ({"gpus": "a100:1,v100:2"}, 3),
        ({"gpus-per-node": "a100:2", "nodes": 3}, 6),
        ({"gpus-per-task": 2, "ntasks": 3}, 6),
        ({"gpus-per-task": 1, "nodes": 2, "ntasks-per-node": 2}, 4),
        ({"tres-per-task": "cpu:4,gres/gpu:a100:2", "ntasks": 2}, 4),
        ({"tres-per-node": "gres:gpu:2", "nodes": 2}, 4),
        ({"tres-per-job": "gres/gpu=3"}, 3),
    ],
    ids=str,
)
def test_gpus_are_counted_however_they_are_asked_for(options: dict, gpus: int) -> None:
    assert count_gpus(options) == gpus


def test_a_value_may_stand_behind_a_blank() -> None:
    assert parse_options(["--nice", "5", "--mem=1G", "--exclusive", "--nodes", "1", "--begin=now"]) == {
        "nice": "5", "mem": "1G", "exclusive": True, "nodes": "1", "begin": "now",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "layers", "expected"),
    [
        (["--mem-per-cpu=2G"], {"all": {"mem": "8G"}, "train": {"mem": "16G"}}, {"mem-per-cpu": "2G"}),
        (["--mem=2G"], {"train": {"mem_per_gpu": "16G"}}, {"mem": "2G"}),
        ([], {"all": {"mem": "8G"}, "train": {"mem-per-cpu": "1G"}}, {"mem-per-cpu": "1G"}),
        (["--gpus=1"], {"all": {"gres": "gpu:1"}}, {"gpus": "1"}),
        (["--gpus=1"], {"train": {"gres": "gpu:a100:1,tmpspace:10G"}}, {"gpus": "1", "gres": "tmpspace:10G"}),
        (["--gres=gpu:v100:1"], {"train": {"gpus-per-task": 1}}, {"gres": "gpu:v100:1"}),
        (["--gres=tmpspace:1G"], {"train": {"gpus": 1}}, {"gpus": 1, "gres": "tmpspace:1G"}),
    ],
    ids=str,
)
def test_an_option_replaces_those_that_say_the_same_in_other_words(arguments, layers, expected) -> None:
    assert with_options(arguments, **layers) == expected


@pytest.mark.parametrize(
    ("arguments", "layers", "words"),
    [
        ([], {"train": {"mem": "8G", "mem-per-cpu": "1G"}}, ["train", "mem and mem-per-cpu"]),
        ([], {"all": {"gpus": 1, "gres": "gpu:1"}}, ["all", "gpus and gres"]),
        (["--gpus=2"], {}, ["train", "2 GPUs"]),
        ([], {"evaluate": {"gres": "gpu:2"}}, ["evaluate", "2 GPUs"]),
        (["--nodes=2"], {}, ["train", "2 nodes"]),
        (["5", "--nice"], {}, ["5"]),
        (["--array=1-3"], {}, ["--array"]),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_the_launch(arguments: list[str], layers: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        with_options(arguments, **layers)
    assert all(word in str(error.value) for word in words)


def test_settings_of_sbatch_in_the_environment_are_named(monkeypatch, capsys) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "other")
    with_options([])
    assert "SBATCH_PARTITION: left out" in capsys.readouterr().err


# An sbatch with pyxis, which adds the option; unquoted, what comes after # would be a comment.
SBATCH = """#!/bin/bash
grep --quiet "^#SBATCH --container-image='docker://a#b:1'" "${@: -1}"
"""


def test_an_option_of_pyxis_is_taken_where_sbatch_has_it(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "sbatch").write_text(SBATCH)
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert with_options(["--container-image=docker://a#b:1"]) == {"container-image": "docker://a#b:1"}
