"""The figures of a comparison show what its tables say."""

import numpy as np
from matplotlib.container import ErrorbarContainer

from anml.atomic import write_text
from anml.report.canvas import figure_style
from anml.report.comparison.figures import draw_accuracies, draw_curve
from anml.report.comparison.tables import comparison_curves, comparison_tables
from tests.report.conftest import compare, contenders_of


def test_the_figure_shows_oracles_hollow_to_the_right_of_their_sequential_flavor(make):
    contenders = contenders_of(make("ANML").results(), make("OML", olft="1ft", oracle="iid-1ft").results())
    tables = comparison_tables(contenders)
    with figure_style():
        figure = draw_accuracies([c.title for c in contenders], tables)
    assert figure is not None
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["no-sgd", "olft\nolft-oracle"]
    dots = [container.lines[0] for container in panel.containers if isinstance(container, ErrorbarContainer)]
    drawn = [
        (*np.asarray(dot.get_xydata())[0].tolist(), dot.get_markerfacecolor() == "white")
        for dot in dots if dot is not None
    ]  # fmt: skip
    columns = {column.name: column for column in tables[0].columns}
    for place in range(2):
        olft, oracle = (columns[name].cells[place].point.test_acc for name in ("olft", "olft-oracle"))
        ((left, is_hollow),) = [(x, hollow) for x, y, hollow in drawn if y == olft]
        ((right, is_oracle_hollow),) = [(x, hollow) for x, y, hollow in drawn if y == oracle]
        assert left < right
        assert (is_hollow, is_oracle_hollow) == (False, True)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"ANML", "OML", "chance"} < set(labels)


def test_the_curves_are_those_of_the_table_by_classes(make):
    contenders = contenders_of(make("ANML").results(), make("SANML").results())
    (curve,) = comparison_curves(contenders)
    with figure_style():
        figure = draw_curve([c.title for c in contenders], curve)
    drawn = {line.get_label(): line for line in figure.axes[0].get_lines()}
    for contender in contenders:
        own = [m for m in contender.milestones if m.flavor == "olft"]
        line = np.asarray(drawn[contender.label].get_xydata())
        assert line.tolist() == [[classes, m.test_acc] for classes, m in zip((1, 5, 10, 15, 20), own, strict=True)]


def test_a_flavor_that_only_one_has_gets_no_curve(make):
    one, two = make("ANML").results(), make("SANML").results(["no-sgd"])
    assert comparison_curves(contenders_of(one, two)) == []


def test_a_figure_without_a_successor_is_removed_and_nothing_else(make):
    one, two = make("ANML").results(), make("SANML").results()
    folder = compare(one, two).page.parent
    write_text(folder / "comparison-of-mine.png", "mine")
    compare(one, two, flavors=("no-sgd",))
    assert {path.name for path in folder.glob("*.png")} == {"comparison-accuracy.png", "comparison-of-mine.png"}
    assert not list(folder.glob(".comparison*"))
