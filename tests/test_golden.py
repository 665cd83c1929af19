"""Golden numbers: the same config and seed give what commit 8200021 gave, training and evaluation, by every method.

Whoever changes them changes every experiment: a random stream has moved, or the mathematics. Losses are compared as
closely as processors agree; accuracies are counts and compared exactly.
"""

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Run = Callable[..., subprocess.CompletedProcess[str]]

TRAINING = {
    "dataset": "glyphs", "train_classes": 10, "train_size": 10, "epochs": 3, "eval_steps": [3], "log_freq": 1,
    "seed": 7, "model": "anml", "model_args": {"rln_chs": 8, "nm_chs": 4, "num_classes": 10},
}  # fmt: skip
EPISODES = {
    "engine": "fast", "num_batches": 4, "remember_size": 8, "inner_lr": 0.1, "outer_lr": 0.003,
    "inner_params": ["rln", "fc"],
}  # fmt: skip
METHODS = {
    "meta": {"train_method": "meta"} | EPISODES,
    "sequential_episodic": {"train_method": "sequential_episodic"} | EPISODES,
    "iid": {"train_method": "iid", "epochs": 1, "batch_size": 34, "lr": 0.003},
}
EVALUATION = {
    "dataset": "glyphs", "classes": 5, "train_examples": 5, "test_examples": 5, "runs": 1, "eval_method": "sequential",
    "opt_params": "head", "lr": 0.01, "eval_freq": 1,
}  # fmt: skip
LOSSES = {
    "meta": [1.8468604, 1.8577431, 1.8474504],
    "sequential_episodic": [1.8468604, 1.8056167, 1.9490891],
    "iid": [2.3021371, 2.3042653, 2.3097506],
}
ACCURACIES = {
    "meta": [1, 1 / 2, 1 / 3, 0.35, 0.36],
    "sequential_episodic": [1, 0.7, 8 / 15, 0.45, 0.48],
    "iid": [1, 1 / 2, 1 / 3, 0.3, 0.24],
}


@pytest.mark.parametrize("method", METHODS)
def test_numbers_are_those_of_8200021(run: Run, tmp_path: Path, method: str) -> None:
    (tmp_path / "train.yml").write_text(yaml.safe_dump(TRAINING | METHODS[method]))
    (tmp_path / "eval.yml").write_text(yaml.safe_dump(EVALUATION))
    folder = tmp_path / "run"
    trained = run("train_anml.py", "-c", tmp_path / "train.yml", "--run-dir", folder, "--device", "cpu")
    assert trained.returncode == 0, trained.stderr
    checkpoint, result = folder / "checkpoints" / "step-000003", tmp_path / "result.csv"
    evaluated = run("eval_anml.py", "-c", tmp_path / "eval.yml", "-m", checkpoint, "-o", result, "--device", "cpu")
    assert evaluated.returncode == 0, evaluated.stderr
    lines = (folder / "metrics" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == pytest.approx(LOSSES[method], rel=1e-5)
    with result.open() as file:
        assert [float(row["train_acc"]) for row in csv.DictReader(file)] == pytest.approx(ACCURACIES[method])
