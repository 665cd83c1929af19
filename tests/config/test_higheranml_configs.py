"""Configs of higherANML with every key they may have load, are planned, and name parameters that exist.

The keys are those of higheranml_keys.yml, which says where they are from: 169 stored texts, of some 178, were read.
"""

from pathlib import Path
from typing import Any

import pytest

from anml.config.load import load_eval_configs
from anml.config.model_args import ENCODERS, HEADS, MODELS
from anml.config.training import TrainConfig
from anml.config.yaml import dump_yaml, read_yaml
from anml.jobs.plan import make_plan
from anml.models import build_model
from anml.models.meta_model import check_output_layer, select_names

KEYS: dict[str, dict[str, int]] = read_yaml(Path(__file__).with_name("higheranml_keys.yml")).data

DATA: dict[str, Any] = {
    "dataset": "omni", "data_path": "../data", "download": True, "im_size": 28, "train_size": 15, "augment": False,
    "imgs_per_class": 20, "use_random_split": False, "greyscale": True,
}  # fmt: skip
RUN: dict[str, Any] = {
    "max_steps": 600, "save_freq": 100, "seed": 1, "device": "cuda", "full_test": False, "eval_steps": [300, 10000],
    "project": "anml", "entity": "lab", "group": "g", "cluster": "dggpu", "max_grad_norm": 2.0, "id": "1a2b",
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
# An evaluation as higherANML's jobs are given it, and an early one.
OF_A_JOB: dict[str, Any] = IID | {
    "device": "cuda", "project": "anml", "entity": "lab", "group": "g", "id": "1a2b", "download": True,
    "output": "a.pkl", "use_random_split": False, "greyscale": True, "imgs_per_class": 20,
}  # fmt: skip
EARLY: dict[str, Any] = {"method": "seq", "classes": 600, "record_learning_curve": True}


# Inner loops of 20 images, classes of 15.
OMNIIMAGE: dict[str, Any] = {
    "dataset": "omniimage", "im_size": 84, "num_batches": 20, "val_sample_size": 200, "val_size": 5,
    "greyscale": False,
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
    "anml-meta": DATA | RUN | EPISODES | ANML | {"method": "meta"},
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
    ignored = {"full_test", "download", "save_initial_model", "id", "eval.no-sgd.batch_size"}
    assert noticed - ignored == set(NOTICED.get(name, ()))
    assert config.dataset in ("omniglot", "omniimage20")
    assert config.train_method == (data.get("train_method") or data["method"])
    assert [flavor.eval_method for flavor in config.eval.values()] == ["zero_shot", "sequential", "iid"]
    assert len(make_plan(config).jobs) == len(config.checkpoint_steps) * 4 + 1

    model = build_model(config.model, config.model_args, config.image_shape, config.seed)
    check_output_layer(model, config.output_layer)
    flavors = [(f.opt_params, f.reinit_params) for f in config.eval.values() if f.eval_method != "zero_shot"]
    for selectors in (config.inner_params, config.outer_params, *(s for pair in flavors for s in pair)):
        assert select_names(model, selectors)


@pytest.mark.parametrize(
    ("data", "noticed"),
    [
        (SEQUENTIAL, []),
        (IID, []),
        (ZERO_SHOT, ["batch_size"]),
        (OF_A_JOB, ["download", "output", "id", "project", "entity", "group", "device"]),
        (EARLY, ["record_learning_curve"]),
    ],
    ids=["sequential", "iid", "zero_shot", "of_a_job", "early"],
)
def test_an_evaluation_config_with_every_key_loads(write, data: dict[str, Any], noticed: list[str]) -> None:
    text = dump_yaml(data | {"model": ["a.pth", "b.pth"]})
    loaded = load_eval_configs(write("eval.yml", text))[0]
    assert [notice.split(": ")[1] for notice in loaded.notices] == noticed
    assert (loaded.config.dataset, loaded.config.model) == (
        "omniglot" if "dataset" in data else None,
        ("a.pth", "b.pth"),
    )


# Values of model arguments.
ARGUMENTS: dict[str, Any] = {
    **dict.fromkeys(("rln_chs", "nm_chs", "num_filters", "planes", "fc_layer_size", "hidden_layers"), 8),
    **dict.fromkeys(("num_blocks", "num_conv_blocks", "num_conv_per_block", "stride", "padding", "pool_size"), 1),
    **dict.fromkeys(("pool_rln_output", "pool_nm_output", "progress"), True),
    "num_classes": 1000, "n_classes": 1000, "kernel_size": 3, "norm_type": "in", "pretrained": False, "dropout": 0.0,
    "metric": "cos", "temp": 5.0, "encoder": "convnet", "encoder_args": {}, "classifier": "linear-classifier",
    "classifier_args": {},
}  # fmt: skip
PARTS = {
    **{name: {"model": name} for name in MODELS},
    **{name: {"model": "classifier", "encoder": name} for name in ENCODERS},
    **{name: {"model": "classifier", "encoder": "convnet", "classifier": name} for name in HEADS},
}


@pytest.mark.parametrize(("part", "argument"), [(part, key) for part in KEYS if part in PARTS for key in KEYS[part]])
def test_every_model_argument_is_known(load, part: str, argument: str) -> None:
    names, args = dict(PARTS[part]), {argument: ARGUMENTS[argument]}
    model = names.pop("model")
    if part == "classifier":
        args = {"encoder": "convnet"} | args
    elif names:
        args = names | {f"{list(names)[-1]}_args": args}
    load(dump_yaml({"dataset": "omni", "im_size": 84, "model": model, "model_args": args}))


def test_no_key_is_left_out() -> None:
    tried = {key for data in TRAININGS.values() for key in data} | {"eval"}
    assert set(KEYS["training"]) - tried == set()
    tried = {key for data in (SEQUENTIAL, IID, ZERO_SHOT, OF_A_JOB, EARLY) for key in data} | {"model"}
    assert set(KEYS["evaluation"]) - tried == set()
    assert set(KEYS) - set(PARTS) == {"training", "evaluation"}
