import pytest

from anml.config.load import load_train_config
from anml.config.yaml import source_of
from anml.report.statistics import half_width
from anml.report.tables import (
    BY_CLASSES_COLUMNS,
    POOLED,
    as_frame,
    best_by_classes,
    best_rates,
    finals,
    learning_curve,
    main_results,
    rate_results,
    read_scores,
    read_summary,
    tidy,
    write_csv,
)
from anml.report.write import write_report


def test_best_rate_has_the_highest_mean_over_runs(row):
    # The single best run belongs to 0.01, the best mean to 0.001.
    runs = {0.0001: [0.3, 0.4], 0.001: [0.6, 0.7], 0.01: [0.1, 0.9]}
    rows = [row(lr=lr, run=run, test_acc=acc) for lr, accs in runs.items() for run, acc in enumerate(accs)]
    (best,) = best_rates(rate_results(rows))
    assert (best.lr, best.runs) == (0.001, 2)
    assert best.test_acc == pytest.approx(0.65)
    assert best.test_std == pytest.approx(0.1 / 2**0.5)
    assert best.test_ci95 == pytest.approx(half_width([0.6, 0.7]))
    assert best.chance == pytest.approx(1 / 20)


def test_of_equal_rates_the_steadier_one_wins_then_the_smaller(row):
    spread = [row(lr=0.001, run=run, test_acc=acc) for run, acc in enumerate([0.4, 0.6])]
    steady = [row(lr=lr, run=run, test_acc=acc) for lr in (0.01, 0.003) for run, acc in enumerate([0.45, 0.55])]
    (best,) = best_rates(rate_results(spread + steady))
    assert best.lr == 0.003


def test_a_rate_with_fewer_runs_than_others_is_not_the_best(row):
    rows = [row(lr=0.01, test_acc=0.9), *(row(lr=0.001, run=run, test_acc=0.5) for run in range(2))]
    (best,) = best_rates(rate_results(rows))
    assert (best.lr, best.runs) == (0.001, 2)


def test_the_end_of_a_trajectory_counts(row):
    early = row(lr=0.01, step=15, classes_trained=1, test_acc=1.0)
    rows = [early, row(lr=0.01, step=300, test_acc=0.2), row(lr=0.001, test_acc=0.5)]
    assert [end.test_acc for end in finals(rows)] == [0.2, 0.5]
    assert best_rates(rate_results(rows))[0].lr == 0.001


def test_repeated_scorings_of_iid_learning_count_once(row):
    rows = [row(protocol="iid", step=step, test_acc=acc) for step, acc in [(5, 0.2), (10, 0.4), (12, 0.6)]]
    (point,) = rate_results(rows)
    assert (point.test_acc, point.runs) == (0.6, 1)


def test_zero_shot_has_no_rate(build, row):
    builder = build().write("no-sgd-step-000600", [row(protocol="zero_shot", lr=None, epoch=0, step=0)])
    (best,) = best_rates(rate_results(read_scores(builder.experiment)[0]))
    assert best.lr is None


def test_parts_of_an_array_are_merged_and_overlaps_count_once(build, row):
    builder = build()
    builder.write("olft-step-000600-task-0000", [row(run=0, test_acc=0.2), row(run=1, test_acc=0.4)])
    builder.write("olft-step-000600-task-0001", [row(run=2, test_acc=0.6), row(run=1, test_acc=0.4)])
    (point,) = rate_results(read_scores(builder.experiment)[0])
    assert (point.runs, point.test_acc) == (3, pytest.approx(0.4))


def test_a_damaged_file_is_named_and_the_others_are_kept(build, row):
    builder = build().write("olft-step-000600", [row()])
    (builder.experiment.results / "broken.csv").write_text("flavor,accuracy\nolft,1\n")
    (builder.experiment.results / "cut.csv").write_text(",".join(vars(row())) + "\nolft,sequ\n")
    rows, problems = read_scores(builder.experiment)
    assert len(rows) == 1
    assert [problem.split()[0] for problem in problems] == ["broken.csv", "cut.csv"]


def test_several_seeds_are_pooled_and_kept_apart(row):
    accuracies = {1: {0.001: 0.5, 0.01: 0.6}, 2: {0.001: 0.5, 0.01: 0.2}, 3: {0.001: 0.5, 0.01: 0.2}}
    rows = [
        row(train_seed=seed, lr=lr, run=run, test_acc=acc + 0.01 * run)
        for seed, sweep in accuracies.items()
        for lr, acc in sweep.items()
        for run in range(2)
    ]
    summary = best_rates(rate_results(rows))
    assert {point.train_seed: point.lr for point in summary} == {POOLED: 0.001, "1": 0.01, "2": 0.001, "3": 0.001}
    (pooled,) = main_results(summary)
    assert (pooled.runs, pooled.seeds, pooled.interval_over) == (6, 3, "seeds")
    assert pooled.test_ci95 == pytest.approx(0, abs=1e-12)  # All seeds' means are the same.


def test_two_seeds_have_an_interval_over_runs(row):
    rows = [row(train_seed=seed, run=run, test_acc=0.1 * (seed + run)) for seed in (1, 2) for run in range(3)]
    (pooled,) = main_results(rate_results(rows))
    assert pooled.interval_over == "runs"
    assert pooled.test_ci95 == pytest.approx(half_width([0.1, 0.2, 0.3, 0.2, 0.3, 0.4]))


def test_flavors_come_in_the_order_asked_for(row):
    points = rate_results([row(flavor=name) for name in ("b", "a", "c")], flavors=("c", "b"))
    assert [point.flavor for point in points] == ["c", "b", "a"]


def test_summary_survives_writing_and_reading(build, tmp_path):
    rows = read_scores(build(seeds=(1, 2, 3)).results().experiment)[0]
    summary = best_rates(rate_results(rows))
    write_csv(tmp_path / "summary.csv", as_frame(summary))
    again = read_summary(tmp_path / "summary.csv")
    assert [point.sweep for point in again] == [point.sweep for point in summary]
    assert [point.lr for point in again] == [point.lr for point in summary]
    assert [point.test_ci95 for point in again] == pytest.approx([point.test_ci95 for point in summary])


def test_empty_summary_survives_too(tmp_path):
    write_csv(tmp_path / "summary.csv", as_frame([]))
    assert read_summary(tmp_path / "summary.csv") == []
    assert "test_acc" in as_frame([])


def test_curve_follows_the_trajectory_of_the_best_rate(row):
    rows = [
        row(lr=lr, run=run, step=15 * learned, classes_trained=learned, test_acc=acc - 0.01 * learned)
        for lr, acc in [(0.001, 0.9), (0.01, 0.5)]
        for run in range(2)
        for learned in (1, 10, 20)
    ]
    curve = learning_curve(rows, best_rates(rate_results(rows)))
    assert [point.classes for point in curve] == [1, 10, 20]
    assert [point.test_acc for point in curve] == pytest.approx([0.89, 0.8, 0.7])


def test_curve_joins_sweeps_of_several_class_counts(row):
    rows = [
        row(classes=classes, classes_trained=classes, lr=lr, step=15 * classes, test_acc=acc)
        for classes, sweep in {10: {0.01: 0.9, 0.001: 0.8}, 50: {0.01: 0.4, 0.001: 0.6}}.items()
        for lr, acc in sweep.items()
    ]
    curve = learning_curve(rows, best_rates(rate_results(rows)))
    assert [(point.classes, point.test_acc) for point in curve] == [(10, 0.9), (50, 0.6)]


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
    assert list(as_frame(best_by_classes(rows), BY_CLASSES_COLUMNS)["checkpoint_step"]) == [200, 200, 600, 600]


def test_a_report_has_them_as_a_file_and_on_its_page(build):
    experiment = build().results().experiment
    write_report(experiment)
    assert (experiment.report / "by-classes.csv").read_text().count("olft") > 4
    assert "After fewer classes" in (experiment.report / "index.html").read_text()


def test_a_rate_that_was_run_less_often_is_not_the_best(row):
    rows = [row(lr=0.01, run=0, test_acc=0.9), *(row(lr=0.001, run=run, test_acc=0.6) for run in range(3))]
    [milestone] = best_by_classes(rows)
    assert (milestone.lr, milestone.runs) == (0.001, 3)


def test_a_summary_of_another_version_is_read_by_the_names_of_its_columns(tmp_path, row):
    summary = best_rates(rate_results([row(), row(run=1)]))
    table = as_frame(summary, ["seconds", *reversed(vars(summary[0]))])
    write_csv(tmp_path / "summary.csv", table.assign(seconds=1.5))
    assert read_summary(tmp_path / "summary.csv") == summary


def test_a_key_that_varies_has_a_typed_column_beside_those_of_evaluations(row):
    points = [{"lr": 0.1}, {"optimizer": "SGD", "ema_decay": 0.9}, {"optimizer_args.betas": [0.5, 0.9]}]
    keys = {"dataset": "glyphs", "model": "sanml", "train_method": "iid", "epochs": 1, "vary": points}
    config = load_train_config(source_of(keys, "config")).config
    names = [config.for_training(training).display_name for training in config.trainings]
    table = tidy([row(model=name, lr=0.01) for name in names], config)
    columns = {"lr": "float64", "train_lr": "Float64", "optimizer": "string", "ema_decay": "Float64"}
    assert {name: str(table.dtypes[name]) for name in columns} == columns
    assert table[[*columns, "optimizer_args.betas"]].to_csv(index=False, header=False).splitlines() == [
        "0.01,0.1,Adam,,", "0.01,0.001,SGD,0.9,", '0.01,0.001,Adam,,"[0.5, 0.9]"',
    ]  # fmt: skip
