"""Results whose rate was chosen on held-out classes, beside the best of all rates on the same classes."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from anml.report.tables import finals, learning_curve, missing_results
from anml.report.write import read_report, write_report
from anml.results import ResultRow

from .conftest import Builder, lines, start_experiment

CONFIG = """
dataset: glyphs
model: anml
model_name: ANML
train_classes: 900
epochs: 600
eval:
  - olft: &sweep {classes: 20, runs: 2, lr: [0.001, 0.01], eval_freq: [5]}
  - chosen: {<<: *sweep, choose: {on: validation, by: [lr]}}
"""


@pytest.fixture
def built(tmp_path, row: Callable[..., ResultRow]) -> Builder:
    """The rate 0.01 is chosen for 5 classes and 0.001 for 20, where 0.01 would have been better here."""
    builder = start_experiment(tmp_path / "p" / "g", CONFIG)
    accuracies = {(0.001, 5): 0.7, (0.001, 20): 0.5, (0.01, 5): 0.8, (0.01, 20): 0.6}
    rows = [
        row(lr=lr, run=run, classes_trained=count, step=15 * count, test_acc=accuracy)
        for (lr, count), accuracy in accuracies.items()
        for run in (0, 1)
    ]
    chosen = [row for row in rows if (row.lr, row.classes_trained) in ((0.01, 5), (0.001, 20))]
    builder.write("olft-step-000600", rows)
    return builder.write("chosen-step-000600", [replace(row, flavor="chosen") for row in chosen]).jobs()


def test_a_choice_is_shown_first_with_how_much_the_best_here_flatters(built: Builder, no_figures: None) -> None:
    write_report(built.experiment)
    table = lines(built.experiment.report / "chosen.csv")
    shown = [(row["classes"], row["lr"], row["test_acc"], row["best_here_lr"], row["flatters"]) for row in table]
    assert shown == [("5", "0.01", "0.8", "0.01", "0"), ("20", "0.001", "0.5", "0.01", "0.1")]
    text = (built.experiment.report / "accuracy.txt").read_text()
    assert text.startswith("Chosen on held-out classes")
    assert "+0.100" in text


def test_a_trajectory_that_ends_early_is_no_result_of_all_classes(built: Builder) -> None:
    report = read_report(built.experiment)
    assert {row.lr for row in finals(report.rows) if row.flavor == "chosen"} == {0.001}
    (best,) = [result for result in report.summary if result.flavor == "chosen"]
    assert (best.lr, best.test_acc) == (0.001, 0.5)
    assert [point.test_acc for point in learning_curve(report.rows, [best])] == [0.8, 0.5]
    assert report.config is not None
    assert missing_results(report.config, report.rows) == ["chosen-validation, after 600 episodes: no results"]
