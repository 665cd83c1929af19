"""Configs of higherANML with every key they may have load, are planned, and name parameters that exist."""

from typing import Any

import pytest

from anml.config.load import load_eval_configs
from anml.config.training import TrainConfig
from anml.config.yaml import dump_yaml
from anml.jobs.plan import make_plan
from anml.models import build_model
from anml.models.meta_model import check_output_layer, select_names

# Every key that higherANML knows.
TRAINING_KEYS = (
    "dataset data_path download im_size train_size augment imgs_per_class train_method sample_method batch_size "
    "num_batches train_cycles val_size remember_size remember_only lobotomize inner_lr outer_lr max_grad_norm epochs "
    "max_steps save_freq seed device model model_name model_args inner_params outer_params output_layer lr optimizer "
    "optimizer_args lr_scheduler lr_scheduler_args full_test eval_steps eval project entity group cluster lobo_rate "
    "lobo_size lobo_biased_steps lobo_biased_params lobo_biased_fraction val_sample_size save_initial_model"
)
EVALUATION_KEYS = (
    "dataset data_path im_size augment train_examples test_examples eval_method reinit_method reinit_params opt_params "
    "init_size classes lr epochs batch_size eval_freq runs model seed"
)

DATA: dict[str, Any] = {
    "dataset": "omni", "data_path": "../data", "download": True, "im_size": 28, "train_size": 15, "augment": False,
    "imgs_per_class": 20,
}  # fmt: skip
RUN: dict[str, Any] = {
    "max_steps": 600, "save_freq": 100, "seed": 1, "device": "cuda", "full_test": False, "eval_steps": [300, 10000],
    "project": "anml", "entity": "lab", "group": "g", "cluster": "dggpu", "max_grad_norm": 2.0,
}  # fmt: skip
EPISODES: dict[str, Any] = {
    "sample_method": "single", "batch_size": 1, "num_batches": 15, "train_cycles": 1, "val_size": 200,
    "remember_size": 64, "remember_only": False, "lobotomize": True, "inner_lr": 0.1, "outer_lr": 0.001,
    "epochs": 25000,
}  # fmt: skip
EPOCHS: dict[str, Any] = {
    "batch_size": 256, "epochs": 10, "lr": 0.1, "optimizer": "SGD", "lobo_rate": 1, "lobo_size": 1000,
    "optimizer_args": {"momentum": 0.9, "weight_decay": 1e-4}, "lr_scheduler": "StepLR",
    "lr_scheduler_args": {"step_size": 10, "gamma": 0.1}, "lobo_biased_steps": 5, "lobo_biased_fraction": 0.5,
    "lobo_biased_params": "classifier", "val_size": 5, "save_initial_model": True,
}  # fmt: skip

ANML: dict[str, Any] = {
    "model": "anml", "model_args": {"rln_chs": 256, "nm_chs": 112, "pool_rln_output": False, "pool_nm_output": True},
    "inner_params": ["rln", "fc"], "outer_params": "all", "output_layer": "fc",
}  # fmt: skip
ANML_ENCODER: dict[str, Any] = {
    "model": "classifier", "model_name": "anml",
    "model_args": {
        "encoder": "anml-encoder",
        "encoder_args": {"rln_chs": 256, "nm_chs": 112, "pool_rln_output": False, "pool_nm_output": True},
        "classifier": "linear-classifier", "classifier_args": {"num_classes": 1000},
    },
    "inner_params": ["encoder.rln", "classifier"], "outer_params": "all", "output_layer": "classifier.linear",
}  # fmt: skip
SANML: dict[str, Any] = {
    "model": "classifier", "model_name": "sanml",
    "model_args": {
        "encoder": "convnet",
        "encoder_args": {"num_blocks": 3, "num_filters": 256, "padding": 0, "pool_size": [2, 2, 0]},
        "classifier": "linear-classifier", "classifier_args": {"num_classes": 1000},
    },
    "inner_params": "all", "outer_params": "all", "output_layer": "classifier.linear",
}  # fmt: skip
OML: dict[str, Any] = {
    "model": "classifier", "model_name": "oml", "im_size": 84,
    "model_args": {
        "encoder": "convnet",
        "encoder_args": {
            "num_blocks": 6, "num_filters": 256, "stride": [2, 1, 2, 1, 2, 2], "padding": 0, "norm_type": None,
            "pool_size": None,
        },
        "classifier": "mlp-classifier", "classifier_args": {"num_classes": 1000, "hidden_layers": 1024},
    },
    "inner_params": "classifier", "outer_params": "all", "output_layer": "classifier.mlp.2",
}  # fmt: skip

SEQUENTIAL: dict[str, Any] = {
    "dataset": "omni", "data_path": "../data", "im_size": 28, "augment": False, "train_examples": 15,
    "test_examples": 5, "eval_method": "seq", "reinit_method": "kaiming", "reinit_params": "all", "opt_params": "all",
    "classes": [10, 600], "lr": [0.1, 0.01], "eval_freq": 50, "runs": 10, "seed": 1,
}  # fmt: skip
IID: dict[str, Any] = SEQUENTIAL | {"eval_method": "iid", "epochs": 1, "batch_size": 256, "eval_freq": 5}
ZERO_SHOT: dict[str, Any] = {
    "dataset": "omni", "train_examples": 15, "test_examples": 5, "eval_method": "zero_shot", "reinit_method": "lstsq",
    "init_size": 3295, "batch_size": 512, "classes": 600,
}  # fmt: skip


# Inner loops of 20 images, classes of 15.
OMNIIMAGE: dict[str, Any] = {
    "dataset": "omniimage", "im_size": 84, "num_batches": 20, "val_sample_size": 200, "val_size": 5,
}  # fmt: skip
NOTICED = {"oml-uniform": ["sample_method"], "sanml-oimg": ["val_size", "num_batches"], "sanml-iid": ["val_size"]}


def evaluations(im_size: int, layer: str) -> list[dict[str, Any]]:
    """Return a flavor of each evaluation method, as training configs list them."""
    size = {"im_size": im_size}
    return [
        {"no-sgd": ZERO_SHOT | {"reinit_params": layer}},
        {"olft": SEQUENTIAL | size | {"reinit_params": layer, "opt_params": layer}},
        {"unfrozen-oracle": IID | size},
    ]


TRAININGS: dict[str, dict[str, Any]] = {
    "anml-meta": DATA | RUN | EPISODES | ANML | {"train_method": "meta"},
    "anml-encoder-meta": DATA | RUN | EPISODES | ANML_ENCODER | {"train_method": "meta"},
    "oml-uniform": DATA | RUN | EPISODES | OML | {"train_method": "meta", "sample_method": "uniform"},
    "sanml-seqep": DATA | RUN | EPISODES | SANML | {"train_method": "sequential_episodic"},
    "sanml-oimg": DATA | RUN | EPISODES | SANML | OMNIIMAGE | {"train_method": "meta"},
    "sanml-iid": DATA | RUN | EPOCHS | SANML | {"train_method": "iid"},
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_config_with_every_key_runs(load, name: str) -> None:
    data = TRAININGS[name]
    text = dump_yaml(data | {"eval": evaluations(data["im_size"], data["output_layer"])})
    text = text.replace("dataset: omni\n", f"dataset: {data['dataset']}\n").replace("600", "300")
    loaded = load(text)
    config: TrainConfig = loaded.config
    noticed = {notice.split(": ")[1] for notice in loaded.notices}
    assert noticed - {"full_test", "download", "save_initial_model", "eval.no-sgd.batch_size"} == set(
        NOTICED.get(name, ())
    )
    assert (config.dataset in ("omniglot", "omniimage20"), config.train_method) == (True, data["train_method"])
    assert [flavor.eval_method for flavor in config.eval.values()] == ["zero_shot", "sequential", "iid"]
    assert len(make_plan(config).jobs) == len(config.checkpoint_steps) * 4 + 1

    model = build_model(config.model, config.model_args, config.image_shape, config.seed)
    check_output_layer(model, config.output_layer)
    flavors = [(f.opt_params, f.reinit_params) for f in config.eval.values() if f.eval_method != "zero_shot"]
    for selectors in (config.inner_params, config.outer_params, *(s for pair in flavors for s in pair)):
        assert select_names(model, selectors)


@pytest.mark.parametrize(
    ("data", "noticed"),
    [(SEQUENTIAL, []), (IID, []), (ZERO_SHOT, ["batch_size"])],
    ids=["sequential", "iid", "zero_shot"],
)
def test_an_evaluation_config_with_every_key_loads(write, data: dict[str, Any], noticed: list[str]) -> None:
    text = dump_yaml(data | {"model": ["a.pth", "b.pth"]})
    loaded = load_eval_configs(write("eval.yml", text))[0]
    assert [notice.split(": ")[1] for notice in loaded.notices] == noticed
    assert (loaded.config.dataset, loaded.config.model) == ("omniglot", ("a.pth", "b.pth"))


def test_no_key_is_left_out() -> None:
    assert set(TRAINING_KEYS.split()) - {key for data in TRAININGS.values() for key in data} == {"eval"}
    assert set(EVALUATION_KEYS.split()) - {key for data in (SEQUENTIAL, IID, ZERO_SHOT) for key in data} == {"model"}
