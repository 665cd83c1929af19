"""What a comparison says beside its numbers, for these to be read rightly."""

import pytest

from tests.report.conftest import cells, compare
from tests.report.test_report_page import words


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
