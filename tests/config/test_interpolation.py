"""`${key}` in a config: the value of another key, and nothing else."""

from pathlib import Path

import pytest

from anml.config.load import dump_config, load_eval_configs, load_train_config
from anml.errors import ConfigError

BASE = """\
dataset: glyphs
model: sanml
inner_lr: 0.05
outer_lr: ${inner_lr}
model_args: {rln_chs: 16}
eval:
- a: {classes: [10], lr: '${outer_lr}', runs: 3}
- b: {classes: '${model_args.rln_chs}', runs: '${eval.a.runs}', lr: '${eval.a.lr}'}
- c: ${eval.b}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "train.yml"
    path.write_text(text)
    return path


def test_a_value_may_be_that_of_another_key_which_may_refer_on(tmp_path: Path) -> None:
    config = load_train_config(write(tmp_path, BASE)).config
    assert (config.outer_lr, config.eval["a"].lr, config.eval["b"].lr) == (0.05, (0.05,), (0.05,))
    assert (config.eval["b"].classes, config.eval["b"].runs) == ((16,), 3)
    assert config.eval["c"] == config.eval["b"]
    assert "$" not in dump_config(config)


def test_what_the_command_line_sets_counts_for_what_refers_to_it(tmp_path: Path) -> None:
    config = load_train_config(write(tmp_path, BASE), ["inner_lr=0.2", "eval.b.lr=${inner_lr}"]).config
    assert (config.outer_lr, config.eval["a"].lr, config.eval["b"].lr) == (0.2, (0.2,), (0.2,))


def test_an_evaluation_refers_to_its_own_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "dataset: glyphs\ntrain_examples: [3, 5]\ntest_examples: ${train_examples}\n")
    assert load_eval_configs(path)[0].config.test_examples == (3, 5)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("outer_lr: ${inner_lrr}", ["train.yml:4", "inner_lrr", "inner_lr'"]),
        ("outer_lr: ${max_grad_norm}", ["train.yml:4", "max_grad_norm"]),
        ("outer_lr: ${eval.a.lr}", ["train.yml:4", "outer_lr -> eval.a.lr -> outer_lr"]),
        ("outer_lr: ${outer_lr}", ["train.yml:4", "itself"]),
        ("outer_lr: 2 * ${inner_lr}", ["train.yml:4", "whole value"]),
        ("model_name: ${model}-${seed}", ["train.yml:4", "whole value"]),
        ("eval_steps: [1, '${eval_steps}']", ["train.yml:4", "itself"]),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, line: str, told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_train_config(write(tmp_path, BASE.replace("outer_lr: ${inner_lr}", line)))
    assert [words for words in told if words not in str(caught.value)] == []


@pytest.mark.parametrize("line", ["vary: {inner_lr: [0.1, 0.2]}", "inner_lrs: [0.1, 0.2]", "vary: [{inner_lr: 0.1}]"])
def test_what_varies_is_not_referred_to(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.yml:4: outer_lr: refers to inner_lr, which varies"):
        load_train_config(write(tmp_path, f"{BASE}{line}\n"))
