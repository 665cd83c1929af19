"""What may be added to an experiment: more of the same, and nothing that changes what is there."""

from pathlib import Path

import pytest

from anml.config.load import load_train_config
from anml.config.profile import PROFILES, load_profile
from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.addition import added_jobs, with_more
from anml.jobs.launch import Launch
from anml.jobs.plan import make_plan

BASE = """
dataset: glyphs
model: sanml
epochs: 100
eval_steps: [50]
seeds: [1, 2]
eval: {olft: {classes: [5]}}
"""


@pytest.fixture
def before(tmp_path: Path) -> Launch:
    """An experiment as it was launched; `grown` reads its config with changes."""
    (tmp_path / "config.yml").write_text(BASE)
    config = load_train_config(tmp_path / "config.yml").config
    return Launch(config, Experiment(tmp_path), load_profile("local", PROFILES), "disabled", make_plan(config))


def grown(before: Launch, *changes: str) -> TrainConfig:
    return load_train_config(before.experiment.config_file, changes).config


def test_only_what_is_new_is_added(before: Launch) -> None:
    after = with_more(before, grown(before, "seeds=[1, 2, 3]", "eval_steps=[50, 100]"), ())
    assert [job.name for job in added_jobs(before, after).jobs] == [
        *(f"{name}-step-000100-seed-{seed}" for seed in (1, 2) for name in ("train", "olft")),
        *(f"{name}-step-{step:06d}-seed-3" for step in (50, 100) for name in ("train", "olft")),
        "report",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("outer_lr=0.1", "outer_lr"),
        ("eval.olft.runs=3", "eval.olft"),
        ("seeds=[2]", "train-step-000050-seed-1"),
        ("eval_steps=[20, 50]", "train-step-000050-seed-1"),
        ("seeds=[1, 2]", "adds nothing"),
    ],
)
def test_what_changes_or_adds_nothing_is_refused(before: Launch, change: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        with_more(before, grown(before, change), ())
