"""Every job of an experiment, as small as it gets."""

from pathlib import Path

import pytest

from anml.config.load import dump_config, load_train_config
from anml.config.smoke_test import smoke_test
from anml.config.training import TrainConfig
from anml.evaluate import learner
from anml.meta.static_update import _WARM_UPS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def small() -> TrainConfig:
    return smoke_test(load_train_config(CONFIGS / "train-omni-anml.yml").config)


def test_every_flavor_stays(small: TrainConfig) -> None:
    assert list(small.eval) == ["no-sgd", "olft", "unfrozen", "olft-oracle", "unfrozen-oracle"]


def test_two_steps_make_one_checkpoint(small: TrainConfig) -> None:
    assert (small.total_steps, small.checkpoint_steps) == (2, (2,))


def test_on_a_gpu_the_engine_is_the_real_one_and_its_graph_is_captured_and_replayed() -> None:
    small = smoke_test(load_train_config(CONFIGS / "train-omni-anml.yml").config, on_gpu=True)
    assert small.engine == "auto"
    assert small.total_steps > _WARM_UPS + 1
    assert small.checkpoint_steps == (small.total_steps,)


def test_on_a_gpu_an_output_layer_learns_often_enough_to_be_captured() -> None:
    """It learns from one scoring to the next in one call."""
    flavor = smoke_test(load_train_config(CONFIGS / "train-omni-anml.yml").config, on_gpu=True).eval["olft"]
    assert len(flavor.scored(*flavor.classes)) > learner._WARM_UPS


def test_two_rates_and_one_run_of_two_classes_are_left(small: TrainConfig) -> None:
    assert small.eval["olft"].count_trajectories() == 2
    assert small.eval["olft"].classes == (2,)


def test_what_an_evaluation_is_stays(small: TrainConfig) -> None:
    flavor = small.eval["unfrozen-oracle"]
    assert (flavor.eval_method, flavor.opt_params) == ("iid", ("all",))


def test_outputs_stay_as_many_as_there_are_classes(small: TrainConfig) -> None:
    assert small.model_record.num_classes == 1000


def test_layers_become_narrow(small: TrainConfig) -> None:
    assert small.model_args["rln_chs"] < 16


def test_layers_inside_a_classifier_become_narrow(load) -> None:
    args = "{encoder: convnet, encoder_args: {num_blocks: 2, num_filters: [64, 64]}, classifier: mlp-classifier}"
    config = smoke_test(load(f"dataset: glyphs\nmodel: classifier\nmodel_args: {args}\n").config)
    assert config.model_args["encoder_args"]["num_filters"] == [8, 8]


def test_stages_of_a_residual_network_become_narrow(load) -> None:
    args = "{encoder: resnet12, encoder_args: {channels: [64, 160, 320, 640]}}"
    config = smoke_test(load(f"dataset: glyphs\nmodel: classifier\nmodel_args: {args}\n").config)
    assert config.model_args["encoder_args"]["channels"] == [8, 8, 8, 8]


@pytest.mark.parametrize("method", ["meta", "meta-first-order", "sequential_episodic", "iid"])
@pytest.mark.parametrize("model", ["anml", "nonml", "sanml", "oml"])
def test_it_is_a_config_like_any_other(load, write, method: str, model: str) -> None:
    small = smoke_test(
        load(f"dataset: glyphs\nmodel: {model}\ntrain_method: {method}\nepochs: 3\neval: {{a: {{runs: 3}}}}\n").config
    )
    assert load_train_config(write("small.yml", dump_config(small))).config == small


@pytest.mark.parametrize("held_out", ["train_classes: 664", "train_classes: 962", "train_classes: 3"])
def test_a_validation_keeps_classes_to_validate_on(load, write, held_out: str) -> None:
    text = f"dataset: glyphs\nmodel: sanml\n{held_out}\neval: {{a: {{split: validation, classes: 2}}}}\n"
    small = smoke_test(load(text).config)
    assert (small.num_train_classes, small.num_held_out_classes) == (2, 962)
    assert load_train_config(write("small.yml", dump_config(small))).config == small
