"""The log of a training: means, validation, curves of episodes and speed, each line once."""

import time
from typing import Any

import pytest
import torch

import anml.rng
import anml.train.run
from anml.checkpoints import load_model, load_training_state
from anml.config.training import TrainConfig
from anml.data.episodes import draw_episode
from anml.meta.engine import EpisodeOutcome
from anml.meta.outer_step import lobotomize
from anml.models.meta_model import select_names
from tests.train.conftest import CPU, content, log, make_config, make_training, step_folder, train


def test_a_log_line_that_was_cut_off_is_written_again(tmp_path, undisturbed):
    config = make_config()
    expected = undisturbed(config)
    train(tmp_path / "cut", config, until=5)
    with (tmp_path / "cut" / "metrics" / "train.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    train(tmp_path / "cut", config)
    assert [line["step"] for line in log(tmp_path / "cut")] == [4, 5, 8, 12]
    assert content(tmp_path / "cut", 12) == content(expected, 12)


def test_the_log_has_means_since_its_last_line_and_validation(tmp_path):
    every, fourth = make_config(log_freq=1), make_config(log_freq=4)
    train(tmp_path / "every", every)
    train(tmp_path / "fourth", fourth)
    lines, means = log(tmp_path / "every"), log(tmp_path / "fourth")
    assert [line["step"] for line in means] == [4, 8, 12]
    for position, mean in enumerate(means):
        part = lines[4 * position : 4 * position + 4]
        assert mean["loss"] == pytest.approx(sum(line["loss"] for line in part) / 4)
        assert mean["accuracy"] == pytest.approx(sum(line["accuracy"] for line in part) / 4)
        assert mean["val_accuracy"] == part[-1]["val_accuracy"]
        assert 0 <= mean["val_accuracy"] <= 1


def test_the_logged_validation_is_the_accuracy_on_the_examples_held_back(tmp_path):
    training = make_training(tmp_path, make_config(val_size=50, log_freq=12))
    assert training.run(12, lambda: False, lambda done: None)
    images = training.runs[0].validation.floats(training.runs[0].validation.images.flatten(0, 1))
    right = training.runs[0].model.eval()(images).argmax(dim=1) == torch.arange(10).repeat_interleave(5)
    assert log(tmp_path)[-1]["val_accuracy"] == pytest.approx(float(right.double().mean()))


def test_the_log_has_higheranmls_curves_of_the_next_episode_where_a_checkpoint_is_kept(tmp_path):
    config = make_config(log_freq=1, save_freq=5, eval_steps=[5, 12])
    train(tmp_path / "curves", config)
    train(tmp_path / "without", config.model_copy(update={"save_freq": 100}))
    lines = log(tmp_path / "curves")
    assert [line["step"] for line in lines if "inner/acc_after" in line] == [5, 10]
    assert all(line["gradient_norm"] > 0 and line["val_top5"] >= line["val_accuracy"] for line in lines)
    weights = [content(tmp_path / name, 12)["model.safetensors"] for name in ("curves", "without")]
    assert weights[0] == weights[1]

    model, _ = load_model(step_folder(tmp_path / "curves", 5))
    episode = draw_episode(anml.train.run.training_data(config, CPU)[0], config, 1, 5)
    lobotomize(model.head, episode.new_classes, anml.rng.torch_generator(1, "lobotomy", 5))
    before = (model(episode.images).argmax(dim=1) == episode.labels).double()
    sgd = torch.optim.SGD([model.get_parameter(name) for name in select_names(model, config.inner_params)], lr=0.1)
    for image, label in zip(episode.images[:3], episode.labels[:3], strict=True):
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(model(image[None]), label[None]).backward()
        sgd.step()
    after = (model(episode.images).argmax(dim=1) == episode.labels).double()
    expected = {
        "inner/acc_before": before[:3], "inner/acc_after": after[:3], "meta/acc": before, "adapted/acc": after,
        "meta/remember_acc": before[3:], "adapted/remember_acc": after[3:],
    }  # fmt: skip
    assert {key: lines[4][key] for key in expected} == pytest.approx({k: float(v.mean()) for k, v in expected.items()})


def test_the_log_has_the_range_of_learned_rates_which_the_checkpoint_holds(tmp_path):
    train(tmp_path, make_config(inner_optimizer="meta-sgd", log_freq=1))
    [line] = [line for line in log(tmp_path) if line["step"] == 10]
    state = load_training_state(step_folder(tmp_path, 10))
    names = ["inner_lr." + name for name in select_names(load_model(step_folder(tmp_path, 10))[0], ["rln", "fc"])]
    assert list(state["rates"]) == names
    rates = sorted(rate.item() for rate in state["rates"].values())
    assert rates[0] < 0.1 < rates[-1]
    assert [line["inner/lr_min"], line["inner/lr_max"]] == [rates[0], rates[-1]]


def test_without_validation_nothing_is_said_of_it(tmp_path):
    train(tmp_path, make_config(val_size=0, train_size=20))
    assert "val_accuracy" not in log(tmp_path)[0]


def test_every_logged_line_is_passed_on(tmp_path):
    lines: list[dict[str, Any]] = []
    training = make_training(tmp_path, make_config(), on_log=lines.append)
    done: list[int] = []
    training.run(12, lambda: False, done.append)
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert done == list(range(1, 13))


class RunOnGpu:
    """What the loop sees of a run on a GPU, which needs 10 ms for a step and is not waited for."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.device, self.completed, self.is_over = config, torch.device("cuda"), 0, False
        self.best = None
        self.speeds: list[float] = []
        self.done_at = 0.0

    def step(self, index: int) -> EpisodeOutcome:
        self.done_at = max(self.done_at, time.perf_counter()) + 0.01
        return EpisodeOutcome(torch.zeros(()), torch.zeros(()), {})

    def synchronize(self, device: torch.device) -> None:
        time.sleep(max(0.0, self.done_at - time.perf_counter()))

    def take(self, outcome: EpisodeOutcome) -> None:
        self.completed += 1

    def log(self, steps_per_second: float, curves: dict[str, float]) -> None:
        self.speeds.append(steps_per_second)

    def save(self) -> None:
        pass

    def drop_earlier(self) -> None:
        pass


def test_the_logged_speed_is_that_of_the_device(tmp_path, monkeypatch):
    training, run = make_training(tmp_path, make_config()), RunOnGpu(make_config())
    training.runs, training.updaters = [run], [run]  # type: ignore[list-item]
    monkeypatch.setattr(torch.cuda, "synchronize", run.synchronize)
    assert training.run(12, lambda: False, lambda done: None)
    assert len(run.speeds) == 3
    assert max(run.speeds) < 101
