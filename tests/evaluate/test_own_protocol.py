"""Evaluation protocols from outside the package: a user's file, named in the config."""

import csv
import json
from pathlib import Path

import pytest

from anml.checkpoints import ModelCard, save_checkpoint
from anml.config.evaluation import EvalConfig
from anml.config.load import load_eval_configs, load_experiment_config
from anml.errors import ConfigError
from anml.evaluate.sweep import LoadedModel, run_sweep, sweep_trajectories
from anml.models import build_model
from anml.report.comparison.differences import Evaluation

KNN = """
from torch import cdist
from torch.nn.functional import one_hot

from anml.config.protocols import EvalProtocol
from anml.evaluate.protocols import score_all


def nearest_neighbour(learner, prepared_runs, config, progress):
    def predict(run, inputs):
        return one_hot(run.train_labels)[cdist(inputs, run.train_inputs).argmin(dim=1)].double()

    logits = ((predict(run, run.train_inputs), predict(run, run.test_inputs)) for run in prepared_runs)
    yield score_all(logits, prepared_runs[0], epoch=0, step=0, classes_trained=prepared_runs[0].shape.classes)


KNN = EvalProtocol(nearest_neighbour, learns=False)
SILENT = EvalProtocol(lambda learner, prepared_runs, config, progress: [], learns=False)
SHUFFLED = EvalProtocol("anml.evaluate.protocols:learn_shuffled", is_shuffled=True)
"""
SETTINGS = "dataset: glyphs\nclasses: 3\ntrain_examples: 4\ntest_examples: 5\nruns: 2\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "knn.py"
    path.write_text(KNN)
    return path


def test_a_protocol_of_a_users_file_is_evaluated_into_a_results_file(file: Path, tmp_path: Path, run) -> None:
    args = {"rln_chs": 3, "num_classes": 5}
    card = ModelCard("sanml", args, (1, 28, 28), "small", "glyphs", "meta", 20, 1)
    save_checkpoint(tmp_path / "step-000020", build_model("sanml", args, (1, 28, 28), seed=1), card, {})
    (tmp_path / "eval.yml").write_text(f"{SETTINGS}eval_method: {file}:KNN\n")
    options = ("-c", tmp_path / "eval.yml", "-m", tmp_path / "step-000020", "-o", tmp_path / "a.csv")
    shown = run("eval_anml.py", *options)
    assert shown.returncode == 0, shown.stderr
    with (tmp_path / "a.csv").open() as results:
        rows = list(csv.DictReader(results))
    assert [(row["protocol"], row["run"], row["lr"], row["classes_trained"]) for row in rows] == [
        ("KNN", "0", "", "3"), ("KNN", "1", "", "3"),
    ]  # fmt: skip
    # Every example is its own nearest neighbour; one of three classes would be right by chance.
    assert {row["train_acc"] for row in rows} == {"1.0"}
    assert sum(float(row["test_acc"]) for row in rows) / 2 > 0.5


def test_a_shuffled_protocol_of_a_users_file_gives_the_scores_of_iid(file: Path, model, data, make_config) -> None:
    card = ModelCard("anml", {}, (1, 28, 28), "ANML", "omniglot", "meta", step=1, seed=1)

    def scores(method: str) -> list[tuple[int, float]]:
        config = make_config(eval_method=method, batch_size=16, epochs=2, lr=[0.01, 0.1])
        results = run_sweep(LoadedModel(model, card, data, config), "a", sweep_trajectories(config))
        return [(row.step, row.test_acc) for result in results for row in result.rows]

    assert scores(f"{file}:SHUFFLED") == scores("iid")


def test_keys_that_a_users_protocol_does_not_read_are_told(file: Path, tmp_path: Path) -> None:
    (tmp_path / "eval.yml").write_text(f"{SETTINGS}eval_method: {file}:KNN\nlr: 0.1\nreinit_params: all\n")
    [notice] = load_eval_configs(tmp_path / "eval.yml")[0].notices
    assert notice.startswith(f"{tmp_path}/eval.yml:7: lr: has no effect on eval_method: ")


def test_a_protocol_that_cannot_be_had_is_refused_where_it_is_named(file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import torch\n1 / 0\n")
    expected = {
        f"{tmp_path}/none.py:KNN": [f"{tmp_path}/none.py", "no such file"],
        f"{file}:KN": [str(file), "no KN"],
        f"{file}:nearest_neighbour": [str(file), "nearest_neighbour", "EvalProtocol"],
        f"{broken}:KNN": [str(broken), "ZeroDivisionError", "line 2"],
        "zero-shot": ['"zero-shot"', "sequential, iid, zero_shot", "did you mean 'zero_shot'"],
    }
    for name, words in expected.items():
        (tmp_path / "eval.yml").write_text(f"{SETTINGS}eval_method: {name}\n")
        with pytest.raises(ConfigError) as caught:
            load_eval_configs(tmp_path / "eval.yml")
        [message] = caught.value.problems
        assert message.startswith(f"{tmp_path}/eval.yml:6: eval_method: ")
        assert not [word for word in words if word not in message], message


def test_a_protocol_that_leaves_trajectories_out_is_refused(file: Path, model, data, make_config) -> None:
    config: EvalConfig = make_config(eval_method=f"{file}:SILENT")
    card = ModelCard("anml", {}, (1, 28, 28), "ANML", "omniglot", "meta", step=1, seed=1)
    with pytest.raises(ConfigError, match=f"eval_method: {file}:SILENT must yield"):
        list(run_sweep(LoadedModel(model, card, data, config), "a", sweep_trajectories(config)))


def test_results_of_a_users_protocol_are_no_oracle_where_no_config_tells_more() -> None:
    lost = Evaluation("KNN", "glyphs", unknown="project/group/knn")
    assert not lost.protocol.is_shuffled
    assert lost.pair.dataset == "glyphs"


def test_an_experiment_whose_file_is_gone_is_read_with_its_frozen_copy(tmp_path: Path) -> None:
    frozen = tmp_path / "code" / "user_code" / "knn.py"
    frozen.parent.mkdir(parents=True)
    frozen.write_text(KNN)
    flavor = {"eval_method": f"{tmp_path / 'gone' / 'knn.py'}:KNN", "classes": 3}
    text = json.dumps({"dataset": "glyphs", "model": "sanml", "eval": [{"near": flavor}]})
    (tmp_path / "config.yml").write_text(text)
    config = load_experiment_config(tmp_path / "config.yml").config
    assert not config.eval["near"].protocol.learns
    assert (tmp_path / "config.yml").read_text() == text
