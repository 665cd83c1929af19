"""What takes part in a comparison, and under which name."""

import pytest

from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.report.comparison.model import read_compared_models, with_labels
from tests.report.conftest import compare
from tests.report.test_page import words


@pytest.mark.usefixtures("no_figures")
def test_a_model_that_comes_twice_is_named_with_its_group(make):
    builders = [make("a", name="ANML"), make("b", name="ANML"), make("c", name="OML")]
    elsewhere = make("a", "other", name="ANML")
    found = [c for builder in [*builders, elsewhere] for c in read_compared_models(builder.results().experiment)]
    assert [c.label for c in with_labels(found[:3])] == ["ANML (a)", "ANML (b)", "OML"]
    assert [c.label for c in with_labels(found)] == ["ANML (demo/a)", "ANML (b)", "OML", "ANML (other/a)"]


def test_a_comparison_takes_two_with_results(make):
    one, empty = make("ANML").results(), make("SANML")
    with pytest.raises(ConfigError, match=r"only demo/ANML has results \(without: demo/SANML\)"):
        compare(one, empty)
    with pytest.raises(ConfigError, match="no experiment has results yet"):
        compare(empty)


@pytest.mark.usefixtures("no_figures")
def test_those_without_results_are_named(make):
    page = compare(make("ANML").results(), make("OML").results(), make("SANML")).page.read_text()
    assert "Without results yet: demo/SANML." in words(page)


def test_reading_an_experiment_without_results(make):
    assert read_compared_models(Experiment(make("ANML").experiment.root)) == []


def test_every_inner_rate_of_an_experiment_is_compared_in_order_of_their_values(make) -> None:
    several = make("ANML", changes={"inner_lrs": (0.1, 0.00001, 0.05)}).results()
    labels = [entry.label for entry in with_labels(read_compared_models(several.experiment))]
    assert labels == ["ANML-inner-lr-1e-05", "ANML-inner-lr-0.05", "ANML-inner-lr-0.1"]


def test_an_inner_rate_that_lacks_results_leaves_the_others_complete(make) -> None:
    several = make("ANML", changes={"inner_lrs": (0.1, 0.05)}).results()
    several.experiment.result("olft", 600, "inner-lr-0.05").unlink()
    slow, fast = read_compared_models(several.experiment)
    assert slow.missing == ["olft, after 600 episodes, inner_lr 0.05: no results"]
    assert fast.missing == []


def test_an_inner_rate_without_any_results_is_told_by_the_others(make) -> None:
    several = make("ANML", changes={"inner_lrs": (0.1, 0.05)}).results()
    for path in several.experiment.results.glob("*inner-lr-0.05.csv"):
        path.unlink()
    [fast] = read_compared_models(several.experiment)
    assert fast.model == "ANML-inner-lr-0.1"
    assert "olft, after 600 episodes, inner_lr 0.05: no results" in fast.missing
