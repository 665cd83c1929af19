"""Every file of configs/ is what its name says."""

from pathlib import Path

import pytest

from anml.config.load import load_eval_config, load_train_config
from anml.config.yaml_source import read_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TRAININGS = sorted([*CONFIGS.glob("train-*.yml"), CONFIGS / "quickstart.yml"])
EVALUATIONS = sorted(CONFIGS.glob("eval-*.yml"))
LISTS = [CONFIGS / "learning-rates.yml", CONFIGS / "omni-flavors.yml"]


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
def test_every_training_config_loads_without_a_notice(path: Path) -> None:
    assert load_train_config(path).notices == []


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
def test_every_training_is_evaluated(path: Path) -> None:
    assert load_train_config(path).config.eval


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_every_evaluation_config_loads_without_a_notice(path: Path) -> None:
    assert load_eval_config(path).notices == []


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_lists_that_others_include_hold_something(path: Path) -> None:
    assert isinstance(read_yaml(path).data, list)


def test_every_config_is_covered() -> None:
    assert set(CONFIGS.glob("*.yml")) == {*TRAININGS, *EVALUATIONS, *LISTS}


def test_omniglot_models_are_evaluated_in_five_flavors() -> None:
    config = load_train_config(CONFIGS / "train-omni-sanml.yml").config
    methods = {name: (flavor.eval_method, flavor.opt_params) for name, flavor in config.eval.items()}
    assert methods == {
        "no-sgd": ("zero_shot", ("head",)),
        "olft": ("sequential", ("head",)),
        "unfrozen": ("sequential", ("all",)),
        "olft-oracle": ("iid", ("head",)),
        "unfrozen-oracle": ("iid", ("all",)),
    }
