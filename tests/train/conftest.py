"""Small trainings that several tests share, in a folder of their own."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anml.config.training import TrainConfig
from anml.train.loop import Training
from anml.train.run import RunSpec

META = {
    "dataset": "glyphs", "train_classes": 10, "train_size": 15, "model": "anml",
    "model_args": {"rln_chs": 4, "nm_chs": 3, "num_classes": 12}, "num_batches": 3, "remember_size": 8,
    "inner_params": ["rln", "fc"], "engine": "fast", "epochs": 12, "log_freq": 4, "save_freq": 5, "val_size": 20,
}  # fmt: skip
# Fifteen steps: epochs of five (the last batch smaller), the rate falling at the second, output rows zapped at both.
IID = {
    "dataset": "glyphs", "train_classes": 10, "train_size": 15, "model": "sanml",
    "model_args": {"rln_chs": 4, "num_classes": 12}, "train_method": "iid", "batch_size": 32, "epochs": 3, "lr": 0.05,
    "optimizer": "SGD", "optimizer_args": {"momentum": 0.9, "weight_decay": 1e-4}, "lr_scheduler": "StepLR",
    "lr_scheduler_args": {"step_size": 2, "gamma": 0.1}, "lobo_rate": 1, "lobo_size": 3, "log_freq": 4, "save_freq": 5,
}  # fmt: skip
CPU = torch.device("cpu")


def make_config(base: dict[str, Any] = META, **changes: Any) -> TrainConfig:
    return TrainConfig(**(base | changes))


def make_training(
    folder: Path, config: TrainConfig, seed: int = 1, on_log: Callable[[dict[str, Any]], None] = lambda line: None
) -> Training:
    spec = RunSpec(config.model_copy(update={"seed": seed}), folder / "checkpoints", folder / "metrics" / "train.jsonl")
    training = Training([spec], CPU)
    training.runs[0].on_log = on_log
    return training


def train(folder: Path, config: TrainConfig, until: int | None = None, stop_at: int | None = None) -> bool:
    """Train in this folder, from whatever it holds; `stop_at` asks to stop after so many steps."""
    training = make_training(folder, config)
    return training.run(until or config.total_steps, lambda: training.completed == stop_at, lambda done: None)


def step_folder(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:06d}"


def content(folder: Path, step: int) -> dict[str, str]:
    """Return the checksum of every file of a checkpoint."""
    files = step_folder(folder, step).iterdir()
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the log without the speed."""
    lines = [json.loads(line) for line in (folder / "metrics" / "train.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "steps_per_second"} for line in lines]


@pytest.fixture
def undisturbed(tmp_path: Path) -> Callable[[TrainConfig], Path]:
    def train_in_one_go(config: TrainConfig) -> Path:
        train(tmp_path / "undisturbed", config)
        return tmp_path / "undisturbed"

    return train_in_one_go
