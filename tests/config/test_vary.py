"""`vary`: which trainings it makes, what they are called, and what is refused before anything is submitted."""

from collections.abc import Callable

import pytest

from anml.config.load import LoadedTrain, dump_config, load_train_config
from anml.jobs.plan import make_plan

Load = Callable[..., LoadedTrain]
Problems = Callable[..., list[str]]

BASE = """
dataset: glyphs
model: sanml
epochs: 4
eval: {olft: {classes: [5]}}
"""


def tags(loaded: LoadedTrain) -> list[str]:
    return [training.tag for training in loaded.config.trainings]


def test_a_product_trains_every_combination_under_names_of_what_varies(load: Load) -> None:
    loaded = load(f"{BASE}vary:\n  outer_lr: [1, 0.003]\n  model_args.rln_chs: [8, 16]\n  seed: [1, 2]\n")
    assert tags(loaded) == [
        f"outer-lr-{rate}-rln-chs-{width}-seed-{seed}" for rate in (1.0, 0.003) for width in (8, 16) for seed in (1, 2)
    ]
    last = loaded.config.for_training(loaded.config.trainings[-1])
    assert (last.outer_lr, last.model_args, last.seed) == (0.003, {"rln_chs": 16}, 2)
    assert last.display_name == "sanml-outer-lr-0.003-rln-chs-16"


def test_points_are_trained_as_they_are_listed(load: Load) -> None:
    loaded = load(f"{BASE}vary:\n- {{outer_lr: 0.003, lobotomize: false}}\n- {{outer_lr: 0.001}}\n")
    assert tags(loaded) == ["outer-lr-0.003-lobotomize-false", "outer-lr-0.001"]


@pytest.mark.parametrize(
    ("vary", "key", "values", "names"),
    [
        ("{ema_decay: [null, 0.9]}", "ema_decay", [None, 0.9], ["ema-decay-null", "ema-decay-0.9"]),
        ("{inner_params: [[rln, fc], fc]}", "inner_params", [("rln", "fc"), ("fc",)],
         ["inner-params-rln-fc", "inner-params-fc"]),
        ("[{max_grad_norm: null}, {max_grad_norm: 1}]", "max_grad_norm", [None, 1.0],
         ["max-grad-norm-null", "max-grad-norm-1.0"]),
        ("{train_method: [meta, reptile]}", "train_method", ["meta", "reptile"],
         ["train-method-meta", "train-method-reptile"]),
        ("{few_shot.ways: [5, 10]}", "few_shot.ways", [5, 10], ["ways-5", "ways-10"]),
        ("{outer_lr_scheduler: [StepLR], outer_lr_scheduler_args.gamma: [0.5, 0.9]}", "outer_lr_scheduler_args.gamma",
         [0.5, 0.9], ["outer-lr-scheduler-StepLR-gamma-0.5", "outer-lr-scheduler-StepLR-gamma-0.9"]),
        ("[{lobotomize: false}, {outer_lr: 0.1}]", "lobotomize", [False, True], ["lobotomize-false", "outer-lr-0.1"]),
    ],
)  # fmt: skip
def test_any_key_varies_over_any_values(
    load: Load, write: Callable, vary: str, key: str, values: list, names: list[str]
) -> None:
    config = load(f"{BASE}vary: {vary}\n").config
    assert [config.values_of(training, [key])[key] for training in config.trainings] == values
    assert [training.tag for training in config.trainings] == names
    assert load_train_config(write("config.yml", dump_config(config))).config == config


def test_a_written_config_has_the_same_trainings(load: Load, write: Callable) -> None:
    config = load(f"{BASE}vary: {{outer_lr: [1, 2], model_args: {{rln_chs: [8, 16]}}}}\n").config
    assert load_train_config(write("config.yml", dump_config(config))).config == config


def test_jobs_name_their_training(load: Load) -> None:
    plan = make_plan(load(f"{BASE}vary: {{outer_lr: [0.1, 0.2]}}\n").config)
    assert plan.job("train-step-000004-outer-lr-0.2").argv[-2:] == ("--training", "outer-lr-0.2")
    assert plan.job("olft-step-000004-outer-lr-0.2").argv[-2:] == ("--training", "outer-lr-0.2")


def test_trainings_of_one_size_are_one_job_together(load: Load) -> None:
    vary = "vary: {outer_lr: [0.1, 0.2], model_args.rln_chs: [8, 16]}\ntrain_together: true\n"
    plan = make_plan(load(BASE + vary).config)
    trained = [job.name for job in plan.jobs if job.kind == "train"]
    assert trained == ["train-step-000004-rln-chs-8", "train-step-000004-rln-chs-16"]
    assert plan.job("olft-step-000004-outer-lr-0.2-rln-chs-16").after == ("train-step-000004-rln-chs-16",)


@pytest.mark.parametrize(
    ("vary", "told"),
    [
        ("{outer_lr: [0.1, -1]}", ["outer_lr", "-1", "(of the training with outer_lr -1)"]),
        ("{model_args.rln_chs: [8, none]}", ["model_args.rln_chs", "none"]),
        ("\n  seed: [1, 2]\n  inner_lr: [0.1, 0.2]\n  model_args:\n    rln_chs: [8, -1]",
         ["train.yml:10: model_args.rln_chs", "(of 2 trainings, the first with inner_lr 0.1, rln_chs -1)"]),
        ("{train_method: [meta, iid]}", ["train.yml:6: vary: train_method"]),
        ("5", ["vary: must be a mapping (key: value), found 5"]),
        ("{model_args.num_classes: [4000, 3]}", ["eval.olft.classes", "3 outputs", "num_classes 3"]),
        ("{outer_lr: [0.1, 0.1]}", ["outer-lr-0.1"]),
        ("{dataset: [omniglot]}", ["dataset is the same for all trainings"]),
        ("{colour: [1]}", ["no key 'colour'"]),
        ("{seed: [1]}\nseeds: [1]", ["seeds", "given twice"]),
        ("[{seed: 1}, {outer_lr: 0.1}]\nseeds: [1, 2]", ["seed varies by seeds too"]),
        ("[]", ["vary", "at least one"]),
    ],
)  # fmt: skip
def test_mistakes_name_the_file_the_key_and_the_training(problems: Problems, vary: str, told: list[str]) -> None:
    text = "\n".join(problems(f"{BASE}vary: {vary}\n"))
    assert "train.yml:" in text
    assert [words for words in told if words not in text] == []


def test_a_list_for_one_value_is_answered_with_vary(problems: Problems) -> None:
    (text,) = problems(BASE, "outer_lr=[0.001, 0.003]")
    assert "vary: {outer_lr: [0.001, 0.003]}" in text
