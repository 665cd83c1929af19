"""The metrics of docs/metrics.md, on numbers that can be worked out by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anml.experiment import Experiment
from anml.report.forgetting import by_class_frame, metrics, read_forgetting, scored_throughout
from anml.report.measure_figures import draw_forgetting
from anml.report.measures import measured_frame
from anml.report.tables import best_rates, rate_results
from anml.results import ResultRow, read_results, write_results

# Three scorings of four classes; NaN and 9 stand where a class is not learned yet.
SCORED = np.array([[1.0, 0.8, 9, np.nan], [0.5, 0.9, 0.6, 9], [0.6, 0.7, 0.2, 1.0]])
LEARNED = np.array([2, 3, 4])


def test_metrics_are_those_worked_out_by_hand() -> None:
    found = metrics(SCORED, LEARNED)
    assert found.average == pytest.approx((0.9 + 2 / 3 + 0.625) / 3)
    assert found.area == pytest.approx(((0.9 + 2 / 3) / 2 + (2 / 3 + 0.625) / 2) / 2)
    # Each from its best: 1.0 to 0.6, 0.9 to 0.7, 0.6 to 0.2. The last class has been scored once.
    assert found.forgetting == pytest.approx((0.4 + 0.2 + 0.4) / 3)
    # Each from its first: 1.0 to 0.6, 0.8 to 0.7, 0.6 to 0.2.
    assert found.backward_transfer == pytest.approx((-0.4 - 0.1 - 0.4) / 3)
    assert found.by_order.tolist() == [0.6, 0.7, 0.2, 1.0]
    assert found.lost.tolist() == pytest.approx([0.4, 0.2, 0.4, math.nan], nan_ok=True)
    assert found.grid[0].tolist() == pytest.approx([1.0, 0.8, math.nan, math.nan], nan_ok=True)


def write_sweep(experiment: Experiment, flavor: str = "olft", seed: int = 1) -> None:
    """Two runs at two rates; 0.01 is the better rate, and its second run forgets nothing."""
    rows, classes = [], []
    for lr, run in [(0.01, 0), (0.01, 1), (0.1, 0), (0.1, 1)]:
        for step, (scored, learned) in enumerate(zip(SCORED, LEARNED, strict=True)):
            accuracies = np.full(4, 0.7) if (lr, run) == (0.01, 1) else scored * (1 if lr == 0.01 else 0.1)
            mean = float(accuracies[:learned].mean())
            sizes: dict[str, Any] = {"classes": 4, "train_examples": 15, "test_examples": 5}
            rows.append(
                ResultRow(
                    flavor, "sequential", "m", "glyphs", 7, **sizes, lr=lr, train_seed=seed, run=run, epoch=1,
                    step=step, classes_trained=int(learned), train_acc=1.0, test_acc=mean,
                )
            )  # fmt: skip
            classes += [
                (4, 15, 5, lr, run, step, int(learned), place, 1.0, float(accuracies[place])) for place in range(4)
            ]
    write_results(experiment.result(flavor, 7, f"seed-{seed}"), rows, classes)


def test_a_report_has_them_at_the_best_rate_over_runs(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path)
    write_sweep(experiment)
    write_sweep(experiment, "other")
    (experiment.results / f"{experiment.result('other', 7, 'seed-1').stem}.parquet").write_text("damaged")
    rows = read_results(sorted(experiment.results.glob("*.csv")))
    [item] = read_forgetting(experiment, best_rates(rate_results(rows)))
    assert (item.result.flavor, item.result.lr, item.scorings, item.mean("forgetting").runs) == ("olft", 0.01, 3, 2)
    assert item.mean("forgetting").mean == pytest.approx((1 / 3 + 0) / 2)
    assert item.by_order.tolist() == pytest.approx([0.65, 0.7, 0.45, 0.85])
    classes = by_class_frame([item])
    assert classes["forgetting"].tolist() == pytest.approx([0.2, 0.1, 0.2, math.nan], nan_ok=True)
    assert (classes["position"].tolist(), set(classes["flavor"])) == ([0, 1, 2, 3], {"olft"})
    table = measured_frame([item])
    assert table.loc[0, "forgetting"] == item.mean("forgetting").mean
    assert not math.isnan(table.loc[0, "forgetting_ci95"])


def test_a_map_has_a_cell_for_each_class_at_each_scoring(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path)
    write_sweep(experiment)
    rows = read_results(sorted(experiment.results.glob("*.csv")))
    figure = draw_forgetting(read_forgetting(experiment, best_rates(rate_results(rows))))
    assert figure is not None
    [mesh] = figure.axes[0].collections
    # Means of two runs, the second of which stays at 0.7.
    expected = [[0.85, 0.75, math.nan, math.nan], [0.6, 0.8, 0.65, math.nan], [0.65, 0.7, 0.45, 0.85]]
    shown: Any = mesh.get_array()
    assert np.ma.filled(shown, np.nan).tolist() == [pytest.approx(row, nan_ok=True) for row in expected]


def test_trainings_are_pooled(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path)
    for seed in (1, 2, 3):
        write_sweep(experiment, seed=seed)
    rows = read_results(sorted(experiment.results.glob("*.csv")))
    [item] = read_forgetting(experiment, best_rates(rate_results(rows)))
    average = item.mean("average")
    assert (average.runs, average.seeds, average.over) == (6, 3, "seeds")


def test_what_is_scored_once_can_have_forgotten_nothing(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path)
    write_sweep(experiment)
    path = experiment.result("olft", 7, "seed-1")
    table = pd.read_parquet(path.with_suffix(".parquet"))
    table[table["classes_trained"] == 4].to_parquet(path.with_suffix(".parquet"))
    assert read_forgetting(experiment, best_rates(rate_results(read_results([path])))) == []


def test_models_that_share_a_results_file_are_told_apart(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path)
    write_sweep(experiment, "600")
    path = experiment.result("600", 7, "seed-1")
    rows, table = read_results([path]), pd.read_parquet(path.with_suffix(".parquet"))
    others = [replace(row, model="n", checkpoint_step=9) for row in rows]
    origins = [("m", 7, 1, "glyphs")] * len(table) + [("n", 9, 1, "glyphs")] * len(table)
    of_others = table.assign(test_acc=0.5)
    write_results(path, rows + others, [*table.to_numpy().tolist(), *of_others.to_numpy().tolist()], origins)
    first, second = read_forgetting(experiment, best_rates(rate_results(rows + others)))
    assert (first.result.model, first.mean("forgetting").mean) == ("m", pytest.approx((1 / 3 + 0) / 2))
    assert (second.result.model, second.mean("forgetting").mean) == ("n", 0.0)


def test_a_rate_chosen_for_many_classes_alone_has_no_metrics(tmp_path: Path) -> None:
    write_sweep(Experiment(tmp_path))
    rows = read_results([Experiment(tmp_path).result("olft", 7, "seed-1")])
    summary = best_rates(rate_results(rows))
    assert scored_throughout(summary, rows) == summary
    assert scored_throughout(summary, [row for row in rows if row.lr == 0.1 or row.classes_trained > 2]) == []
