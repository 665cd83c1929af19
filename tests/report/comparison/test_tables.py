"""What the tables of a comparison say: numbers, rows, columns, captions, and what a reader must know beside them."""

import csv

import numpy as np
import pytest

from anml.report.tables import read_summary
from anml.report.write import write_report
from tests.report.conftest import COMPARED, cells, compare, lines, start_experiment
from tests.report.test_page import words


@pytest.mark.usefixtures("no_figures")
def test_text_has_experiments_down_and_an_oracle_behind_its_sequential_flavor(make):
    text = compare(make("ANML").results().jobs(), make("SANML").results().jobs()).text.splitlines()
    assert text[0] == "Test accuracy: mean ± 95% interval of the mean @ the best learning rate"
    assert text[2].split() == ["experiment", "folder", "checkpoint", "state"]
    assert text[3].split() == ["ANML", "demo/ANML", "after", "600", "episodes", "done"]
    assert text[6] == "20 classes of glyphs, 15 drawings of each to learn, 5 to test; 4 runs"
    assert text[7].split() == ["experiment", "no-sgd", "olft", "olft-oracle"]
    assert [line.split()[0] for line in text[8:11]] == ["ANML", "SANML", "chance"]
    assert text[10].split() == ["chance", "0.0500", "0.0500", "0.0500"]


@pytest.mark.usefixtures("no_figures")
def test_cells_are_worded_as_in_the_reports(make):
    one, two = make("ANML").results(), make("SANML").results()
    comparison = compare(one, two)
    write_report(one.experiment)
    report = (one.experiment.report / "accuracy.txt").read_text(encoding="utf-8")
    own = report.split("after 600 episodes")[1].split("\n")
    found = [line.split("  ")[-2].strip() for line in own if line.startswith("olft")]
    assert len(found) == 2
    assert all(cell in comparison.text for cell in found)


@pytest.mark.usefixtures("no_figures")
def test_settings_have_tables_of_their_own(make, row):
    extra = [row(classes=10, classes_trained=10, step=150, test_acc=0.8, run=run) for run in range(2)]
    extra += [row(train_examples=3, run=run) for run in range(2)]
    one, two = make("ANML").results().write("extra", extra), make("SANML").results().write("more", extra[:2])
    comparison = compare(one, two)
    captions = [line for line in comparison.text.splitlines() if "of each to learn" in line]
    assert captions == [
        "20 classes of glyphs, 3 drawings of each to learn, 5 to test; 2 runs",
        "20 classes of glyphs, 15 drawings of each to learn, 5 to test; 4 runs",
        "10 classes of glyphs, 15 drawings of each to learn, 5 to test; 2 runs",
    ]
    assert [line["group"] for line in cells(comparison, train_examples="3")] == ["ANML"]


@pytest.mark.usefixtures("no_figures")
def test_each_is_compared_at_its_last_evaluated_checkpoint(make):
    young = make("SANML").results()
    for path in young.experiment.results.glob("*-step-000600.csv"):
        path.unlink()
    comparison = compare(make("ANML").results(), young)
    assert {line["checkpoint_step"] for line in cells(comparison, group="SANML")} == {"200"}
    assert {line["checkpoint_step"] for line in cells(comparison, group="ANML")} == {"600"}
    page = words(comparison.page.read_text(encoding="utf-8"))
    assert "after 200 episodes" in page
    assert "SANML: olft, after 600 episodes: no results" in page


@pytest.mark.usefixtures("no_figures")
def test_several_seeds_are_pooled_and_said(make):
    comparison = compare(make("ANML").results(), make("SANML", changes={"seeds": (1, 2, 3)}).results())
    assert {(line["train_seed"], line["seeds"]) for line in cells(comparison, group="SANML")} == {("all", "3")}
    assert "after 600 episodes, 3 seeds" in comparison.text
    assert "(12 runs of 3 seeds, 3 rates)" in comparison.text
    assert "where there are three or more, else over all their runs" in words(comparison.page.read_text())


@pytest.mark.usefixtures("no_figures")
def test_what_learning_in_sequence_costs_is_paired_run_by_run(make, row):
    def rows(shift: float) -> list:
        levels = enumerate((0.3, 0.5, 0.6, 0.9))  # Runs differ much, and all by nearly the same from their oracle.
        olft = [row(run=run, test_acc=level - shift + 0.01 * (run % 2)) for run, level in levels]
        oracle = [
            row(flavor="olft-oracle", protocol="iid", run=run, test_acc=a) for run, a in enumerate((0.3, 0.5, 0.6))
        ]
        return olft + oracle

    builders = [make(group).write("all", rows(shift)) for group, shift in (("ANML", 0.1), ("SANML", 0.2))]
    comparison = compare(*builders)
    found = lines(comparison.page.parent / "comparison-oracle-gaps.csv")
    for line, differences in zip(found, [(0.1, 0.09, 0.1), (0.2, 0.19, 0.2)], strict=True):
        assert (line["sequential"], line["oracle"], line["runs"]) == ("olft", "olft-oracle", "3")
        assert float(line["difference"]) == pytest.approx(sum(differences) / 3)
        # Student's t for two degrees of freedom times the standard error.
        assert float(line["ci95"]) == pytest.approx(4.302652730 * np.std(differences, ddof=1) / 3**0.5)
    assert "olft-oracle - olft" in comparison.text
    assert "+0.097 ± 0.014" in comparison.text
    assert "+0.097 ± 0.014 3 runs" in words(comparison.page.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("no_figures")
def test_runs_of_other_classes_are_not_paired(make):
    builders = [make("ANML").results(), make("SANML").results()]
    path = builders[1].experiment.config_file
    head, last, tail = path.read_text().rpartition("    seed: 1\n")  # That of the oracle.
    path.write_text(f"{head}{last.replace('1', '2')}{tail}")
    folder = compare(*builders).page.parent
    assert [line["group"] for line in lines(folder / "comparison-oracle-gaps.csv")] == ["ANML"]


@pytest.mark.usefixtures("no_figures")
def test_the_csv_can_be_read_as_a_summary_is(make, tmp_path):
    """The columns of summary.csv are all there, of the same type."""
    builders = [make("ANML").results(), make("SANML").results()]
    folder = compare(*builders).page.parent
    found = lines(folder / "comparison.csv")
    write_report(builders[0].experiment)
    names = list(lines(builders[0].experiment.report / "summary.csv")[0])
    with (tmp_path / "part.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(found)
    assert [point.flavor for point in read_summary(tmp_path / "part.csv")] == [line["flavor"] for line in found]


@pytest.mark.usefixtures("no_figures")
def test_an_incomplete_experiment_is_marked(make):
    whole, part = make("ANML").results().jobs(), make("SANML").results().jobs()
    path = part.experiment.results / "olft-step-000600.csv"
    kept = [line for line in path.read_text().splitlines(keepends=True) if ",3,1," not in line]  # Run 3 of 0 to 3.
    path.write_text("".join(kept))
    comparison = compare(whole, part)
    assert "SANML: olft, after 600 episodes: 9 of 12 trajectories" in comparison.text
    assert "SANML (incomplete)" in comparison.text
    assert "ANML (incomplete)" not in comparison.text.replace("SANML (incomplete)", "")
    assert "done, incomplete" in words(comparison.page.read_text())
    assert {line["is_incomplete"] for line in cells(comparison, group="SANML")} == {"True"}
    assert {line["is_incomplete"] for line in cells(comparison, group="ANML")} == {"False"}


@pytest.mark.usefixtures("no_figures")
def test_numbers_of_runs_and_rates_are_said_where_they_differ(make):
    assert "runs," not in compare(make("A").results(), make("B").results()).text
    comparison = compare(make("C").results(), make("D", runs=2).results())
    assert "(4 runs, 3 rates)" in comparison.text
    assert "(2 runs, 3 rates)" in comparison.text
    assert {(line["runs"], line["rates_tried"]) for line in cells(comparison, evaluation="no-sgd")} == {
        ("4", "0"), ("2", "0"),
    }  # fmt: skip


@pytest.mark.usefixtures("no_figures")
def test_a_best_rate_at_the_edge_of_the_sweep_is_said(make, row):
    edge = [row(lr=lr, test_acc=lr, run=run, checkpoint_step=600) for lr in (0.1, 0.2) for run in range(2)]
    builders = [make(group).write("olft-step-000600", edge) for group in ("ANML", "SANML")]
    assert "lr 0.2 (highest tried)" in words(compare(*builders).page.read_text())


@pytest.mark.usefixtures("no_figures")
def test_other_evaluation_seeds_and_numbers_of_outputs_are_said(make):
    one, two = make("ANML").results(), make("SANML", changes={"model_args": {"num_classes": 2000}}).results()
    path = two.experiment.config_file
    path.write_text(path.read_text().replace("    seed: 1\n", "    seed: 7\n"))
    text = compare(one, two).text
    assert "olft: seeds differ, so runs are not of the same classes and examples: ANML 1, SANML 7." in text
    assert "Outputs differ in number: ANML 1,000, SANML 2,000." in text


BASELINES = """
  - ncm: {{<<: *all, eval_method: ncm, eval_freq: 5}}
  - slda: {{<<: *all, eval_method: slda, eval_freq: 5}}
"""


def test_heads_without_a_gradient_stand_beside_those_that_learn_by_it(tmp_path):
    builders = [
        start_experiment(
            tmp_path / "experiments/demo" / name,
            (COMPARED + BASELINES).format(
                model="sanml", name=name, pixels=28, runs=4, olft="olft", oracle="olft-oracle", batch=256
            ),
        ).results()
        for name in ("ANML", "SANML")
    ]
    comparison = compare(*builders)
    assert comparison.text.splitlines()[7].split() == ["experiment", "no-sgd", "olft", "olft-oracle", "ncm", "slda"]
    assert {line["lr"] for line in cells(comparison, flavor="ncm")} == {""}
    drawn = {path.name for path in comparison.page.parent.glob("comparison-classes-*.png")}
    assert drawn == {f"comparison-classes-{name}.png" for name in ("olft", "ncm", "slda")}
