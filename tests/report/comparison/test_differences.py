"""What tells the trainings of a comparison apart is said, in as few words as a reader needs."""

from typing import Any

import pytest

from anml.config.load import load_train_config
from anml.config.training import TrainConfig
from anml.report.comparison import differences as module
from anml.report.comparison.differences import choices
from anml.report.comparison.model import with_choices
from tests.report.comparison.test_comparison import CONFIGS
from tests.report.conftest import cells, compare, contenders_of
from tests.report.test_page import words


def config(**changes: Any) -> TrainConfig:
    usual: dict[str, Any] = {"dataset": "omniglot", "model": "sanml"}
    return TrainConfig(**usual | changes)


@pytest.mark.parametrize(
    ("changes", "plain", "other"),
    [
        ({"outer_lr": 0.003}, {"outer_lr": "0.001"}, {"outer_lr": "0.003"}),
        ({"outer_lr": 1.0}, {"outer_lr": "0.001"}, {"outer_lr": "1"}),
        ({"remember_size": 32}, {"remember_size": "64"}, {"remember_size": "32"}),
        ({"lobotomize": False}, {"lobotomize": "true"}, {"lobotomize": "false"}),
        ({"ema_decay": 0.999}, {"ema_decay": "null"}, {"ema_decay": "0.999"}),
        ({"train_classes": 664}, {"train_classes": "964"}, {"train_classes": "664"}),
        ({"model_args": {"rln_chs": 64}}, {"model_args.rln_chs": "256"}, {"model_args.rln_chs": "64"}),
        ({"inner_params": ("rln", "fc")}, {"inner_params": "all"}, {"inner_params": "[fc, rln]"}),
        (
            {"outer_lr_scheduler": "StepLR", "outer_lr_scheduler_args": {"step_size": 9}},
            {"outer_lr_scheduler": "null"}, {"outer_lr_scheduler": "StepLR (step_size 9)"},
        ),
        ({"model": "anml"}, {"model": "sanml"}, {"model": "anml"}),
    ],
    ids=lambda value: ", ".join(value),
)  # fmt: skip
def test_a_choice_is_told_as_it_is_written(changes, plain, other):
    assert choices([config(model_name="x"), config(model_name="y", **changes)]) == [plain, other]


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": "reference", "device": "cpu", "data_path": "/data", "group": "x", "log_freq": 1},
        {"seed": 7, "epochs": 10, "eval_steps": (5,), "im_size": 84, "val_size": 3},
        {"model_name": "other", "output_layer": "fc"},
        {"model_args": {"rln_chs": 256, "num_classes": 2000}, "num_batches": 20, "train_classes": 964},
        {"lr": 0.1, "optimizer": "SGD", "lobo_rate": 3},  # Of i.i.d. training.
    ],
    ids=["machine", "said elsewhere", "names", "as without", "no part"],
)
def test_what_is_no_choice_is_not_told(changes):
    assert choices([config(), config(**changes)]) == [{}, {}]


def test_a_model_that_its_name_tells_is_not_told_again():
    assert choices([config(), config(model="anml", model_name="ANML-small")]) == [{}, {}]


def test_what_follows_from_another_key_is_not_told():
    """Fewer examples make a shorter inner loop."""
    assert choices([config(), config(train_size=15)]) == [{"train_size": "20"}, {"train_size": "15"}]


def test_a_key_is_compared_where_it_plays_a_part():
    iid = config(train_method="iid", batch_size=256)
    assert choices([config(), config(outer_lr=0.003), iid]) == [
        {"train_method": "meta", "outer_lr": "0.001"},
        {"train_method": "meta", "outer_lr": "0.003"},
        {"train_method": "iid"},
    ]


def test_the_scale_of_zapping_is_compared_among_trainings_that_zap():
    zapped = {"train_method": "iid", "batch_size": 256, "lobo_rate": 1, "lobo_size": 9}
    scales = [config(**zapped, lobo_scale=scale) for scale in ("each_row", "all_rows")]
    assert choices(scales) == [{"lobo_scale": "each_row"}, {"lobo_scale": "all_rows"}]
    found = choices([config(train_method="iid", batch_size=256), config(**zapped, lobo_scale="all_rows")])
    assert [list(told) for told in found] == [["lobo_rate", "lobo_size"]] * 2


def test_an_unreadable_config_differs_in_nothing():
    assert choices([config(), None, config(outer_lr=0.003)]) == [{"outer_lr": "0.001"}, {}, {"outer_lr": "0.003"}]


def test_the_experiments_of_the_results_differ_in_few_words():
    names = ("anml", "sanml", "oml", "iid-anml", "iid-sanml", "seqep-sanml")
    found = choices([load_train_config(CONFIGS / f"results/{name}.yml").config for name in names])
    assert max(map(len, found)) <= 5


def test_every_training_key_is_told_or_left_out_for_a_reason():
    told = {
        *module._OF_ALL, *module._OF_EPISODES, *module._OF_FEW_SHOT, *module._OF_IID, *module._OF_ZAPPING,
        *module._OF_UPDATES, *module._OF_ONE_MODEL,
        "outer_lr_scheduler_args", "lr_scheduler_args", "optimizer_args", "model_args",
    }  # fmt: skip
    machine = {"project", "entity", "group", "cluster", "data_path", "device", "engine", "deterministic"}
    record = {"on_divergence", "val_size", "val_examples", "save_freq", "log_freq", "model_name", "output_layer"}
    said_elsewhere = {
        "seed", "seeds", "epochs", "max_steps", "eval_steps", "eval_untrained", "eval", "im_size", "class_split",
        "allow_incomplete", "eval_checkpoints", "inner_lrs", "vary", "vary_later", "train_together", "reuse",
    }  # fmt: skip
    assert told | machine | record | said_elsewhere == set(TrainConfig.model_fields)
    assert not told & (machine | record | said_elsewhere)


def test_models_of_several_inner_rates_differ_in_their_own(make):
    entries = with_choices(contenders_of(make("a", changes={"inner_lrs": (0.1, 0.05)}).results()))
    assert [entry.differs_in for entry in entries] == [["inner_lr 0.05"], ["inner_lr 0.1"]]


@pytest.mark.usefixtures("no_figures")
def test_choices_stand_beside_what_was_trained_and_beside_the_accuracies(make):
    comparison = compare(make("a").results(), make("b", changes={"outer_lr": 0.003}).results())
    page = words(comparison.page.read_text(encoding="utf-8"))
    assert "4 runs each. Differs in outer_lr 0.003 after" in page
    assert "b outer_lr 0.003 0." in page


@pytest.mark.usefixtures("no_figures")
def test_a_row_of_accuracies_counts_the_choices_that_it_has_no_room_for(make):
    many = {"outer_lr": 0.003, "inner_lr": 0.05, "remember_size": 9, "lobotomize": False, "ema_decay": 0.9}
    many |= {"max_grad_norm": 10.0, "model_args": {"rln_chs": 64}}
    html = compare(make("a").results(), make("b", changes=many).results()).page.read_text(encoding="utf-8")
    row = "inner_lr 0.05 outer_lr 0.003 remember_size 9 lobotomize false ema_decay 0.9 and 2 more, at the top 0."
    assert row in words(html)
    assert "ema_decay <b>0.9</b>, max_grad_norm <b>10</b>, model_args.rln_chs <b>64</b>" in html


@pytest.mark.usefixtures("no_figures")
def test_the_text_has_a_table_of_the_choices(make):
    changes = {"outer_lr": 0.003}, {"outer_lr": 0.003, "train_method": "iid"}
    text = compare(make("a").results(), *(make(f"b{n}", changes=c).results() for n, c in enumerate(changes))).text
    below = text.splitlines()[text.splitlines().index("What the trainings differ in") + 1 :]
    assert [line.split() for line in below[:5]] == [
        ["experiment", "train_method", "outer_lr"], ["a", "meta", "0.001"], ["b0", "meta", "0.003"], ["b1", "iid", "-"],
        [],
    ]  # fmt: skip


@pytest.mark.usefixtures("no_figures")
def test_the_csv_says_what_an_experiment_differs_in(make):
    comparison = compare(make("a").results(), make("b", changes={"outer_lr": 0.003}).results())
    found = {(line["differs_in"], line["outer_lr"]) for line in cells(comparison, group="b")}
    assert found == {("outer_lr 0.003", "0.003")}


@pytest.mark.usefixtures("no_figures")
def test_where_nothing_differs_nothing_is_said(make):
    comparison = compare(make("a").results(), make("b").results())
    assert "differ in\n" not in comparison.text
    assert "Differs in" not in comparison.page.read_text(encoding="utf-8")
