"""What is measured besides accuracy, in reports and comparisons: numbers that can be worked out by hand."""

from base64 import b64encode
from itertools import permutations
from typing import Any

import pandas as pd
import pytest

from anml.report.comparison.tables import comparison_tables, measures_of
from anml.report.measures import (
    LATER_NUMBERS,
    NUMBERS,
    cka_frame,
    cka_matrices,
    confusion_matrix,
    read_measured,
    worst_confusions,
)
from anml.report.write import read_report
from anml.results import CONFUSIONS, PICTURES, REPRESENTATION, write_table
from tests.report.conftest import contenders_of
from tests.report.test_page import page_of, words

# Position, answer and count, of two runs of 20 classes; classes 5 and 7 of the data set are at 0 and 1 in both.
ANSWERS = {0: [(0, 0, 3), (0, 1, 2), (1, 0, 1), (1, -1, 4)], 1: [(0, 1, 5), (1, 1, 2), (1, 2, 1), (1, 0, 2)]}
LABELS = {-1: -1, 0: 5, 1: 7, 2: 9}


def write_measures(builder, step: int = 600, active: float = 0.2, similarities: tuple[float, float] = (0.6, 0.8)):
    """Write what flavor olft measured: confusions at the rates 0.001 (of ANSWERS) and 0.01, and a representation."""
    of = {"flavor": "olft", "model": builder.config.display_name, "dataset": "glyphs", "checkpoint_step": step}
    of |= {"train_seed": 1, "classes": 20, "train_examples": 15, "test_examples": 5}
    path = builder.experiment.result("olft", step)
    rows = []
    for run, answers in ANSWERS.items():
        for position, predicted, count in answers:
            row = of | {"run": run, "position": position, "predicted": predicted, "answers": count, "lr": 0.001}
            row |= {"label": LABELS[position], "predicted_label": LABELS[predicted]}
            rows += [row, row | {"lr": 0.01, "answers": 1}]
    write_table(path.with_suffix(CONFUSIONS), rows)
    write_table(path.with_suffix(PICTURES), [{"label": label, "picture": b"png%d" % label} for label in (5, 7, 9)])
    both = {"nonzero": 0.3, "always_zero": 0.1} if step == 600 else {}  # An earlier version has not written these.
    first = both | {"run": 0, "active": active, "effective_rank": 40.0, "similarities": similarities}
    second = both | {"run": 1, "active": active + 0.01, "effective_rank": 41.0, "similarities": ()}
    maps = ([float(number**2 % 7) for number in range(100)], ())
    runs = [
        row | {"dead": 0.5, "map": points} | ({"tsne": points} if step == 600 else {})
        for row, points in zip((first, second), maps, strict=True)
    ]
    write_table(path.with_suffix(REPRESENTATION), [of | row for row in runs])


@pytest.fixture
def measured(build):
    builder = build().results().jobs()
    write_measures(builder)
    write_measures(builder, 200, similarities=(1.0, 0.0))
    return builder


def test_later_is_the_share_of_wrong_answers_that_name_a_later_class(measured):
    report = read_report(measured.experiment)
    [item] = [item for item in report.confusions if item.result.checkpoint_step == 600]
    assert item.result.lr == 0.001
    # Run 0: 2 of 3; run 1: 5 and 1 of 8. What names no class of the run is left out.
    assert item.runs["later"] == {(1, 0): pytest.approx(2 / 3), (1, 1): pytest.approx(6 / 8)}


def test_a_sweep_that_was_cut_differently_later_counts_once(measured):
    path = measured.experiment.result("olft", 600).with_suffix(CONFUSIONS)
    rows: Any = pd.read_parquet(path)
    write_table(path.with_name(f"part-{path.name}"), rows[rows["run"] == 0].to_dict("records"))
    found: Any = read_measured(measured.experiment, CONFUSIONS, read_report(measured.experiment).summary)
    assert [item.rows.groupby("run")["answers"].sum().to_dict() for item in found] == [{0: 10, 1: 10}] * 2


def test_a_matrix_takes_neighbours_in_order_together():
    rows = pd.DataFrame(
        [(0, 0, 3), (1, 0, 1), (1, 3, 4), (2, 2, 5), (3, -1, 9)], columns=["position", "predicted", "answers"]
    )
    assert confusion_matrix(rows, classes=4, cells=2).tolist() == [[0.5, 0.5], [0, 1]]
    assert confusion_matrix(rows, classes=4, cells=9)[1].tolist() == [0.2, 0, 0, 0.8]


def test_the_worst_confusions_are_counted_over_runs_and_shown(measured):
    [item, _] = read_measured(measured.experiment, CONFUSIONS, read_report(measured.experiment).summary)
    first, second, *_ = worst_confusions(measured.experiment, item.rows)
    assert (first.label, first.predicted_label, first.answers, first.of) == (5, 7, 7, 10)
    assert (second.label, second.predicted_label, second.answers, second.of) == (7, 5, 3, 10)
    assert first.picture == b64encode(b"png5").decode()


def test_checkpoints_are_compared_by_the_product_of_their_similarities(measured):
    table = cka_frame(read_report(measured.experiment).representations)
    assert table["cka"].tolist() == pytest.approx([0.6])
    assert set(table[["checkpoint_step", "checkpoint_step_2"]].iloc[0]) == {200, 600}
    [(checkpoints, values)] = cka_matrices(table)
    assert [step for _, step, _ in checkpoints] == [200, 600]
    assert [values[one, other] for one, other in permutations(checkpoints)] == pytest.approx([0.6, 0.6])


def test_a_page_and_its_tables_have_what_was_measured(measured):
    source = page_of(measured)
    page = words(source)
    assert "0.205 ± 0.064" in page  # The mean of 0.20 and 0.21; Student's t of one degree is 12.7.
    assert "in 7 of 10 answers" in page
    assert b64encode(b"png5").decode() in source
    folder = measured.experiment.report
    assert {"confusions.png", "representation.png", "representation-tsne.png"} <= {
        path.name for path in folder.glob("*.png")
    }
    table = pd.read_csv(folder / "representation.csv")
    assert table["effective_rank"].tolist() == [40.5, 40.5]


def test_files_from_before_a_number_are_shown_without_it(measured):
    page = words(page_of(measured))
    assert "effective rank nonzero always zero runs" in page
    items = read_report(measured.experiment).representations
    by_step = {item.result.checkpoint_step: tuple(item.runs) for item in items}
    assert by_step == {200: NUMBERS, 600: NUMBERS + LATER_NUMBERS}


@pytest.mark.usefixtures("no_figures")
def test_experiments_are_compared_run_by_run(make):
    one, two = make("ANML").results(), make("SANML").results()
    write_measures(one)
    write_measures(two, active=0.3, similarities=(0.0, 1.0))
    [table] = comparison_tables(contenders_of(one, two))
    rows = {(row.evaluation, row.name): row for row in measures_of(table)}
    assert rows["olft", "active"].values[1].mean == pytest.approx(0.305)
    assert rows["olft", "active"].differences[1].mean == pytest.approx(0.1)
    # Each run differs by the same: the interval of the difference is far narrower than those of the means.
    assert rows["olft", "active"].differences[1].half_width == pytest.approx(0, abs=1e-9)
    assert {index: value.mean for index, value in rows["olft", "cka"].values.items()} == {1: pytest.approx(0.8)}
    accuracy = rows["no-sgd", "accuracy"]
    assert accuracy.differences[1].mean == pytest.approx(accuracy.values[1].mean - accuracy.values[0].mean)


@pytest.mark.usefixtures("no_figures")
def test_representations_of_different_images_are_not_compared(make):
    one, two = make("ANML").results(), make("SANML").results()
    for builder in (one, two):
        write_measures(builder)
    path = two.experiment.config_file
    path.write_text(path.read_text().replace("    seed: 1\n", "    seed: 7\n"))
    [table] = comparison_tables(contenders_of(one, two))
    assert "cka" not in {row.name for row in measures_of(table)}
