"""Trains and evaluates for a moment, and prints by how much the memory of each case grew, and what was foretold.

Each case is a process of its own: what others have freed would serve it. Forked, so that torch is imported once.
"""

import functools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anml.checkpoints import ModelCard
from anml.config.load import load_train_config
from anml.config.training import TrainConfig
from anml.config.yaml import source_of
from anml.evaluate.sweep import LoadedModel, run_sweep, sweep_trajectories
from anml.models import build_model
from anml.train.loop import make_updater, training_data
from anml.train.memory import Parts, of_evaluation, of_training
from anml.train.run import new_model

CONFIG = {
    "dataset": "glyphs", "train_classes": 20, "train_size": 10, "epochs": 2, "model": "sanml",
    "batch_size": 1, "num_batches": 6, "remember_size": 2,
}  # fmt: skip
FLAVOR = {
    "eval_method": "sequential", "classes": 2, "train_examples": 1, "test_examples": 1, "runs": 1, "lr": 0.01,
    "opt_params": "all", "reinit_params": "head", "engine": "reference",
}  # fmt: skip
METHODS = {
    "fast": {"engine": "fast"},
    "sweep": {"engine": "sweep"},
    "native": {"engine": "native"},
    "reference": {"engine": "reference"},
    "first order": {"train_method": "meta-first-order", "engine": "fast"},
    "iid": {"train_method": "iid", "epochs": 1, "batch_size": 8},
    "prototypes": {"train_method": "prototypes", "few_shot": {"ways": 3, "shots": 2, "queries": 1}},
}


def train(config: TrainConfig) -> Parts:
    data, _ = training_data(config, torch.device("cpu"))
    updater = make_updater(config, new_model(config), data)
    updater.step(0)
    return of_training(config, without_memory(config))


def evaluate(config: TrainConfig) -> Parts:
    flavor, model = config.eval["olft"], new_model(config)
    card = ModelCard("sanml", {}, config.image_shape, "sanml", "glyphs", "meta", 0, 1)
    data, _ = training_data(config, torch.device("cpu"))
    list(run_sweep(LoadedModel(model, card, data, flavor), "olft", sweep_trajectories(flavor)))
    return of_evaluation(flavor, without_memory(config))


def without_memory(config: TrainConfig) -> Any:
    with torch.device("meta"):
        return build_model(config.model, config.model_args, config.image_shape, 1, None)


def status(name: str) -> int:
    """Return a number of this process's status, in bytes."""
    return int(re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def growth(work: Callable[[], Parts]) -> dict[str, Any]:
    read, write = os.pipe()
    if os.fork() == 0:
        before = status("VmRSS")
        parts = work()
        os.write(write, json.dumps({"parts": parts, "grew": status("VmHWM") - before}).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        return json.loads(answer.read())


def cases(channels: int) -> dict[str, Callable[[], Parts]]:
    made: dict[str, Callable[[], Parts]] = {}
    for name, changes in METHODS.items():
        keys = CONFIG | changes | {"model_args": {"rln_chs": channels, "num_classes": 20}, "eval": {"olft": FLAVOR}}
        config = load_train_config(source_of(keys, name)).config
        made |= {name: functools.partial(train, config), "evaluation": functools.partial(evaluate, config)}
    return made


if __name__ == "__main__":
    for work in cases(8).values():
        work()  # What is imported and built at first use is not the model's.
    print(json.dumps({name: growth(work) for name, work in cases(512).items()}))
