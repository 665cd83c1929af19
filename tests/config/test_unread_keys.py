"""What the user sets and nothing reads is told: keys of another method, or of a setting that is given otherwise."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from anml.config.load import dump_config, load_eval_configs, load_train_config
from anml.config.methods import METHODS
from anml.config.notices import EVALUATION, TRAINING

BASE = "dataset: glyphs\nmodel: sanml\n"
IID = f"{BASE}train_method: iid\nepochs: 10\n"
QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yml"


@pytest.fixture
def eval_notices(write: Callable[[str, str], Path]) -> Callable[..., list[str]]:
    """Return what is told of an evaluation config."""
    return lambda text, *overrides: (
        load_eval_configs(write("eval.yml", f"dataset: glyphs\n{text}"), overrides)[0].notices
    )


@pytest.mark.parametrize("method", ["meta", "meta-first-order", "sequential_episodic"])
def test_a_rate_that_no_training_on_episodes_has_is_told_what_may_be_meant(load, method: str) -> None:
    assert load(f"{BASE}train_method: {method}\nlr: 0.01\n").notices == [
        f"train.yml:4: lr: has no effect on train_method: {method}; did you mean outer_lr or inner_lr?"
    ]


@pytest.mark.parametrize("method", METHODS)
def test_no_notice_means_a_key_that_nothing_reads_either(load, method: str) -> None:
    config = load(f"{BASE}train_method: {method}\nepochs: 1\n").config
    rows = [row for row in TRAINING if row.setting == "train_method" and row.holds(config)]
    unread = {key for row in rows for key in row.keys}
    hints = [hint.partition("did you mean")[2] for row in rows for hint in row.keys.values()]
    assert not {word for hint in hints for word in re.findall(r"\w+", hint)} & unread


@pytest.mark.parametrize(
    "setting",
    [
        "lr=0.1", "optimizer=SGD", "optimizer_args={momentum: 0.9}", "lr_scheduler=StepLR",
        "lr_scheduler_args={gamma: 0.1}", "lobo_rate=1", "lobo_size=10", "lobo_scale=each_row",
    ],
)  # fmt: skip
def test_keys_of_iid_training_are_told_on_episodes(load, setting: str) -> None:
    (notice,) = load(BASE, setting).notices
    assert notice.startswith(f"--set: {setting.partition('=')[0]}: has no effect on train_method: meta")


@pytest.mark.parametrize(
    "setting",
    [
        "inner_lr=0.1", "outer_lr=0.1", "inner_params=head", "outer_params=head", "lobotomize=true", "num_batches=5",
        "sample_method=single", "train_cycles=2", "remember_size=64", "remember_only=true", "engine=fast",
        "inner_optimizer=sgd", "inner_momentum=0.9",
    ],
)  # fmt: skip
def test_keys_of_episodes_are_told_on_iid_training(load, setting: str) -> None:
    (notice,) = load(IID, setting).notices
    assert notice.startswith(f"--set: {setting.partition('=')[0]}: has no effect on train_method: iid")


@pytest.mark.parametrize(
    ("setting", "missing"),
    [("lr_scheduler_args={gamma: 0.1}", "lr_scheduler"), ("lobo_rate=1", "lobo_size"), ("lobo_size=10", "lobo_rate")],
)
def test_a_key_that_needs_another_is_told_without_it(load, setting: str, missing: str) -> None:
    (notice,) = load(IID, setting).notices
    assert notice.startswith(f"--set: {setting.partition('=')[0]}: has no effect without {missing}")


@pytest.mark.parametrize(("given", "missing"), [("lobo_rate", "lobo_size"), ("lobo_size", "lobo_rate")])
def test_the_scale_of_zapping_is_told_where_nothing_is_zapped(load, given: str, missing: str) -> None:
    notices = load(IID, f"{given}=1", "lobo_scale=all_rows").notices
    assert [notice.partition(";")[0] for notice in notices] == [
        f"--set: {key}: has no effect without {missing}" for key in (given, "lobo_scale")
    ]


@pytest.mark.parametrize(
    "setting", ["lr=0.1", "lobo_rate=1\nlobo_size=10\nlobo_scale=each_row", "max_grad_norm=1.0", "ema_decay=0.9"]
)
def test_keys_of_the_method_are_not_told(load, setting: str) -> None:
    assert load(IID, *setting.splitlines()).notices == []


@pytest.mark.parametrize("key", ["inner_lr", "seed"])
def test_one_value_beside_several_is_told(load, key: str) -> None:
    (notice,) = load(f"{BASE}{key}: 1\n{key}s: [1, 2]\n").notices
    assert notice.startswith(f"train.yml:3: {key}: has no effect beside {key}s; ")


@pytest.mark.parametrize("setting", ["epochs: 5", "batch_size: 64"])
def test_learning_in_sequence_has_neither_epochs_nor_batches(eval_notices, setting: str) -> None:
    (notice,) = eval_notices(f"{setting}\n")
    assert notice.startswith(
        f"eval.yml:2: {setting.partition(':')[0]}: has no effect on eval_method: sequential, which "
    )


@pytest.mark.parametrize(
    "setting",
    [
        "lr: 0.1", "opt_params: all", "adam_betas: [0.0, 0.9]", "epochs: 5", "batch_size: 64", "eval_freq: 1",
        "reinit_method: zero",
    ],
)  # fmt: skip
def test_what_learning_needs_is_told_where_nothing_learns(eval_notices, setting: str) -> None:
    (notice,) = eval_notices(f"{setting}\neval_method: zero_shot\n")
    assert notice.startswith(f"eval.yml:2: {setting.partition(':')[0]}: has no effect on eval_method: zero_shot, ")


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("ncm", "lr: 0.1"), ("ncm", "optimizer: SGD"), ("ncm", "shrinkage: 0.5"), ("slda", "metric: cosine"),
        ("slda", "batch_size: 4"), ("knn", "reinit_method: zero"), ("sequential", "replay_size: 5"),
        ("sequential", "feature_map: hellinger"),
    ],
)  # fmt: skip
def test_keys_of_other_protocols_are_told(eval_notices, method: str, setting: str) -> None:
    (notice,) = eval_notices(f"{setting}\neval_method: {method}\n")
    assert notice.startswith(f"eval.yml:2: {setting.partition(':')[0]}: has no effect on eval_method: {method}")


@pytest.mark.parametrize(
    "text",
    [
        "eval_method: ncm\nmetric: cosine\neval_freq: 3", "eval_method: replay\nreplay_size: 5\nbatch_size: 4",
        "optimizer: SGD\noptimizer_args: {momentum: 0.9}\nlr_scheduler: StepLR\nlr_scheduler_args: {step_size: 9}",
    ],
)  # fmt: skip
def test_keys_of_the_protocol_are_not_told(eval_notices, text: str) -> None:
    assert eval_notices(f"{text}\n") == []


def test_betas_are_for_adam(eval_notices) -> None:
    (notice,) = eval_notices("optimizer: SGD\nadam_betas: [0.0, 0.9]\n")
    assert notice.startswith("eval.yml:3: adam_betas: has no effect on optimizer: SGD; ")


def test_support_examples_are_told_where_nothing_is_solved(eval_notices) -> None:
    assert eval_notices("init_size: 10\n") == [
        "eval.yml:2: init_size: has no effect on reinit_method: kaiming; it is for least squares: lstsq, or "
        "eval_method: zero_shot"
    ]


@pytest.mark.parametrize("start", ["eval_method: zero_shot", "reinit_method: lstsq"])
def test_support_examples_of_least_squares_are_used(eval_notices, start: str) -> None:
    assert eval_notices(f"init_size: 10\n{start}\n") == []


def test_a_shuffled_evaluation_uses_all_that_learning_needs(eval_notices) -> None:
    text = "eval_method: iid\nepochs: 5\nbatch_size: 64\nlr: 0.1\nadam_betas: [0.0, 0.9]\nopt_params: all\n"
    assert eval_notices(f"{text}eval_freq: 1\nreinit_method: zero\n") == []


def test_a_flavor_is_told_by_its_name(load) -> None:
    assert load(BASE + "eval:\n  - a: {epochs: 5, runs: 1}\n").notices == [
        "train.yml:4: eval.a.epochs: has no effect on eval_method: sequential, which sees every example once; it is "
        "for iid"
    ]


@pytest.mark.parametrize("text", ["epochs: 1\nbatch_size: 1\n", "eval_method: zero_shot\nreinit_method: lstsq\n"])
def test_a_value_that_asks_for_what_happens_anyway_is_not_told(eval_notices, text: str) -> None:
    assert eval_notices(text) == []


def test_keys_of_a_base_are_not_told(write) -> None:
    write("base.yml", f"{BASE}inner_lr: 0.3\nremember_size: 3\n")
    path = write("train.yml", "<<: !include base.yml\ntrain_method: iid\nepochs: 10\n")
    assert load_train_config(path).notices == []


def test_a_key_beside_a_base_is_told(write) -> None:
    write("base.yml", IID)
    path = write("train.yml", "<<: !include base.yml\ninner_lr: 0.3\n")
    assert load_train_config(path).notices == [
        "train.yml:2: inner_lr: has no effect on train_method: iid; did you mean lr?"
    ]


def test_keys_of_an_alias_are_not_told(load) -> None:
    flavors = "  - a: &a {eval_method: iid, epochs: 5, classes: 3}\n  - b: {<<: *a, eval_method: sequential}\n"
    assert load(f"{BASE}eval:\n{flavors}").notices == []


def test_keys_of_an_included_flavor_are_not_told(write) -> None:
    write("flavor.yml", "epochs: 5\n")
    assert load_train_config(write("train.yml", f"{BASE}eval:\n  - a: !include flavor.yml\n")).notices == []


def test_a_dotted_key_is_told(load) -> None:
    (notice,) = load(f"{BASE}eval: {{a: {{runs: 1}}}}\neval.a.epochs: 5\n").notices
    assert notice.startswith("train.yml:4: eval.a.epochs: has no effect")


def test_a_setting_on_the_command_line_leaves_keys_of_the_file_idle_without_a_word(load) -> None:
    assert load(f"{BASE}inner_lr: 0.3\n", "train_method=iid", "epochs=10").notices == []


def test_a_key_on_the_command_line_is_told_whatever_the_file_says(load) -> None:
    assert load(f"{BASE}inner_lrs: [0.1, 0.2]\n", "inner_lr=0.3").notices == [
        "--set: inner_lr: has no effect beside inner_lrs; name all rates there, or remove inner_lrs"
    ]


def test_defaults_are_not_told(load) -> None:
    assert load(BASE).notices == load(IID).notices == []


def test_a_key_without_a_value_is_not_told(load) -> None:
    assert load(f"{BASE}lr_scheduler:\n").notices == []


def test_the_config_of_an_experiment_says_everything_and_is_not_told(write) -> None:
    path = write("config.yml", dump_config(load_train_config(QUICKSTART).config))
    assert load_train_config(path).notices == []


def test_an_override_of_the_config_of_an_experiment_is_told(write) -> None:
    path = write("config.yml", dump_config(load_train_config(QUICKSTART).config))
    (notice,) = load_train_config(path, ["lr=0.1"]).notices
    assert notice.startswith("--set: lr: has no effect")


@pytest.mark.parametrize("row", [*TRAINING, *EVALUATION], ids=lambda row: row.where)
def test_values_that_are_not_told_are_of_keys_that_would_be(row) -> None:
    assert set(row.anyway) <= set(row.keys)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (("train_method=prototypes", "vary={remember_size: [4, 8]}"), "remember_size"),
        (("train_method=prototypes", "vary=[{inner_lr: 0.1}, {inner_lr: 0.2}]"), "inner_lr"),
        (("vary={lobo_classes: [all, first]}",), "lobo_classes"),
        (("sample_method=sequential", "tasks=2", "num_batches=3", "vary={lobo_classes: [all, first]}"), "lobo_classes"),
        (("vary={lr: [0.1, 0.2], outer_lr: [0.1, 0.2]}",), "lr"),
    ],
)
def test_trainings_that_differ_in_nothing_are_told(load, settings: tuple[str, ...], key: str) -> None:
    notices = [notice for notice in load(BASE, *settings).notices if ": vary: " in notice]
    assert [notice.split(": ")[2].split()[0] for notice in notices] == [key]
    assert notices[0].endswith("its values make no difference")


def test_a_key_that_one_of_the_trainings_reads_may_vary(load) -> None:
    assert (
        load(BASE, "vary=[{sample_method: uniform, num_batches: 3, lobo_classes: first}, {lobo_classes: all}]").notices
        == []
    )


@pytest.mark.parametrize(
    ("setting", "count"), [("engine=graph", 1), ("engine=native", 0), ("tasks=3", 1), ("lobo_classes=first", 1)]
)
def test_keys_of_an_inner_loop_are_told_once_where_there_is_none(load, setting: str, count: int) -> None:
    notices = load(BASE, "train_method=gemcl", setting).notices
    assert [notice.split(": ")[1] for notice in notices] == [setting.partition("=")[0]] * count
