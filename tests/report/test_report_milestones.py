"""Accuracy after so many classes, each at its own best rate."""

import pytest

from anml.report.curves import as_table, best_by_classes


def test_every_number_of_classes_has_a_best_rate_of_its_own(row):
    rows = []
    for classes, rate, accuracy in [(5, 0.01, 0.9), (5, 0.001, 0.8), (20, 0.01, 0.2), (20, 0.001, 0.6)]:
        at = {"lr": rate, "step": classes * 15, "classes_trained": classes, "test_acc": accuracy}
        rows += [row(run=run, **at) for run in (0, 1)]
    assert [(m.classes, m.lr, m.test_acc, m.runs) for m in best_by_classes(rows)] == [
        (5, 0.01, pytest.approx(0.9), 2),
        (20, 0.001, pytest.approx(0.6), 2),
    ]


def test_of_several_scorings_of_one_trajectory_the_last_counts(row):
    scorings = [(5, 1, 0.9), (9, 2, 0.4)]
    rows = [row(protocol="iid", step=step, epoch=epoch, test_acc=accuracy) for step, epoch, accuracy in scorings]
    [milestone] = best_by_classes(rows)
    assert (milestone.test_acc, milestone.runs) == (0.4, 1)


def test_checkpoints_and_data_sets_are_kept_apart(row):
    rows = [row(checkpoint_step=step, dataset=name) for step in (200, 600) for name in ("glyphs", "omniglot")]
    assert len(best_by_classes(rows)) == 4
    assert list(as_table(best_by_classes(rows))["checkpoint_step"]) == [200, 200, 600, 600]


def test_a_report_has_them_as_a_file_and_on_its_page(build):
    from anml.report.write import write_report

    experiment = build().results().experiment
    write_report(experiment)
    assert (experiment.report / "by-classes.csv").read_text().count("olft") > 4
    assert "After fewer classes" in (experiment.report / "index.html").read_text()


def test_a_rate_that_was_run_less_often_is_not_the_best(row):
    rows = [row(lr=0.01, run=0, test_acc=0.9), *(row(lr=0.001, run=run, test_acc=0.6) for run in range(3))]
    [milestone] = best_by_classes(rows)
    assert (milestone.lr, milestone.runs) == (0.001, 3)
