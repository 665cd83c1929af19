"""The figures of a comparison show what its tables say."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from anml.atomic import write_text
from anml.config.evaluation import EvalConfig
from anml.config.load import dump_config
from anml.report.comparison.differences import Evaluation
from anml.report.comparison.figures import draw_accuracies, draw_curve, model_looks
from anml.report.comparison.model import Cell
from anml.report.comparison.tables import Amount, Column, Table, comparison_curves, comparison_tables
from anml.report.style import Look, figure_style
from anml.report.tables import main_results, rate_results
from tests.report.conftest import Builder, compare, contenders_of, make_row


def test_the_figure_shows_oracles_hollow_to_the_right_of_their_sequential_flavor(make):
    entries = contenders_of(make("ANML").results(), make("OML", olft="1ft", oracle="iid-1ft").results())
    tables = comparison_tables(entries)
    with figure_style():
        figure = draw_accuracies(model_looks(entries), tables)
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
        olft, oracle = (columns[name].cells[place].best.test_acc for name in ("olft", "olft-oracle"))
        ((left, is_hollow),) = [(x, hollow) for x, y, hollow in drawn if y == olft]
        ((right, is_oracle_hollow),) = [(x, hollow) for x, y, hollow in drawn if y == oracle]
        assert left < right
        assert (is_hollow, is_oracle_hollow) == (False, True)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"ANML", "OML", "chance"} < set(labels)


def test_heads_without_a_gradient_stand_beside_gradient_steps_in_one_figure(make):
    baseline = EvalConfig(eval_method="ncm", classes=(20,), runs=4, eval_freq=5)

    def with_baseline(name: str) -> Builder:
        usual = make(name)
        return make(name, changes={"eval": {**usual.config.eval, "ncm": baseline}}).results()

    entries = contenders_of(with_baseline("ANML"), with_baseline("SANML"))
    with figure_style():
        [panel] = draw_accuracies(model_looks(entries), comparison_tables(entries)).axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["no-sgd", "olft\nolft-oracle", "ncm"]
    assert {curve.name for curve in comparison_curves(entries)} == {"olft", "ncm"}


def test_the_curves_are_those_of_the_table_by_classes(make):
    entries = contenders_of(make("ANML").results(), make("SANML").results())
    (curve,) = comparison_curves(entries)
    with figure_style():
        figure = draw_curve(model_looks(entries), curve)
    drawn = {line.get_label(): line for line in figure.axes[0].get_lines()}
    for entry in entries:
        own = [m for m in entry.by_classes if m.flavor == "olft"]
        line = np.asarray(drawn[entry.label].get_xydata())
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
    assert not list(folder.glob(".new*"))


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_names_of_evaluations_never_overlap(count: int):
    """Each pair of columns has a long name of its own."""
    cell = Cell(main_results(rate_results([make_row(run=0), make_row(run=1)]))[0], (0.001,), {}, None)
    columns = [
        Column(
            f"{name}-without-momentum (held out: all after the first {number + 50} classes)",
            Evaluation(protocol, "glyphs", held_out_from=number),
            {0: cell},
        )
        for number in range(count)
        for name, protocol in (("olft", "sequential"), ("olft-oracle", "iid"))
    ]  # fmt: skip
    table = Table(Amount("glyphs-validation", 20, 15, 5), tuple(columns), ())
    with figure_style():
        figure = draw_accuracies([Look("black", "o", "ANML")], [table])
        assert figure is not None
        figure.draw_without_rendering()
        labels = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(labels) == count
    assert all(left.x1 < right.x0 for left, right in pairwise(labels))
    assert labels[-1].x1 < figure.bbox.x1
    assert figure.axes[0].get_window_extent().height > figure.dpi * 2.5


def test_what_tells_two_names_from_their_doubles_stands_once_below_both(make):
    changes = [{"train_classes": 900}, {"train_classes": 901}]
    builders = [make(group, changes=own) for group, own in zip("ab", changes, strict=True)]
    for builder in builders:
        held_out = {n: flavor.model_copy(update={"split": "validation"}) for n, flavor in builder.config.eval.items()}
        builder.config = builder.config.model_copy(update={"eval": held_out})
        write_text(builder.experiment.config_file, dump_config(builder.config))
    entries = contenders_of(*(builder.results() for builder in builders))
    with figure_style():
        figure = draw_accuracies(model_looks(entries), comparison_tables(entries))
    assert figure is not None
    labels = [label.get_text().split("\n") for label in figure.axes[0].get_xticklabels()]
    assert labels[1][:2] == ["olft", "olft-oracle"]
    assert " ".join(labels[1][2:]) == "(held out: all after the first 900 classes)"
