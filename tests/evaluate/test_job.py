"""What an evaluation job keeps when it is stopped, and what it says of its progress and results."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anml.checkpoints import ModelCard, load_model, read_card, save_checkpoint
from anml.cli.main import main
from anml.config.evaluation import DataRequest, EvalConfig
from anml.config.load import load_train_config
from anml.data import load_images
from anml.data.class_images import ClassImages
from anml.evaluate.job import accuracy_lines, finish, mean_curves
from anml.evaluate.sweep import LoadedModel, run_sweep, sweep_trajectories
from anml.experiment import Experiment
from anml.models import build_model
from anml.results import CONFUSIONS, PICTURES, REPRESENTATION, FinishedTrajectories, ResultRow, read_results

pytestmark = pytest.mark.slow


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


def sweep(engine: Any, finished: FinishedTrajectories, stop_after: int = 10**9) -> tuple[bool, list[float]]:
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
    loaded = LoadedModel(model, card, ClassImages(images, "noise"), config)
    return finish(context, loaded, "olft", sweep_trajectories(config), finished), reports


@pytest.mark.parametrize("engine", ["reference", "lanes"])
def test_progress_never_goes_back(engine, tmp_path: Path):
    complete, reports = sweep(engine, FinishedTrajectories(tmp_path / "a.partial.jsonl"))
    assert complete
    assert reports == sorted(reports)
    assert reports[-1] == 1


@pytest.mark.parametrize(("engine", "block"), [("reference", 1), ("lanes", 4)])
def test_a_sweep_stopped_anywhere_continues_to_the_same_results(engine, block, tmp_path: Path):
    whole = FinishedTrajectories(tmp_path / "whole.partial.jsonl")
    _, reports = sweep(engine, whole)
    kept = set()
    for stop_after in range(1, len(reports) + 1):
        path = tmp_path / f"{stop_after}.partial.jsonl"
        complete, _ = sweep(engine, stopped := FinishedTrajectories(path), stop_after)
        assert complete == (len(stopped.results) == 8)
        kept.add(len(stopped.results))
        continued = FinishedTrajectories(path)
        assert sweep(engine, continued)[0]
        assert continued.results == whole.results
    assert kept == set(range(0, 9, block))  # What was learned side by side is kept together.


VALIDATED = """
dataset: glyphs
data_path: .
train_classes: 956
num_batches: 2
remember_size: 4
epochs: 1
engine: fast
model: sanml
model_args: {rln_chs: 3}
eval:
  - held-out: &all
      split: validation
      classes: 8
      train_examples: 15
      test_examples: 5
      runs: 2
      lr: 0.01
      eval_freq: 4
      allow_incomplete: false
  - unseen: {<<: *all, split: eval, measure: [representation, confusions]}
"""


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """An experiment that was trained and evaluated on held-out and on evaluation classes."""
    root = tmp_path_factory.mktemp("validated")
    (root / "config.yml").write_text(VALIDATED)
    assert main(["train", "--run-dir", str(root)]) == 0
    for flavor in ("held-out", "unseen"):
        assert main(["evaluate", "--run-dir", str(root), "--flavor", flavor, "--step", "1"]) == 0
    return Experiment(root)


def test_a_job_refuses_a_model_that_is_not_finite(
    validated: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    diverged = Experiment(tmp_path / "run")
    shutil.copy(validated.config_file, diverged.config_file)
    model, card = load_model(validated.checkpoint(1))
    with torch.no_grad():
        model.head.weight[0, 0] = torch.inf
    save_checkpoint(diverged.checkpoint(1), model, card, {})
    assert main(["evaluate", "--run-dir", str(diverged.root), "--flavor", "unseen", "--step", "1"]) == 1
    assert f"{diverged.checkpoint(1)}: fc.weight holds numbers that are not finite" in capsys.readouterr().err
    assert not diverged.result("unseen", 1).exists()


def test_what_is_to_be_measured_lies_beside_the_results_and_nothing_else_does(validated: Experiment) -> None:
    found = {path.name.removeprefix("unseen-step-000001") for path in validated.results.glob("unseen-*")}
    assert found == {".csv", ".parquet", REPRESENTATION, CONFUSIONS, PICTURES}
    assert {path.suffixes[0] for path in validated.results.glob("held-out-*")} == {".csv", ".parquet"}


@pytest.mark.parametrize(("flavor", "name"), [("held-out", "glyphs-validation"), ("unseen", "glyphs")])
def test_a_validation_is_on_exactly_the_classes_that_training_left_out(
    validated: Experiment, flavor: str, name: str
) -> None:
    split, first = ("train", 956) if flavor == "held-out" else ("eval", 0)
    images = load_images(DataRequest("glyphs", split, 28)).images[first:]  # type: ignore[arg-type]
    model, card = load_model(validated.checkpoint(1))
    config = load_train_config(validated.config_file).config.eval[flavor]
    loaded = LoadedModel(model, card, ClassImages(images, name), config)
    directly = run_sweep(loaded, flavor, sweep_trajectories(config))
    rows = read_results([validated.result(flavor, 1)])
    assert rows == [row for result in directly for row in result.rows]
    assert {row.dataset for row in rows} == {name}


def test_a_validation_by_hand_is_that_of_the_experiment(validated: Experiment, tmp_path: Path) -> None:
    config = tmp_path / "eval.yml"
    config.write_text("split: validation\nclasses: 8\nruns: 2\nlr: 0.01\neval_freq: 4\n")
    checkpoint, output = str(validated.checkpoint(1)), tmp_path / "a.csv"
    assert main(["evaluate", "-c", str(config), "-m", checkpoint, "-o", str(output)]) == 0
    [planned] = [read_results([validated.result("held-out", 1)])]
    assert [replace(row, flavor="held-out") for row in read_results([output])] == planned


def test_the_card_says_how_many_classes_were_trained_on(validated: Experiment) -> None:
    assert read_card(validated.checkpoint(1)).train_classes == 956


def test_the_log_of_a_validation_says_what_it_is(validated: Experiment) -> None:
    (held_out,) = accuracy_lines(read_results([validated.result("held-out", 1)]))
    (unseen,) = accuracy_lines(read_results([validated.result("unseen", 1)]))
    assert held_out.startswith("8 held-out background classes of glyphs, lr 0.01: ")
    assert unseen.startswith("8 classes of glyphs, lr 0.01: ")


def test_a_line_of_one_run_gives_no_deviation() -> None:
    assert accuracy_lines([row(200, 0.5)]) == ["20 classes of omniglot, lr 0.01: train 100.0% | test 50.0%, 1 run"]


def test_curves_of_a_validation_are_no_test_curves() -> None:
    assert set(mean_curves([replace(row(10, 0.5), dataset="omniglot-validation")])[10]) == {
        "validation/lr 0.01", "train/lr 0.01",
    }  # fmt: skip
