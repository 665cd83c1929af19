"""What may be added to an experiment: more of the same, and nothing that changes what is there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from anml.atomic import write_json, write_text
from anml.config.load import dump_config, load_train_config
from anml.config.profile import PROFILES, load_profile
from anml.config.training import AddedCheckpoint, TrainConfig
from anml.config.yaml import source_of
from anml.errors import ConfigError
from anml.evaluate.sweep import stage_trajectories, sweep_trajectories
from anml.experiment import Experiment
from anml.jobs.addition import added_jobs, named_checkpoints, with_more
from anml.jobs.launch import Launch
from anml.jobs.plan import make_plan
from anml.report.labels import sentence

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


@pytest.mark.parametrize("flavors", ["{more: {classes: [3]}}", "[{more: {classes: [3]}}]"])
def test_flavors_come_from_a_file_as_a_training_config_has_them(before: Launch, tmp_path: Path, flavors: str) -> None:
    write_text(tmp_path / "more.yml", f"eval: {flavors}\n")
    after = with_more(before, load_train_config(before.experiment.config_file, more=tmp_path / "more.yml").config, ())
    added = [job.name for job in added_jobs(before, after).jobs]
    assert added == ["more-step-000050-seed-1", "more-step-000050-seed-2", "report"]


def alone(folder: Path, **changes: Any) -> Launch:
    """An experiment whose only training is named by nothing."""
    keys = {"dataset": "glyphs", "model": "sanml", "epochs": 100, "eval": {"olft": {"classes": 5}}} | changes
    config = load_train_config(source_of(keys, "config")).config
    write_text(folder / "config.yml", dump_config(config))
    return Launch(config, Experiment(folder), load_profile("local", PROFILES), "disabled", make_plan(config))


def test_seeds_and_values_come_beside_a_training_that_was_alone_and_keeps_its_name(tmp_path: Path) -> None:
    before = alone(tmp_path)
    once = with_more(before, grown(before, "seeds=[1, 2]"), ())
    names = ["train-step-000100-seed-2", "olft-step-000100-seed-2", "report"]
    assert [job.name for job in added_jobs(before, once).jobs] == names
    write_text(tmp_path / "config.yml", dump_config(once.config))
    twice = with_more(once, grown(once, "seeds=[1, 2, 3]", "vary.outer_lr=[0.001, 0.003]"), ())
    assert [training.tag for training in twice.config.trainings] == [
        "", "seed-2", "seed-3", "outer-lr-0.003", "outer-lr-0.003-seed-2", "outer-lr-0.003-seed-3",
    ]  # fmt: skip
    assert {job.name for job in once.plan.jobs} < {job.name for job in twice.plan.jobs}
    # Each job finds its training by its own flags.
    write_text(tmp_path / "config.yml", dump_config(twice.config))
    config = grown(twice)
    for training in config.trainings:
        kind, value = training.flags() or ("", "")
        seed, tag = int(value) if kind == "--seed" else None, value if kind == "--training" else None
        assert config.training_id(seed=seed, tag=tag) == training
    assert "seeds 1, 2 and 3, outer_lr 0.001 and 0.003" in sentence(config)


def test_a_later_end_is_a_segment_more_and_the_former_end_stays(tmp_path: Path) -> None:
    before = alone(tmp_path)
    after = with_more(before, grown(before, "epochs=300"), ())
    assert [(job.name, job.after) for job in added_jobs(before, after).jobs[:-1]] == [
        ("train-step-000300", ("train-step-000100",)), ("olft-step-000300", ("train-step-000300",)),
    ]  # fmt: skip


def test_nothing_comes_beside_trainings_that_one_job_does(tmp_path: Path) -> None:
    before = alone(tmp_path, seeds=[1, 2], train_together=True)
    with pytest.raises(ConfigError, match="train_together"):
        with_more(before, grown(before, "seeds=[1, 2, 3]"), ())


def test_a_larger_sweep_is_a_job_of_what_is_missing_for_each_checkpoint(before: Launch) -> None:
    once = with_more(before, grown(before, "eval.olft.runs=12", "eval.olft.classes=[5, 8]"), ())
    (before.experiment.root / "config.yml").write_text(dump_config(once.config))
    twice = with_more(once, grown(before, "eval.olft.lr=[0.001, 0.01]"), ())
    added = added_jobs(once, twice).jobs
    assert [job.name for job in added[:-1]] == [f"olft-step-000050-seed-{seed}-more-2" for seed in (1, 2)]
    assert added[0].after == ("train-step-000050-seed-1",)
    parts = [set(stage_trajectories(twice.config.eval["olft"], stage)) for stage in range(3)]
    assert [len(part) for part in parts] == [10, 2 * 12 - 10, 2 * 12]
    assert set.union(*parts) == set(sweep_trajectories(twice.config.eval["olft"]))


def test_a_checkpoint_of_another_training_is_evaluated_under_a_name_of_its_own(before: Launch, tmp_path: Path) -> None:
    other = tmp_path / "p" / "other"
    card = {"display_name": "sanml", "step": 30}
    for folder in (other / "checkpoints/step-000030", tmp_path / "shared" / "oml"):
        write_json(folder / "model.json", card)
    write_text(other / "config.yml", "")
    pth = tmp_path / "ANML-25000.pth"
    pth.touch()
    words = [str(other / "checkpoints/step-000030"), f"best={tmp_path / 'shared/oml'}", str(pth)]
    named = named_checkpoints(before.config, words)
    assert {name: added["step"] for name, added in named.items()} == {"sanml-other": 30, "best": 30, "ANML": 25000}
    after = with_more(before, before.config.model_copy(update={"eval_checkpoints": _added(named)}), ())
    jobs = added_jobs(before, after).jobs[:-1]
    assert [job.name for job in jobs] == [
        "olft-step-000030-sanml-other", "olft-step-000030-best", "olft-step-025000-ANML",
    ]  # fmt: skip
    assert {job.after for job in jobs} == {()}
    with pytest.raises(ConfigError, match="best is there"):
        named_checkpoints(after.config, [f"best={pth}"])


def _added(named: Mapping[str, Mapping[str, Any]]) -> dict[str, AddedCheckpoint]:
    return {name: AddedCheckpoint(**added) for name, added in named.items()}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("eval.olft.classes=[6]", "classes may grow"),
        ("eval.olft.opt_params=all", "eval.olft: this flavor is there with other settings"),
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
