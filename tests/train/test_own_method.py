"""Training methods from outside the package: a user's file, named by `train_method`."""

from pathlib import Path

import pytest
import torch

from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.train.loop import Training
from anml.train.run import RunSpec

REPTILE = """
import copy

import torch
from torch.nn.functional import cross_entropy

from anml.data.episodes import draw_episode
from anml.meta.engine import EpisodeOutcome, accuracy


class Reptile:
    note = "Reptile (Nichol et al. 2018)"

    def __init__(self, config, model, data):
        self.config, self.model, self.data = config, model, data
        self.optimizer = torch.optim.SGD(model.parameters(), lr=config.outer_lr)

    def step(self, index):
        episode = draw_episode(self.data, self.config, self.config.seed, index)
        learner = copy.deepcopy(self.model)
        inner = torch.optim.SGD(learner.parameters(), lr=self.config.inner_lr)
        for rows in [*episode.support_index, slice(episode.query_start, None)]:
            logits, labels = learner(episode.images[rows]), episode.labels[rows]
            loss = cross_entropy(logits, labels)
            inner.zero_grad()
            loss.backward()
            inner.step()
        for start, end in zip(self.model.parameters(), learner.parameters(), strict=True):
            start.grad = start.detach() - end.detach()
        self.optimizer.step()
        return EpisodeOutcome(loss.detach(), accuracy(logits, labels), {})


class Stepless:
    note = optimizer = None

    def __init__(self, config, model, data):
        pass
"""


def make_training(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Training:
    (folder / "reptile.py").write_text(REPTILE)
    monkeypatch.chdir(folder)
    config = TrainConfig(
        dataset="glyphs", train_classes=5, train_size=15, model="sanml", model_args={"rln_chs": 4, "num_classes": 5},
        num_batches=3, remember_size=8, train_method=f"./reptile.py:{name}", epochs=6, log_freq=3,
        inner_lr=0.05, outer_lr=0.5,
    )  # fmt: skip
    spec = RunSpec(config, folder / "checkpoints", folder / "train.jsonl")
    return Training([spec], torch.device("cpu"))


def test_a_training_method_of_a_users_file_trains_and_resumes(tmp_path, monkeypatch):
    training = make_training(tmp_path, "Reptile", monkeypatch)
    before = {name: value.clone() for name, value in training.runs[0].model.state_dict().items()}
    assert not training.run(6, lambda: training.completed == 3, lambda done: None)
    resumed = make_training(tmp_path, "Reptile", monkeypatch)
    assert (resumed.note, resumed.completed) == ("Reptile (Nichol et al. 2018)", 3)
    assert resumed.run(6, lambda: False, lambda done: None)
    after = resumed.runs[0].model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(before["fc.weight"], after["fc.weight"])


def test_a_training_method_without_a_step_is_refused_by_file_and_class(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"reptile\.py:Stepless.* step"):
        make_training(tmp_path, "Stepless", monkeypatch)
