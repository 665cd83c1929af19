"""What is chosen on held-out classes, and that the choice is scored as the whole sweep would score it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anml.checkpoints import ModelCard
from anml.cli.main import main
from anml.config.load import load_train_config
from anml.errors import JobError
from anml.evaluate.choice import Chosen, choose, chosen_trajectories, more_runs
from anml.evaluate.job import blocks_of_sweep, finish
from anml.evaluate.sweep import LoadedModel, Trajectory, run_sweep, sweep_trajectories
from anml.experiment import Experiment
from anml.report.tables import best_rates, rate_results, read_stopped
from anml.results import FinishedTrajectories, ResultRow, read_results, write_results

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


def test_a_choice_among_a_part_of_the_rates_is_refused(tmp_path: Path) -> None:
    """As where a task of the sweep failed: the rates that it had might be better."""
    chosen_of(tmp_path, "[lr]", 50)
    rows = [row for row in held_out_rows(50) if (row.lr, row.train_seed) != (0.01, 2)]
    write_results(tmp_path / "results/olft-validation-step-000050.csv", rows, [])
    config = load_train_config(tmp_path / "config.yml").config
    with pytest.raises(JobError, match="olft-validation, after 50 episodes, seed 2: 3 of 4 trajectories"):
        choose(Experiment(tmp_path), config, "olft", 50, config.trainings[0])


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


def test_runs_are_added_at_the_best_rates_until_the_interval_is_narrow(make_config: Any) -> None:
    accuracies = {(0.1, 5): (0.8, 0.9), (0.01, 5): (0.7, 0.7), (0.1, 9): (0.1, 0.1), (0.01, 9): (0.60, 0.62)}
    rows = [
        ResultRow("a", "sequential", "m", "d", 1, 9, 10, 5, lr, 1, run, 1, 10 * count, count, 1.0, accuracy)
        for (lr, count), by_run in accuracies.items()
        for run, accuracy in enumerate(by_run)
    ]
    config = make_config(classes=9, lr=[0.1, 0.01], runs=2, until={"half_width": 0.1, "at_most": 30})
    # By hand: t(1) = 12.706, s = 0.01414, so that (t s / 0.1)^2 = 3.2 runs are needed.
    trajectories, (line,) = more_runs(config, rows)
    assert [(t.run, t.lr, t.counts) for t in trajectories] == [
        (2, 0.1, (5,)), (2, 0.01, (9,)), (3, 0.1, (5,)), (3, 0.01, (9,)),
    ]  # fmt: skip
    assert line == "9 classes: ± 0.1271 after 2 runs; ± 0.1 takes 4 runs"
    narrower = make_config(classes=9, runs=2, until={"half_width": 0.01, "at_most": 6})
    trajectories, (line,) = more_runs(narrower, rows)
    assert max(t.run for t in trajectories) == 5
    assert line.endswith("takes 323 runs, at most 6 are made")


TINY = """
dataset: glyphs
train_classes: 8
num_batches: 2
remember_size: 4
epochs: 1
model: sanml
model_args: {rln_chs: 3, num_classes: 8}
eval:
  olft: &all {classes: 8, train_examples: 10, test_examples: 5, runs: 4, lr: [0.001, 0.01], eval_freq: 4}
  longer: {<<: *all, until: {half_width: 0.001, at_most: 6}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    root = tmp_path_factory.mktemp("trained")
    (root / "config.yml").write_text(TINY)
    assert main(["train", "--run-dir", str(root)]) == 0
    return Experiment(root)


def evaluated(experiment: Experiment, flavor: str) -> list[ResultRow]:
    """Run the job of a flavor; return its results."""
    assert main(["evaluate", "--run-dir", str(experiment.root), "--flavor", flavor, "--step", "1"]) == 0
    return read_results([experiment.result(flavor, 1)])


def test_a_job_adds_runs_at_its_best_rate(trained: Experiment) -> None:
    rows = [row for row in evaluated(trained, "longer") if row.classes_trained == 8]
    assert {row.first_runs for row in rows} == {4}
    assert [row.run for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5]
    (best,) = best_rates(rate_results(rows))
    assert (best.runs, best.lr) == (6, rows[-1].lr)


def test_a_race_leaves_out_what_cannot_be_best_and_says_why(
    model: Any, data: Any, make_config: Any, tmp_path: Path
) -> None:
    config = make_config(lr=[1e-9, 0.03], runs=6, eval_freq=[6], race=True, engine="reference")
    card = ModelCard("sanml", {}, (1, 28, 28), "sanml", "omniglot", "meta", step=1, seed=1)
    loaded, context = LoadedModel(model, card, data, config), SimpleNamespace(progress=lambda *_: None, stop=bool)

    def raced() -> tuple[list[Trajectory], FinishedTrajectories]:
        finished, planned = FinishedTrajectories(tmp_path / "results/a.partial.jsonl"), list[Trajectory]()
        for trajectories in blocks_of_sweep(config, None, finished, sweep_trajectories(config)):
            planned += trajectories
            assert finish(context, loaded, "a", planned, finished)  # type: ignore[arg-type]
        return planned, finished

    planned, finished = raced()
    *_, stopped = read_stopped(Experiment(tmp_path))
    assert (stopped["job"], stopped["lr"], stopped["goes_to"], stopped["best"]) == ("a", 1e-9, 0, 0.03)
    assert [t.run for t in planned if t.lr == 1e-9] == list(range(stopped["runs"]))
    assert [t.run for t in planned if t.lr == 0.03] == list(range(6))
    # A job that continues decides as it did, whatever later blocks have shown by then.
    assert raced()[0] == planned
    rows = [row for result in finished.results.values() for row in result.rows]
    whole = [row for result in run_sweep(loaded, "a", sweep_trajectories(config)) for row in result.rows]
    assert all(row in whole for row in rows)
