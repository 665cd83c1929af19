"""Several experiments under the same evaluation: what is compared with what, and with which numbers."""

from pathlib import Path

import pytest

from anml.atomic import write_text
from anml.config.load import dump_config, load_train_config
from anml.errors import ConfigError
from anml.report.comparison.differences import align, evaluation_of
from anml.report.write import write_report
from tests.report.conftest import cells, compare, evaluations, lines
from tests.report.test_page import words

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


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


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("option", "plain", "other"),
    [
        ({"adam_betas": (0.0, 0.999)}, "adam_betas: 0.9, 0.999", "adam_betas: 0.0, 0.999"),
        ({"reinit_method": "zero"}, "reinit_method: kaiming", "reinit_method: zero"),
    ],
    ids=str,
)
def test_what_is_learned_by_other_options_is_another_evaluation(make, option, plain: str, other: str):
    one, two = make("a"), make("b")
    changed = {name: flavor.model_copy(update=option) for name, flavor in two.config.eval.items()}
    two.config = two.config.model_copy(update={"eval": changed})
    write_text(two.experiment.config_file, dump_config(two.config))
    text = compare(one.results(), two.results()).text
    missing = [
        f"{flavor} ({words})" for flavor in ("olft", "olft-oracle") for words in (plain, other)
        if f"{flavor} ({words})" not in text
    ]  # fmt: skip
    assert missing == []
    assert "no-sgd (" not in text


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
