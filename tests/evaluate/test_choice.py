"""What is chosen on held-out classes, and that the choice is scored as the whole sweep would score it."""

from pathlib import Path
from typing import Any

import pytest

from anml.checkpoints import ModelCard
from anml.config.load import load_train_config
from anml.errors import JobError
from anml.evaluate.choice import Chosen, choose, chosen_trajectories
from anml.evaluate.sweep import LoadedModel, run_sweep, sweep_trajectories
from anml.experiment import Experiment
from anml.results import ResultRow, write_results

CONFIG = """
dataset: glyphs
model: sanml
train_classes: 900
epochs: 100
eval_steps: [50, 100]
seeds: [1, 2]
eval: {olft: {classes: 60, runs: 2, lr: [0.1, 0.01], eval_freq: [10, 20], choose: {on: validation, by: BY}}}
"""
# Accuracy by step, rate and number of held-out classes; the first run of seed 1 says otherwise.
HELD_OUT = {
    (50, 0.1): {10: 0.9, 60: 0.3}, (50, 0.01): {10: 0.7, 60: 0.6},
    (100, 0.1): {10: 0.8, 60: 0.4}, (100, 0.01): {10: 0.9, 60: 0.5},
}  # fmt: skip


def held_out_rows(step: int) -> list[ResultRow]:
    return [
        ResultRow(
            "olft-validation", "sequential", "sanml", "glyphs-validation", step, 60, 15, 5, lr, seed, run, 1,
            15 * count, count, 1.0, 1 - accuracy if (seed, run) == (1, 0) else accuracy,
        )
        for (of_step, lr), accuracies in HELD_OUT.items()
        for count, accuracy in accuracies.items()
        for seed in (1, 2)
        for run in range(3)
        if of_step == step
    ]  # fmt: skip


def chosen_of(folder: Path, by: str, step: int, written: tuple[int, ...] = (50, 100)) -> Chosen:
    (folder / "config.yml").write_text(CONFIG.replace("BY", by))
    config = load_train_config(folder / "config.yml").config
    for evaluated in written:
        write_results(folder / "results" / f"olft-validation-step-{evaluated:06d}.csv", held_out_rows(evaluated), [])
    return choose(Experiment(folder), config, "olft", step, config.trainings[0])


@pytest.mark.parametrize(
    ("by", "step", "chosen"),
    [
        ("[lr]", 50, Chosen(50, {(15, 5): {10: 0.1, 60: 0.01}})),
        ("[lr]", 100, Chosen(100, {(15, 5): {10: 0.01, 60: 0.01}})),
        ("[lr, checkpoint]", 100, Chosen(50, {(15, 5): {10: 0.1, 60: 0.01}})),
    ],
)
def test_each_number_of_classes_has_its_rate_and_all_have_one_checkpoint(
    tmp_path: Path, by: str, step: int, chosen: Chosen
) -> None:
    assert chosen_of(tmp_path, by, step) == chosen


def test_a_choice_among_results_that_are_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="olft-validation, which olft chooses from, lacks results"):
        chosen_of(tmp_path, "[lr, checkpoint]", 100, written=(50,))


@pytest.mark.parametrize("engine", ["reference", "lanes"])
def test_a_choice_is_scored_as_in_the_whole_sweep_and_no_further_than_needed(
    model: Any, data: Any, make_config: Any, engine: str
) -> None:
    config = make_config(classes=5, lr=[0.001, 0.01], runs=2, eval_freq=1, engine=engine)
    card = ModelCard("sanml", {}, (1, 28, 28), "sanml", "omniglot", "meta", step=1, seed=1)
    loaded = LoadedModel(model, card, data, config)
    sizes = (config.train_examples[0], config.test_examples[0])
    # Two and three classes at the rate for two, more at the rate for four.
    trajectories = chosen_trajectories(config, Chosen(1, {sizes: {2: 0.01, 4: 0.001}}))
    whole = [row for result in run_sweep(loaded, "a", sweep_trajectories(config)) for row in result.rows]
    rows = [row for result in run_sweep(loaded, "a", trajectories) for row in result.rows]
    assert {(row.classes_trained, row.lr) for row in rows} == {(1, 0.01), (2, 0.01), (3, 0.01), (4, 0.001), (5, 0.001)}
    assert all(row in whole for row in rows)
    assert [trajectory.end for trajectory in trajectories] == [3, 5, 3, 5]
