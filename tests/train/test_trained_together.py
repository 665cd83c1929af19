"""Seeds trained together: each as if alone, each with its own folder, and exact however often they are stopped."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anml.checkpoints import load_model, read_card, steps_saved
from anml.config.training import TrainConfig, TrainingId
from anml.train.loop import Training
from anml.train.run import RunSpec

SMALL = {
    "dataset": "glyphs", "train_classes": 10, "train_size": 15, "model": "anml",
    "model_args": {"rln_chs": 3, "nm_chs": 2, "num_classes": 12}, "num_batches": 2, "remember_size": 6,
    "inner_params": ["rln", "fc"], "epochs": 8, "log_freq": 4, "save_freq": 3, "val_size": 20, "engine": "fast",
    "seeds": [1, 5], "train_together": True,
}  # fmt: skip
OPTIONS = {
    "ema_decay": 0.3, "outer_lr_scheduler": "MultiStepLR",
    "outer_lr_scheduler_args": {"milestones": [2, 4], "gamma": 0.25}, "outer_lr": 0.004,
}  # fmt: skip
CPU = torch.device("cpu")


def make_config(**changes: Any) -> TrainConfig:
    return TrainConfig(**(SMALL | changes))


def specs(folder: Path, config: TrainConfig) -> list[RunSpec]:
    return [
        RunSpec(config.for_training(each), folder / each.tag, folder / f"{each.tag}.jsonl") for each in config.trainings
    ]


def train_alone(folder: Path, config: TrainConfig, each: TrainingId) -> Training:
    own = config.for_training(each)
    alone = Training([RunSpec(own, folder / each.tag, folder / f"{each.tag}.jsonl")], CPU)
    alone.run(8, lambda: False, lambda done: None)
    return alone


def train(folder: Path, config: TrainConfig, until: int = 8, stop_at: int | None = None) -> bool:
    training = Training(specs(folder, config), CPU)
    return training.run(until, lambda: training.completed == stop_at, lambda done: None)


def content(folder: Path) -> dict[str, str]:
    """Return the checksum of every file of the last checkpoint of every seed."""
    files = folder.glob("seed-*/step-000008/*")
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def log(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "steps_per_second"} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    assert train(folder, make_config())
    return folder


def test_every_seed_has_its_own_checkpoints_and_log(finished: Path) -> None:
    for seed in (1, 5):
        assert steps_saved(finished / f"seed-{seed}") == [6, 8]
        assert read_card(finished / f"seed-{seed}" / "step-000008").seed == seed
        assert [line["step"] for line in log(finished / f"seed-{seed}.jsonl")] == [4, 8]


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"inner_lrs": [0.1, 0.01], "max_grad_norm": 1.0}, OPTIONS, {"train_method": "sequential_episodic"},
        {"vary": {"ema_decay": [None, 0.3], "max_grad_norm": [None, 0.5]}, "seeds": [1]},
    ],
    ids=["seeds", "inner rates", "averages and schedules", "another method", "with and without"],
)  # fmt: skip
def test_each_is_bit_for_bit_what_a_training_of_its_own_gives(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = make_config(**changes)
    assert train(tmp_path / "together", config)
    for each in config.trainings:
        alone = train_alone(tmp_path / "alone", config, each)
        model, card = load_model(tmp_path / "together" / each.tag / "step-000008")
        assert (card.seed, card.ema_decay) == (dict(each.varied)["seed"], config.for_training(each).ema_decay)
        kept = alone.runs[0].kept_model.state_dict()
        assert [name for name, value in model.state_dict().items() if not torch.equal(value, kept[name])] == []
        assert log(tmp_path / "together" / f"{each.tag}.jsonl") == log(tmp_path / "alone" / f"{each.tag}.jsonl")


def test_stopped_averages_and_schedules_end_in_the_same_bytes(tmp_path: Path) -> None:
    config = make_config(**OPTIONS)
    assert train(tmp_path / "in one go", config)
    for stop in (1, 3, 7):
        assert not train(tmp_path / "stopped", config, stop_at=stop)
    assert train(tmp_path / "stopped", config)
    assert content(tmp_path / "stopped") == content(tmp_path / "in one go")


@pytest.mark.parametrize("stops", [(5,), (1, 3, 7)], ids=["once", "often"])
def test_stopped_seeds_end_in_the_same_bytes(finished: Path, tmp_path: Path, stops: tuple[int, ...]) -> None:
    for stop in stops:
        assert not train(tmp_path, make_config(), stop_at=stop)
    assert train(tmp_path, make_config())
    assert content(tmp_path) == content(finished)
    assert [log(tmp_path / f"seed-{s}.jsonl") for s in (1, 5)] == [log(finished / f"seed-{s}.jsonl") for s in (1, 5)]


class Killed(BaseException):
    """Ends a training as abruptly as a test can."""


def test_seeds_killed_between_their_checkpoints_go_on_from_a_common_one(finished: Path, tmp_path: Path) -> None:
    training = Training(specs(tmp_path, make_config()), CPU)
    save: Callable[[], None] = training.runs[1].save

    def die() -> None:
        if training.completed == 6:
            raise Killed
        save()

    training.runs[1].save = die
    with pytest.raises(Killed):
        training.run(8, lambda: False, lambda done: None)
    assert [steps_saved(tmp_path / f"seed-{s}") for s in (1, 5)] == [[3, 6], [3]]
    assert Training(specs(tmp_path, make_config()), CPU).completed == 3
    assert train(tmp_path, make_config())
    assert content(tmp_path) == content(finished)
    assert [log(tmp_path / f"seed-{s}.jsonl") for s in (1, 5)] == [log(finished / f"seed-{s}.jsonl") for s in (1, 5)]


def test_saves_that_break_off_again_and_again_lose_no_common_checkpoint(tmp_path: Path) -> None:
    assert train(tmp_path, make_config(), until=3)
    for step in (6, 8):
        training = Training(specs(tmp_path, make_config()), CPU)
        assert training.completed == 3

        def die() -> None:
            raise Killed

        training.runs[1].save = die
        with pytest.raises(Killed):
            training.run(step, lambda: False, lambda done: None)
    assert Training(specs(tmp_path, make_config()), CPU).completed == 3


def test_a_seed_trained_together_can_go_on_alone(finished: Path, tmp_path: Path) -> None:
    train(tmp_path, make_config(), stop_at=5)
    alone = Training(specs(tmp_path, make_config())[1:], CPU)
    assert alone.completed == 5
    alone.run(8, lambda: False, lambda done: None)
    expected, _ = load_model(finished / "seed-5" / "step-000008")
    assert torch.equal(alone.runs[0].model.head.weight, expected.head.weight)


def test_says_what_trains(tmp_path: Path) -> None:
    config = make_config()
    assert Training(specs(tmp_path, config), CPU).note == "engine fast, asked for, 2 trainings at once"
