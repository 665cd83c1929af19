"""What an evaluation job keeps when it is stopped, and what it says of its progress and results."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anml.checkpoint import ModelCard
from anml.config.evaluation import EvalConfig
from anml.data.class_images import ClassImages
from anml.evaluate.sweep import sweep_points
from anml.evaluate_job import _sweep, mean_curves
from anml.models.build import build_model
from anml.results import FinishedPoints, ResultRow


def row(step: int, test_acc: float, train_examples: int = 10, lr: float | None = 0.01, run: int = 0) -> ResultRow:
    return ResultRow(
        "olft", "sequential", "anml", "omniglot", 1, 20, train_examples, 5, lr, 1, run, 1, step, step // train_examples,
        1.0, test_acc, 1.0, 1.0,
    )  # fmt: skip


def test_a_curve_is_the_mean_over_runs_of_a_learning_rate():
    rows = [row(10, 0.5), row(10, 0.7, run=1), row(10, 0.2, lr=0.1), row(0, 0.3, lr=None)]
    assert mean_curves(rows) == {
        0: {"test/accuracy": 0.3, "train/accuracy": 1.0},
        10: {"test/lr 0.01": 0.6, "train/lr 0.01": 1.0, "test/lr 0.1": 0.2, "train/lr 0.1": 1.0},
    }


def test_sizes_are_curves_of_their_own():
    # Step 60: six classes of 10 examples, or two of 30.
    curves = mean_curves([row(60, 0.5, train_examples=10), row(60, 0.9, train_examples=30)])
    assert curves[60]["test/20 classes, 10 train, 5 test, lr 0.01"] == 0.5
    assert curves[60]["test/20 classes, 30 train, 5 test, lr 0.01"] == 0.9


def sweep(engine: Any, finished: FinishedPoints, stop_after: int = 10**9) -> tuple[bool, list[float]]:
    """Run a small sweep, asked to stop at its nth report of progress; also returns the reports."""
    values: dict[str, Any] = {"classes": (3, 5), "train_examples": 2, "test_examples": 3, "lr": (0.001, 0.01)}
    config = EvalConfig(**values, dataset="omniglot", runs=2, engine=engine, eval_freq=0)
    images = torch.randint(0, 256, (6, 5, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = build_model("sanml", {"rln_chs": 3, "num_classes": 6}, (1, 28, 28), seed=1)
    card = ModelCard("sanml", {}, (1, 28, 28), "sanml", "omniglot", "meta", step=1, seed=1)
    reports: list[float] = []
    context: Any = SimpleNamespace(
        progress=lambda done, total, unit: reports.append(done / total), stop=lambda: len(reports) >= stop_after
    )
    data = ClassImages(images, "noise")
    return _sweep(context, model, card, config, "olft", data, sweep_points(config), finished), reports


@pytest.mark.parametrize("engine", ["reference", "lanes"])
def test_progress_never_goes_back(engine, tmp_path: Path):
    complete, reports = sweep(engine, FinishedPoints(tmp_path / "a.partial.jsonl"))
    assert complete
    assert reports == sorted(reports)
    assert reports[-1] == 1


@pytest.mark.parametrize("engine", ["reference", "lanes"])
def test_a_sweep_stopped_anywhere_continues_to_the_same_results(engine, tmp_path: Path):
    whole = FinishedPoints(tmp_path / "whole.partial.jsonl")
    _, reports = sweep(engine, whole)
    for stop_after in range(1, len(reports) + 1):
        path = tmp_path / f"{stop_after}.partial.jsonl"
        assert not sweep(engine, FinishedPoints(path), stop_after)[0]
        continued = FinishedPoints(path)
        assert sweep(engine, continued)[0]
        assert continued.results == whole.results
