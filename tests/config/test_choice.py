"""Choices on held-out classes: the flavor that tries the candidates, and what is refused."""

import pytest

from anml.config.load import dump_config, load_eval_configs, load_train_config
from anml.errors import ConfigError

CHOOSES = """dataset: glyphs
model: sanml
train_classes: 664
eval:
  a:
    choose: {on: validation, by: [lr]}
    classes: [5, 600]
    lr: [0.1, 0.01]
"""


def test_a_choice_adds_the_same_evaluation_on_held_out_classes(load, write) -> None:
    config = load(CHOOSES, "data_path=here").config
    tried, chosen = config.eval["a-validation"], config.eval["a"]
    assert list(config.eval) == ["a-validation", "a"]
    assert (tried.split, tried.classes, tried.lr) == ("validation", (5, 300), (0.1, 0.01))
    assert chosen.choose is not None
    assert chosen.choose.flavor == "a-validation"
    assert load_train_config(write("again.yml", dump_config(config))).config == config


def test_without_held_out_classes_the_message_says_which_key_to_add(problems) -> None:
    assert problems(CHOOSES.replace("train_classes: 664\n", "")) == [
        "train.yml:5: eval.a.choose: validation takes the background classes that training leaves out, but it uses all "
        "964; set train_classes to fewer"
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("eval.a.choose.by=[checkpoint]", "add lr to by"),
        ("eval.a.eval_method=zero_shot", "no learning rate"),
        ("eval.a.split=validation", "held out already"),
        ("eval.a.dataset=omniglot", "of glyphs"),
        ("eval.a.choose.flavor=b", "no flavor with split: validation"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(problems, override: str, said: str) -> None:
    assert any("eval.a.choose: " in problem and said in problem for problem in problems(CHOOSES, override))


def test_a_choice_by_hand_is_refused(write) -> None:
    with pytest.raises(ConfigError, match=r"eval.yml:2: choose: is for the evaluations of an experiment"):
        load_eval_configs(write("eval.yml", "dataset: glyphs\nchoose: {on: validation}\n"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("eval.a.until={half_width: 0.01, at_most: 10}", "eval.a.until: the first runs, 10 (runs)"),
        ("eval.a.lr=0.1", "eval.a.race: is between several rates"),
    ],
)
def test_more_runs_and_a_race_that_cannot_be_are_refused(problems, override: str, said: str) -> None:
    text = "dataset: glyphs\nmodel: sanml\neval: {a: {classes: 5, lr: [0.1, 0.01], race: true}}\n"
    (problem,) = problems(text, override)
    assert said in problem
