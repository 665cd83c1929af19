"""What another experiment has measured is taken from there, and nothing else is."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anml.atomic import write_json
from anml.checkpoints import ModelCard
from anml.config.evaluation import EvalConfig
from anml.data.class_images import ClassImages, StoredArray
from anml.evaluate import reuse
from anml.evaluate.job import finish
from anml.evaluate.reuse import content_of, find_reuse
from anml.evaluate.sweep import LoadedModel, sweep_trajectories
from anml.experiment import Experiment
from anml.models import build_model
from anml.plugins import CODE, OTHER_CODE, USER_CODE, code_checksum
from anml.report.tables import read_reused
from anml.results import FinishedTrajectories, ResultRow, read_results

SWEEP: dict[str, Any] = {
    "classes": 4, "train_examples": 2, "test_examples": 3, "lr": (0.001, 0.01), "runs": 2, "eval_freq": 2,
    "engine": "reference",
}  # fmt: skip
MODEL = {"rln_chs": 3, "num_classes": 6}


def load(seed: int = 1, name: str = "sanml", **changes: Any) -> LoadedModel:
    images = torch.randint(0, 256, (6, 5, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    card = ModelCard("sanml", MODEL, (1, 28, 28), name, "omniglot", "meta", step=7, seed=seed)
    model = build_model("sanml", MODEL, (1, 28, 28), seed)
    return LoadedModel(model, card, ClassImages(images, "noise"), EvalConfig(**(SWEEP | changes)))


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., tuple[list[ResultRow], Experiment]]:
    """Evaluate a model in an experiment; returns the rows of the results."""

    def run(group: str, loaded: LoadedModel, flavor: str = "olft", takes: bool = True) -> Any:
        experiment = Experiment(tmp_path / "experiments/p" / group)
        write_json(experiment.environment_file, {"experiments_dir": str(tmp_path / "experiments")})
        file = experiment.result(flavor, loaded.card.step)
        offers = find_reuse(experiment, file, loaded, flavor, takes, print)
        finished = FinishedTrajectories(file.with_suffix(".partial.jsonl"))
        context: Any = SimpleNamespace(progress=lambda done, total, unit: None, stop=lambda: False)
        assert finish(context, loaded, flavor, sweep_trajectories(loaded.config), finished, offers)
        finished.write(file)
        if offers:
            offers.offer()
        return read_results([file]), experiment

    return run


def test_the_same_evaluation_takes_everything_and_has_the_same_rows(evaluate, capsys):
    measured, _ = evaluate("first", load())
    rows, second = evaluate("second", load(name="another name"), "other")
    assert read_reused(second) == {"p/first": 4}
    assert [replace(row, model="sanml", flavor="olft") for row in rows] == measured
    assert "4 trajectories are taken from p/first/results/olft-step-000007.csv" in capsys.readouterr().out


def test_many_evaluations_at_once_have_the_same_rows_whoever_is_first(evaluate):
    larger = {"lr": (0.001, 0.005, 0.01), "runs": 3}
    alone, _ = evaluate("alone", load(**larger), takes=False)
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda number: evaluate(f"g{number}", load(**larger)), range(18)))
    assert all(rows == alone for rows, _ in results)
    assert any(read_reused(experiment) for _, experiment in results)


def test_class_rows_are_taken_too(evaluate, tmp_path: Path):
    _, first = evaluate("first", load())
    _, second = evaluate("second", load())
    parts = [experiment.result("olft", 7).with_suffix(".parquet").read_bytes() for experiment in (first, second)]
    assert parts[0] == parts[1]


def test_a_larger_sweep_measures_what_is_missing_and_equals_one_that_measures_all(evaluate):
    evaluate("first", load())
    larger = {"lr": (0.001, 0.005, 0.01), "runs": 3}
    rows, second = evaluate("second", load(**larger))
    everything, third = evaluate("third", load(**larger), takes=False)
    assert (read_reused(second), read_reused(third)) == ({"p/first": 4}, {})
    assert rows == everything


def test_a_trajectory_that_wants_other_scorings_is_measured(evaluate):
    stopped, wanted = load(), load()
    stopped = stopped._replace(config=stopped.config.model_copy(update={"eval_freq": 0}))
    evaluate("first", stopped)
    assert read_reused(evaluate("second", wanted)[1]) == {}


OTHERS: dict[str, Callable[[LoadedModel], LoadedModel]] = {
    "model": lambda loaded: load(seed=2),
    "images": lambda loaded: loaded._replace(data=replace(loaded.data, images=loaded.data.images.flip(0))),
    "normalisation": lambda loaded: loaded._replace(data=replace(loaded.data, mean_std=((0.9,), (0.3,)))),
    "setting": lambda loaded: load(adam_betas=(0, 0.999)),
    "draws": lambda loaded: load(seed=1)._replace(config=loaded.config.model_copy(update={"seed": 2})),
    "arguments": lambda loaded: loaded._replace(card=replace(loaded.card, model_args={**MODEL, "rln_chs": 4})),
}


@pytest.mark.parametrize("what", OTHERS)
def test_whatever_changes_numbers_is_another_content(what: str):
    assert content_of(OTHERS[what](load())) != content_of(load())


def test_names_numbers_of_runs_and_places_are_no_content():
    same = load(name="another", runs=9, lr=0.5, classes=(2, 3), data_path="/elsewhere", race=True)
    assert content_of(same) == content_of(load())


def test_edited_code_measures_anew(monkeypatch, tmp_path: Path):
    before = content_of(load())
    (tmp_path / "anml/evaluate").mkdir(parents=True)
    (tmp_path / "anml/evaluate/learner.py").write_text("edited")
    monkeypatch.setattr(reuse, "CODE", tmp_path)
    assert content_of(load()) != before


def test_results_name_the_code_that_measures_and_no_other(tmp_path: Path):
    checksums = []
    edits = {"same": {}, "report": {"anml/report/page.py": "#"}}
    edits |= {"engine": {"anml/evaluate/learner.py": "#"}, "own": {f"{USER_CODE}/net.py": "#"}}
    for name, edited in edits.items():
        shutil.copytree(CODE / "anml", tmp_path / name / "anml")
        for file, text in edited.items():
            (tmp_path / name / file).parent.mkdir(exist_ok=True)
            (tmp_path / name / file).write_text(text)
        checksums.append(code_checksum(tmp_path / name))
    assert checksums[:2] == [code_checksum()] * 2
    assert len(set(checksums)) == 3


def test_code_that_does_not_count_is_not_imported_by_a_sweep():
    """Every module that a sweep imports either counts as content or is one that learns and scores nothing."""
    code = "import sys, anml.evaluate.sweep; print([m for m in sys.modules if m.startswith('anml.')])"
    modules = ast.literal_eval(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=CODE))
    parts = {module.split(".")[1] for module in modules}
    assert not parts & {part.removesuffix(".py") for part in OTHER_CODE}


def edit(file: Path) -> None:
    file.write_text(file.read_text().replace("0.", "0.9"))


@pytest.mark.parametrize("harm", [Path.unlink, edit, lambda file: file.with_suffix(".parquet").unlink()])
def test_results_that_are_no_longer_what_was_measured_are_not_taken(evaluate, harm):
    measured, first = evaluate("first", load())
    harm(first.result("olft", 7))
    rows, second = evaluate("second", load())
    assert (rows, read_reused(second)) == (measured, {})


def test_an_offer_that_cannot_be_read_is_passed_by(evaluate, tmp_path: Path):
    evaluate("first", load())
    (folder,) = (tmp_path / "experiments/.results").iterdir()
    (folder / "a.json").mkdir()
    assert read_reused(evaluate("second", load())[1]) == {"p/first": 4}


def test_a_folder_that_cannot_be_written_to_ends_no_evaluation(evaluate, tmp_path: Path, capsys):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/.results").write_text("a file, not a folder")
    evaluate("first", load())
    assert "other experiments cannot take these results" in capsys.readouterr().out


def test_a_rate_that_a_race_stopped_is_measured_by_those_who_want_it_whole(evaluate):
    loaded = load()
    _, first = evaluate("first", loaded)
    file = first.result("olft", 7)
    lines = file.read_text().splitlines(keepends=True)
    # As a race leaves it: run 1 at the second rate was not continued after two classes.
    file.write_text("".join(line for line in lines if ",0.01,1,1," not in line or ",4,2,1,1,4," in line))
    assert len(read_results([file])) < len(lines) - 1
    reuse_of_first = find_reuse(first, file, loaded, "olft", True, print)
    assert reuse_of_first
    reuse_of_first.offer()
    rows, second = evaluate("second", loaded)
    assert read_reused(second) == {"p/first": 3}
    assert len(rows) == len(lines) - 1


@pytest.mark.parametrize(
    "own", [{"model": "./net.py:Net"}, {"model": "classifier", "model_args": {"encoder": "./encoder.py:Encoder"}}]
)
def test_users_own_code_is_always_measured(tmp_path: Path, own: dict[str, Any]):
    loaded, experiment = load(), Experiment(tmp_path / "p/g")
    write_json(experiment.environment_file, {"experiments_dir": str(tmp_path)})
    assert find_reuse(experiment, experiment.result("olft", 7), loaded, "olft", True, print)
    loaded = loaded._replace(card=replace(loaded.card, **own))
    assert find_reuse(experiment, experiment.result("olft", 7), loaded, "olft", True, print) is None


def test_numbers_of_numpy_and_large_files_are_content_like_others(tmp_path: Path):
    loaded, file = load(), tmp_path / "images.npy"
    np.save(file, loaded.data.images.numpy())
    stored = StoredArray(file)
    data = replace(loaded.data, images=stored.tensor, stored=stored)
    assert content_of(loaded._replace(data=data)) == content_of(loaded)
    normal = [replace(loaded.data, mean_std=((kind(0.5),), (kind(0.25),))) for kind in (float, np.float32)]
    assert len({content_of(loaded._replace(data=data)) for data in normal}) == 1


def test_another_version_of_torch_measures_anew(monkeypatch):
    before = content_of(load())
    monkeypatch.setattr(torch, "__version__", "2.99")
    assert content_of(load()) != before


@pytest.mark.parametrize(
    "offer", [{"results": 5}, {"results": "p/\0"}, {}, {"results": "p/first/results", "sha256": ""}]
)
def test_an_offer_that_makes_no_sense_is_passed_by(evaluate, tmp_path: Path, offer: dict[str, Any]):
    evaluate("first", load())
    (folder,) = (tmp_path / "experiments/.results").iterdir()
    write_json(folder / "a.json", offer)
    assert read_reused(evaluate("second", load())[1]) == {"p/first": 4}
