"""Several experiments under the same evaluation."""

import csv
import os
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from anml.atomic import write_text
from anml.config.load import dump_config, load_train_config
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.report.canvas import figure_style
from anml.report.comparison.contender import read_contenders, with_labels
from anml.report.comparison.evaluation import align, evaluation_of
from anml.report.comparison.figures import draw_accuracies, draw_curve
from anml.report.comparison.tables import comparison_curves, comparison_tables
from anml.report.comparison.write import Comparison, write_comparison
from anml.report.index import write_indexes
from anml.report.tables import read_summary
from anml.report.write import write_report
from tests.report.conftest import Builder, start_experiment
from tests.report.test_report_page import words

CONFIG = """
dataset: glyphs
model: {model}
model_name: {name}
im_size: {pixels}
epochs: 600
eval_steps: [200, 600]
eval:
  - no-sgd: &all {{classes: 20, train_examples: 15, test_examples: 5, runs: {runs}, eval_method: zero_shot}}
  - {olft}: &sweep
      <<: *all
      eval_method: sequential
      opt_params: head
      eval_freq: 5
      lr: [0.0001, 0.001, 0.01]
  - {oracle}: {{<<: *sweep, eval_method: iid, batch_size: {batch}}}
"""
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OWN_FILES = {
    "comparison.html",
    "comparison.csv",
    "comparison-by-classes.csv",
    "comparison-oracle-gaps.csv",
    "comparison.txt",
}
FIGURES = {"comparison-accuracy.png", "comparison-classes-olft.png"}
# Elements that are not closed.
VOID = {"meta", "img", "br"}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Builder]:
    """Return a function that starts an experiment of a model, of project `demo` if not said."""

    def start(group: str, project: str = "demo", changes: dict | None = None, **values) -> Builder:
        usual = {"model": "sanml", "name": group, "pixels": 28, "runs": 4, "olft": "olft", "batch": 256}
        config = CONFIG.format(**usual | {"oracle": "olft-oracle"} | values)
        return start_experiment(tmp_path / "experiments" / project / group, config, **(changes or {}))

    return start


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take most of the time."""
    monkeypatch.setattr("anml.report.comparison.write.comparison_curves", lambda contenders: [])
    monkeypatch.setattr("anml.report.comparison.write._draw", lambda *_: {})
    monkeypatch.setattr("anml.report.write._draw", lambda *_: {})


def compare(*builders: Builder, flavors: tuple[str, ...] = ()) -> Comparison:
    experiments = [builder.experiment for builder in builders]
    return write_comparison(experiments, experiments[0].root.parent, flavors)


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cells(comparison: Comparison, **wanted: str) -> list[dict[str, str]]:
    """Return the lines of comparison.csv with these values."""
    found = lines(comparison.page.parent / "comparison.csv")
    return [line for line in found if all(line[name] == value for name, value in wanted.items())]


def evaluations(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(line["evaluation"] for line in cells(comparison)))


def test_all_files_are_written(make):
    one, two = make("ANML").results().jobs(), make("SANML").results().jobs()
    comparison = compare(one, two)
    folder = one.experiment.root.parent
    assert comparison.page == folder / "comparison.html"
    assert {path.name for path in folder.iterdir() if path.is_file()} == OWN_FILES | FIGURES
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    assert (folder / "comparison.txt").read_text(encoding="utf-8") == comparison.text + "\n"


@pytest.mark.usefixtures("no_figures")
def test_numbers_are_those_of_the_own_reports(make):
    builders = [make("ANML").results(), make("SANML", changes={"seeds": (1, 2, 3)}).results()]
    comparison = compare(*builders)
    for builder, seed in zip(builders, ("1", "all"), strict=True):
        write_report(builder.experiment)
        last = {"checkpoint_step": "600", "train_seed": seed}
        own = lines(builder.experiment.report / "summary.csv")
        own = [line for line in own if all(line[name] == value for name, value in last.items())]
        here = cells(comparison, group=builder.experiment.group)
        assert len(own) == 3
        assert sorted([{name: line[name] for name in own[0]} for line in here], key=str) == sorted(own, key=str)


@pytest.mark.usefixtures("no_figures")
def test_numbers_by_classes_are_those_of_the_own_reports(make):
    builders = [make("ANML").results(), make("SANML").results()]
    folder = compare(*builders).page.parent
    for builder in builders:
        write_report(builder.experiment)
        own = [line for line in lines(builder.experiment.report / "by-classes.csv") if line["checkpoint_step"] == "600"]
        here = [
            line for line in lines(folder / "comparison-by-classes.csv") if line["group"] == builder.experiment.group
        ]
        assert [line["classes"] for line in own if line["flavor"] == "olft"] == ["1", "5", "10", "15", "20"]
        assert [{name: line[name] for name in own[0]} for line in here] == own


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
def test_flavors_are_matched_by_what_they_do(make):
    small = make("ANML").results()
    large = make("OML", pixels=84, olft="1ft", oracle="iid-1ft").results()
    comparison = compare(small, large)
    assert evaluations(comparison) == ["no-sgd", "olft", "olft-oracle"]
    assert [line["flavor"] for line in cells(comparison, evaluation="olft")] == ["olft", "1ft"]
    page = words(comparison.page.read_text(encoding="utf-8"))
    for note in ("OML calls olft 1ft, olft-oracle iid-1ft.", "ANML 28x28 pixels, OML 84x84 pixels."):
        assert note in page
        assert note in comparison.text


def test_shipped_configs_meet_in_what_they_share():
    anml, oml, inet = (
        load_train_config(CONFIGS / name).config
        for name in ("train-omni-anml.yml", "train-omni-oml.yml", "train-inet-sanml.yml")
    )
    pairs = {"no-sgd": "no-sgd", "olft": "1ft", "unfrozen": "ft-all", "olft-oracle": "iid-1ft"}
    for own, other in pairs.items():
        assert evaluation_of(anml, own) == evaluation_of(oml, other)
    assert evaluation_of(anml, "olft") != evaluation_of(oml, "2ft")
    rows = align([{flavor: evaluation_of(inet, flavor) for flavor in inet.eval}])
    assert [row.label for row in rows] == [
        "no-sgd", "olft", "iid-olft", "unfrozen", "iid-unfrozen", "lstsq-unfrozen", "iid-lstsq-unfrozen",
    ]  # fmt: skip


def test_two_flavors_of_one_experiment_are_never_one():
    config = load_train_config(CONFIGS / "train-omni-anml.yml").config
    olft, unfrozen = evaluation_of(config, "olft"), evaluation_of(config, "unfrozen")
    rows = align([{"1ft": olft}, {"again": olft, "olft": olft}, {"olft": olft, "other": unfrozen}])
    assert [(row.name, row.flavors) for row in rows] == [
        ("1ft", {0: "1ft", 1: "again"}),
        ("olft", {1: "olft", 2: "olft"}),
        ("other", {2: "other"}),
    ]


@pytest.mark.usefixtures("no_figures")
def test_what_differs_in_method_is_not_mixed_whatever_its_name(make):
    comparison = compare(make("ANML").results(), make("SANML", batch=64).results())
    assert evaluations(comparison) == [
        "no-sgd", "olft", "olft-oracle (batch_size: 256)", "olft-oracle (batch_size: 64)",
    ]  # fmt: skip
    assert [line["group"] for line in cells(comparison, evaluation="olft")] == ["ANML", "SANML"]
    assert [line["group"] for line in cells(comparison, evaluation="olft-oracle (batch_size: 64)")] == ["SANML"]


@pytest.mark.usefixtures("no_figures")
def test_the_output_layer_is_the_same_by_its_own_name(make):
    one, two = make("ANML").results(), make("SANML", changes={"output_layer": "fc"}).results()
    path = two.experiment.config_file
    path.write_text(path.read_text().replace("opt_params:\n    - head", "opt_params:\n    - fc"))
    assert path.read_text().count("opt_params:\n    - fc") == 3
    assert evaluations(compare(one, two)) == ["no-sgd", "olft", "olft-oracle"]


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
def test_held_out_background_classes_are_no_evaluation_classes(make):
    changes = {"train_classes": 900}
    builders = [make("a"), make("b", changes=changes), make("c", changes={"train_classes": 901})]
    for builder in builders[1:]:
        held_out = {
            name: flavor.model_copy(update={"split": "validation"}) for name, flavor in builder.config.eval.items()
        }
        builder.config = builder.config.model_copy(update={"eval": held_out})
        write_text(builder.experiment.config_file, dump_config(builder.config))
    text = compare(*(builder.results() for builder in builders)).text
    unseen, held_out = text.split("20 held-out background classes of glyphs, 15 drawings of each to learn, 5 to test")
    assert "20 classes of glyphs, 15 drawings of each to learn, 5 to test" in unseen
    # What other numbers of training classes leave are other classes.
    for count in (900, 901):
        assert f"olft (held out: all after the first {count} classes)" in held_out


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


@pytest.mark.usefixtures("no_figures")
def test_a_model_that_comes_twice_is_named_with_its_group(make):
    builders = [make("a", name="ANML"), make("b", name="ANML"), make("c", name="OML")]
    elsewhere = make("a", "other", name="ANML")
    found = [c for builder in [*builders, elsewhere] for c in read_contenders(builder.results().experiment)]
    assert [c.label for c in with_labels(found[:3])] == ["ANML (a)", "ANML (b)", "OML"]
    assert [c.label for c in with_labels(found)] == ["ANML (demo/a)", "ANML (b)", "OML", "ANML (other/a)"]


@pytest.mark.usefixtures("no_figures")
def test_an_experiment_whose_config_is_unreadable_stays_apart(make):
    one, two = make("ANML").results(), make("SANML").results()
    two.experiment.config_file.write_text("dataset: nonsense\n")
    comparison = compare(one, two)
    assert "olft (config of demo/SANML unreadable)" in evaluations(comparison)
    assert [line["group"] for line in cells(comparison, evaluation="olft")] == ["ANML"]
    assert "config.yml could not be read" in words(comparison.page.read_text())


@pytest.mark.usefixtures("no_figures")
def test_only_the_flavors_asked_for_under_any_name(make):
    one, two = make("ANML").results(), make("OML", olft="1ft", oracle="iid-1ft").results()
    comparison = compare(one, two, flavors=("olft",))
    assert [line["flavor"] for line in cells(comparison)] == ["olft", "1ft"]
    assert {line["flavor"] for line in lines(comparison.page.parent / "comparison-by-classes.csv")} == {"olft", "1ft"}


def test_an_unknown_flavor_is_an_error_that_names_those_there_are(make):
    one, two = make("ANML").results(), make("SANML").results()
    with pytest.raises(
        ConfigError, match=r"no flavor oltf; did you mean 'olft'.; there are: no-sgd, olft, olft-oracle"
    ):
        compare(one, two, flavors=("oltf",))
    assert not list(one.experiment.root.parent.glob("comparison*"))


def test_a_comparison_takes_two_with_results(make):
    one, empty = make("ANML").results(), make("SANML")
    with pytest.raises(ConfigError, match=r"only demo/ANML has results \(without: demo/SANML\)"):
        compare(one, empty)
    with pytest.raises(ConfigError, match="no experiment has results yet"):
        compare(empty)


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
def test_those_without_results_are_named(make):
    page = compare(make("ANML").results(), make("OML").results(), make("SANML")).page.read_text()
    assert "Without results yet: demo/SANML." in words(page)


def contenders_of(*builders: Builder):
    return with_labels([c for builder in builders for c in read_contenders(builder.experiment)])


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


def test_written_twice_it_is_the_same_to_the_byte(make):
    builders = [make("ANML").results().jobs(), make("SANML").results().jobs()]

    def files() -> dict[str, bytes]:
        folder = compare(*builders).page.parent
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    assert files() == files()


class Tags(HTMLParser):
    """Collects links and images, and fails on an element that is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.open += [] if tag in VOID else [tag]
        self.addresses += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_its_links_lead_somewhere(make, tmp_path):
    builders = [make("ANML").results().jobs(), make("SANML").results().jobs()]
    for builder in builders:
        write_report(builder.experiment)
    inside = compare(*builders).page
    write_indexes(builders[0].experiment)
    outside = write_comparison([builder.experiment for builder in builders], tmp_path / "elsewhere").page
    for page in (inside, outside):
        tags = Tags()
        tags.feed(page.read_text(encoding="utf-8"))
        assert tags.open == []
        assert len(tags.addresses) >= 6
        assert [address for address in tags.addresses if not (page.parent / unquote(address)).is_file()] == []
        assert "http" not in page.read_text()


@pytest.mark.usefixtures("no_figures")
def test_names_are_escaped(make):
    builders = [make(group, project="a&b").results() for group in ('<img src=x onerror="1">', "plain")]
    assert "<img src=x" not in compare(*builders).page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_figures")
def test_the_index_links_to_the_comparison_and_says_when_it_is_old(make):
    builders = [make(group, project="it's").results().jobs() for group in ("ANML", "SANML")]
    for builder in builders:
        write_report(builder.experiment)
    index = builders[0].experiment.root.parent / "index.html"
    above = index.parent.parent / "index.html"
    assert "comparison.html" not in index.read_text()
    assert "python -m anml compare &#39;it&#39;" in index.read_text()
    page = compare(*builders).page
    write_indexes(builders[0].experiment)
    assert 'href="comparison.html"' in index.read_text()
    assert 'href="it%27s/comparison.html"' in above.read_text()
    assert "older than the newest report" not in index.read_text()
    os.utime(page, (1e9, 1e9))
    write_indexes(builders[0].experiment)
    assert "older than the newest report" in index.read_text()


@pytest.mark.usefixtures("no_figures")
def test_one_experiment_is_nothing_to_compare_in_an_index(make):
    builder = make("ANML").results().jobs()
    write_report(builder.experiment)
    assert "anml compare" not in (builder.experiment.root.parent / "index.html").read_text()


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


def test_reading_an_experiment_without_results(make):
    assert read_contenders(Experiment(make("ANML").experiment.root)) == []


def test_every_inner_rate_of_an_experiment_is_compared(make) -> None:
    several = make("ANML", changes={"inner_lrs": (0.1, 0.05)}).results()
    labels = [contender.label for contender in with_labels(read_contenders(several.experiment))]
    assert labels == ["ANML-inner-lr-0.05", "ANML-inner-lr-0.1"]


def test_an_inner_rate_that_lacks_results_leaves_the_others_complete(make) -> None:
    several = make("ANML", changes={"inner_lrs": (0.1, 0.05)}).results()
    several.experiment.result("olft", 600, "inner-lr-0.05").unlink()
    slow, fast = read_contenders(several.experiment)
    assert slow.missing == ("olft, after 600 episodes, inner_lr 0.05: no results",)
    assert fast.missing == ()


def test_an_inner_rate_without_any_results_is_told_by_the_others(make) -> None:
    several = make("ANML", changes={"inner_lrs": (0.1, 0.05)}).results()
    for path in several.experiment.results.glob("*inner-lr-0.05.csv"):
        path.unlink()
    [fast] = read_contenders(several.experiment)
    assert fast.model == "ANML-inner-lr-0.1"
    assert "olft, after 600 episodes, inner_lr 0.05: no results" in fast.missing
