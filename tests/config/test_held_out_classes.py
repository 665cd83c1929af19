"""Evaluation on held-out classes: what `split: validation` takes, and what is refused."""

import pytest

HELD_OUT = "dataset: glyphs\nmodel: sanml\ntrain_classes: 664\neval:\n  a:\n    split: validation\n    classes: 300\n"


def test_held_out_background_classes_may_be_evaluated(load) -> None:
    config = load(HELD_OUT).config
    request = config.eval_request(config.eval["a"])
    assert (request.split, request.first_class, request.name) == ("train", 664, "glyphs-validation")
    assert request._replace(first_class=0) == config.train_request


def test_the_evaluation_classes_are_what_is_meant_unless_something_else_is_said(load) -> None:
    for split in ("eval", "null"):
        config = load(HELD_OUT, f"eval.a.split={split}").config
        request = config.eval_request(config.eval["a"])
        assert (request.split, request.first_class, request.name) == ("eval", 0, "glyphs")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train_classes=964",
            "train.yml:6: eval.a.split: validation takes the background classes that training leaves out, but it uses "
            "all 964; set train_classes to fewer",
        ),
        (
            "train_classes=665",
            "train.yml:7: eval.a.classes: glyphs has 299 background classes for validation (train_classes leaves so "
            "many), found 300",
        ),
        (
            "eval.a.dataset=omniglot",
            "--set: eval.a.dataset: split: validation takes background classes of the training, of glyphs; "
            "leave dataset out",
        ),
        (
            "eval.a.data_path=elsewhere",
            "--set: eval.a.data_path: split: validation takes background classes of the training, from its data_path; "
            "leave this one out",
        ),
        (
            "eval.a.class_split=0.5",
            "--set: eval.a.class_split: is for evaluation classes; split: validation takes those that train_classes "
            "leaves out; remove it",
        ),
        (
            "eval.a.train_examples=16",
            "--set: eval.a.train_examples: train_examples + test_examples = 21, but a class of glyphs has 20 examples",
        ),
        (
            "eval.a.split=held-out",
            '--set: eval.a.split: "held-out" is not allowed; allowed: eval, validation',
        ),
    ],
)
def test_a_validation_that_cannot_be_is_refused(problems, override: str, message: str) -> None:
    assert problems(HELD_OUT, override) == [message]


def test_a_validation_needs_train_classes(problems) -> None:
    assert problems(HELD_OUT.replace("train_classes: 664\n", "")) == [
        "train.yml:5: eval.a.split: validation takes the background classes that training leaves out, but it uses all "
        "964; set train_classes to fewer"
    ]


def test_validation_takes_the_copy_that_training_takes(load) -> None:
    config = load(HELD_OUT, "eval.a.allow_incomplete=true").config
    assert config.eval_request(config.eval["a"])._replace(first_class=0) == config.train_request


def test_validation_uses_all_examples_of_a_class(load) -> None:
    assert load(HELD_OUT, "train_size=10", "imgs_per_class=12").config.eval["a"].train_examples == (15,)
