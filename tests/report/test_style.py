"""Looks of flavors and models by their names; text in the figures is broken into lines by its measured width."""

from itertools import combinations

import pytest
from matplotlib.colors import same_color

from anml.report.comparison.figures import draw_curve, model_looks
from anml.report.comparison.tables import comparison_curves
from anml.report.figures import draw_classes, draw_rates
from anml.report.style import FLAVORS, MODELS, Look, broken, figure_style, find_looks, text_width
from anml.report.tables import best_rates, rate_results
from tests.report.conftest import contenders_of

CUSTOM = [f"my-flavor-{number}" for number in range(30)]
TEXT = "olft-oracle-no-momentum (held out: all after the first 60 classes; adam_betas: 0.9, 0.999)"


def test_text_that_fits_stays_as_it_is():
    assert broken("olft\nolft-oracle", 1.5) == "olft\nolft-oracle"


@pytest.mark.parametrize("width", [0.1, 0.5, 1.0, 2.0, 4.0])
def test_no_line_is_wider_than_asked_for(width: float):
    assert max(map(text_width, broken(TEXT, max(width, text_width("W"))).split("\n"))) <= max(width, text_width("W"))


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_nothing_is_lost_but_spaces(width: float):
    assert "".join(broken(TEXT, width).split()) == "".join(TEXT.split())


def test_lines_break_between_words_before_they_break_a_name():
    assert broken("held out: all", text_width("held out:")) == "held out:\nall"
    assert broken("olft-oracle", text_width("olft-ora")) == "olft-\noracle"
    assert broken("oracle", text_width("orac")) == "orac\nle"


def test_a_flavor_with_a_line_in_the_table_is_drawn_so_in_every_figure(row, monkeypatch):
    monkeypatch.setitem(FLAVORS, "mine", Look("#123456", "*", "my flavor"))
    rows = [row(flavor=flavor, lr=lr, run=run) for flavor in ("olft", "mine") for lr in (0.1, 1.0) for run in (0, 1)]
    results = rate_results(rows)
    looks = find_looks([row.flavor for row in rows], FLAVORS)
    with figure_style():
        figures = [
            draw_rates(results, looks, "episodes", "drawings"),
            draw_classes(rows, best_rates(results), looks, "episodes", "drawings"),
        ]
    for figure in figures:
        assert figure is not None
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        colours = [line.get_color() for axes in figure.axes for line in axes.get_lines() if line.get_marker() == "*"]
        assert {"olft", "my flavor"} < set(labels)
        assert set(colours) == {"#123456"}


def test_a_model_with_a_line_in_the_table_is_drawn_so_in_a_comparison(make, monkeypatch):
    monkeypatch.setitem(MODELS, "mine", Look("#123456", "*"))
    models = contenders_of(make("ANML").results(), make("Mine").results())
    assert [(look.colour, look.marker, look.label) for look in model_looks(models)] == [
        (*MODELS["anml"][:2], "ANML"),
        ("#123456", "*", "Mine"),
    ]
    with figure_style():
        figure = draw_curve(model_looks(models), comparison_curves(models)[0])
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_label() == "Mine"]
    assert (line.get_color(), line.get_marker()) == ("#123456", "*")


@pytest.mark.parametrize(
    "shipped", [("no-sgd", "olft", "unfrozen", "olft-oracle", "unfrozen-oracle"), ("no-sgd", "1ft")]
)
def test_a_flavor_looks_the_same_whatever_others_there_are(shipped):
    few, many = find_looks(shipped, FLAVORS), find_looks([*CUSTOM[:3], *reversed(shipped)], FLAVORS)
    assert {name: many[name] for name in shipped} == few
    assert find_looks(["mine"], FLAVORS)["mine"] == find_looks(["olft", "mine", "unfrozen"], FLAVORS)["mine"]


def test_no_two_names_of_one_figure_look_the_same():
    looks = find_looks([*FLAVORS, *CUSTOM], FLAVORS)
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(looks)
    assert find_looks([*reversed(CUSTOM), *FLAVORS], FLAVORS) == looks


def test_other_names_have_no_colour_of_the_table():
    colours = [look.colour for look in find_looks(CUSTOM, FLAVORS).values()]
    assert not any(same_color(look.colour, colour) for look in FLAVORS.values() for colour in colours)


def test_compared_groups_of_one_model_differ_in_colour():
    looks = find_looks([f"SANML (group-{number})" for number in range(6)], MODELS, unique_colours=True)
    assert not any(one.colour == other.colour for one, other in combinations(looks.values(), 2))
