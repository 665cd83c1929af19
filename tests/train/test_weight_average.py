"""The average of the weights: the obvious loop's, of everything a model computes with, and no part of the training."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from anml.checkpoints import load_model, load_training_state, read_card
from anml.config.training import TrainConfig
from anml.models import build_model
from anml.models.meta_model import MetaModel
from anml.train.loop import Training
from anml.train.run import RunSpec, WeightAverage, step_folder

CONVNET = {
    "model": "classifier",
    "model_args": {
        "encoder": "convnet",
        "encoder_args": {"num_blocks": 2, "num_filters": [3], "norm_type": "bn"},
        "classifier_args": {"num_classes": 12},
    },
}
SMALL = {
    "dataset": "glyphs", "train_classes": 10, "train_size": 15, "num_batches": 2, "remember_size": 6, "epochs": 6,
    "engine": "fast", "log_freq": 3, "outer_lr": 0.01, "ema_decay": 0.4,
} | CONVNET  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "meta": {},
    "native": {"engine": "native", "model": "anml", "inner_params": ["rln", "fc"]}
    | {"model_args": {"rln_chs": 3, "nm_chs": 2, "num_classes": 12}},
    "first order": {"train_method": "meta-first-order"},
    "sequential_episodic": {"train_method": "sequential_episodic"},
    "iid": {"train_method": "iid", "batch_size": 75, "epochs": 3},
}
State = dict[str, torch.Tensor]


def make_training(folder: Path, **changes: Any) -> Training:
    config = TrainConfig(**(SMALL | changes))
    return Training([RunSpec(config, folder / "checkpoints", folder / "metrics.jsonl")], torch.device("cpu"))


def train(folder: Path, until: int = 6, **changes: Any) -> Training:
    training = make_training(folder, **changes)
    assert training.run(until, lambda: False, lambda done: None)
    return training


def saved(folder: Path, step: int = 6) -> State:
    return load_model(step_folder(folder / "checkpoints", step))[0].state_dict()


def averaged_by_hand(states: list[State], decay: float) -> State:
    """Return the average of the first state and those after each update, one number after another in float64."""
    average = {name: value.double() for name, value in states[0].items()}
    for update, state in enumerate(states[1:], start=1):
        rate = min(decay, (1 + update) / (10 + update))
        for name, value in state.items():
            average[name] = rate * average[name] + (1 - rate) * value.double()
    return average


def assert_averaged(found: State, states: list[State], decay: float, tolerance: float) -> None:
    for name, expected in averaged_by_hand(states, decay).items():
        if found[name].is_floating_point():
            torch.testing.assert_close(found[name].double(), expected, rtol=tolerance, atol=tolerance, msg=name)
        else:
            assert torch.equal(found[name], states[-1][name]), name


def moved(model: MetaModel, updates: int) -> list[State]:
    """Move all state of a model about in place; return what it was before and after each update."""
    generator, states = torch.Generator().manual_seed(0), [copy.deepcopy(model.state_dict())]
    for _ in range(updates):
        for value in model.state_dict().values():
            value.add_(torch.randn(value.shape, generator=generator) if value.is_floating_point() else 1)
        states.append(copy.deepcopy(model.state_dict()))
    return states


# Of 0.25, from the fourth update on, and of 0.999, never reached here: both sides of the minimum.
@pytest.mark.parametrize("decay", [0.25, 0.999])
def test_the_average_is_that_of_the_obvious_loop(decay: float) -> None:
    model = build_model("classifier", CONVNET["model_args"], (1, 28, 28), seed=1).double()
    states = moved(model, 12)
    model.load_state_dict(states[0])
    average = WeightAverage(model, decay)
    for state in states[1:]:
        model.load_state_dict(state)
        average.update()
    assert_averaged(average.model.state_dict(), states, decay, 1e-13)


@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.native] * (m == "native")) for m in METHODS])
def test_a_checkpoint_holds_the_average_over_every_update(tmp_path: Path, method: str) -> None:
    training = make_training(tmp_path, **METHODS[method])
    states = [copy.deepcopy(training.runs[0].model.state_dict())]
    training.run(6, lambda: False, lambda done: states.append(copy.deepcopy(training.runs[0].model.state_dict())))
    assert_averaged(saved(tmp_path), states, 0.4, 1e-5)
    assert any(
        not torch.equal(value, training.runs[0].model.state_dict()[name]) for name, value in saved(tmp_path).items()
    )


@pytest.mark.parametrize("method", ["meta", "iid"])
def test_averaging_does_not_change_the_training(tmp_path: Path, method: str) -> None:
    averaged = train(tmp_path / "a", **METHODS[method])
    train(tmp_path / "b", ema_decay=None, **METHODS[method])
    weights = load_training_state(step_folder(tmp_path / "a" / "checkpoints", 6))["weights"]
    for name, value in saved(tmp_path / "b").items():
        assert torch.equal(weights[name], value), name
        assert torch.equal(averaged.runs[0].model.state_dict()[name], value), name


def test_the_logged_validation_is_of_the_model_that_is_kept(tmp_path: Path) -> None:
    logged, kept, raw = [], [], []
    for episodes in (6, 18, 30):  # Two models may be right equally often by chance, but not each time.
        training = make_training(
            tmp_path / str(episodes), val_size=50, outer_lr=0.03, ema_decay=0.999, log_freq=episodes, epochs=episodes
        )
        training.runs[0].on_log = lambda line: logged.append(line["val_accuracy"])
        training.run(episodes, lambda: False, lambda done: None)
        folder = step_folder(tmp_path / str(episodes) / "checkpoints", episodes)
        kept.append(validation_accuracy(training, load_model(folder)[0]))
        raw.append(validation_accuracy(training, training.runs[0].model))
    assert logged == pytest.approx(kept)
    assert kept != raw


def validation_accuracy(training: Training, model: MetaModel) -> float:
    """Return the accuracy on the 5 images of each of 10 classes that training leaves out."""
    images = training.runs[0].validation.floats(training.runs[0].validation.images.flatten(0, 1))
    labels = torch.arange(10).repeat_interleave(5)
    return (copy.deepcopy(model).eval()(images).argmax(dim=1) == labels).double().mean().item()


def test_an_average_begins_from_a_checkpoint_that_has_none(tmp_path: Path) -> None:
    train(tmp_path, until=3, ema_decay=None)
    states = [saved(tmp_path, 3)]
    training = make_training(tmp_path, ema_decay=0.4)
    training.run(6, lambda: False, lambda done: states.append(copy.deepcopy(training.runs[0].model.state_dict())))
    assert_averaged(saved(tmp_path), states, 0.4, 1e-5)


def test_a_training_goes_on_from_its_weights_when_it_is_no_longer_to_average(tmp_path: Path) -> None:
    train(tmp_path / "a", until=3)
    train(tmp_path / "a", ema_decay=None)
    train(tmp_path / "b", ema_decay=None)
    assert all(torch.equal(value, saved(tmp_path / "b")[name]) for name, value in saved(tmp_path / "a").items())


def test_the_untrained_network_is_itself(tmp_path: Path) -> None:
    fresh = make_training(tmp_path, eval_untrained=True).runs[0].model.state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in saved(tmp_path, 0).items())


def test_the_card_tells_that_the_model_is_an_average(tmp_path: Path) -> None:
    train(tmp_path / "a", until=1)
    train(tmp_path / "b", until=1, ema_decay=None)
    decays = [read_card(step_folder(tmp_path / name / "checkpoints", 1)).ema_decay for name in ("a", "b")]
    assert decays == [0.4, None]
