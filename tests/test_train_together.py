"""Seeds trained together: each as if alone, each with its own folder, and exact however often they are stopped."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anml.checkpoints import load_model, read_card, steps_saved
from anml.config.training import TrainConfig
from anml.train.loop import Lane, Training, TrainingTogether

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


def lanes(folder: Path, config: TrainConfig) -> list[Lane]:
    return [
        Lane(config.for_training(each), folder / each.tag, folder / f"{each.tag}.jsonl") for each in config.trainings
    ]


def train(folder: Path, config: TrainConfig, until: int = 8, stop_at: int | None = None) -> bool:
    training = TrainingTogether(config, lanes(folder, config), CPU)
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


def test_every_seed_is_what_a_training_of_its_own_gives(finished: Path, tmp_path: Path) -> None:
    for seed in (1, 5):
        alone = Training(make_config(), seed, tmp_path / str(seed), tmp_path / f"{seed}.jsonl", CPU)
        alone.run(8, lambda: False, lambda done: None)
        model, _ = load_model(finished / f"seed-{seed}" / "step-000008")
        for name, value in alone.model.state_dict().items():
            if not name.endswith("conv.bias"):  # Without effect before a norm: rounding noise, which Adam enlarges.
                torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)
        for found, expected in zip(log(finished / f"seed-{seed}.jsonl"), log(tmp_path / f"{seed}.jsonl"), strict=True):
            assert found == pytest.approx(expected, abs=1e-3)


def test_inner_rates_trained_together_are_what_trainings_of_their_own_give(tmp_path: Path) -> None:
    config = make_config(seeds=[1, 5], inner_lrs=[0.1, 0.01], max_grad_norm=1.0)
    assert train(tmp_path, config)
    for each in config.trainings:
        own, folder = config.for_training(each), tmp_path / "alone" / each.tag
        alone = Training(own, own.seed, folder, folder / "log.jsonl", CPU)
        alone.run(8, lambda: False, lambda done: None)
        model, card = load_model(tmp_path / each.tag / "step-000008")
        assert (card.display_name, card.seed) == (f"anml-inner-lr-{each.inner_lr}", each.seed)
        torch.testing.assert_close(model.head.weight, alone.model.head.weight, rtol=1e-3, atol=1e-4)
        assert log(tmp_path / f"{each.tag}.jsonl")[-1] == pytest.approx(log(folder / "log.jsonl")[-1], abs=1e-3)


def test_averages_and_scheduled_rates_are_those_of_trainings_of_their_own(tmp_path: Path) -> None:
    config = make_config(**OPTIONS)
    assert train(tmp_path, config)
    for each in config.trainings:
        own, folder = config.for_training(each), tmp_path / "alone" / each.tag
        alone = Training(own, own.seed, folder, folder / "log.jsonl", CPU)
        alone.run(8, lambda: False, lambda done: None)
        (found, card), (expected, _) = (load_model(f / "step-000008") for f in (tmp_path / each.tag, folder))
        assert card.ema_decay == 0.3
        torch.testing.assert_close(found.head.weight, expected.head.weight, rtol=1e-3, atol=1e-4)
        assert (expected.head.weight - alone.model.head.weight).abs().max() > 1e-3  # It is the average that is kept.
        lines = log(tmp_path / f"{each.tag}.jsonl")
        assert [line["outer_lr"] for line in lines] == [0.001, 0.00025]
        for line, wanted in zip(lines, log(folder / "log.jsonl"), strict=True):
            assert line == pytest.approx(wanted, abs=1e-3)


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
    training = TrainingTogether(make_config(), lanes(tmp_path, make_config()), CPU)
    save: Callable[[], None] = training.runs[1].save

    def die() -> None:
        if training.completed == 6:
            raise Killed
        save()

    training.runs[1].save = die
    with pytest.raises(Killed):
        training.run(8, lambda: False, lambda done: None)
    assert [steps_saved(tmp_path / f"seed-{s}") for s in (1, 5)] == [[3, 6], [3]]
    assert TrainingTogether(make_config(), lanes(tmp_path, make_config()), CPU).completed == 3
    assert train(tmp_path, make_config())
    assert content(tmp_path) == content(finished)
    assert [log(tmp_path / f"seed-{s}.jsonl") for s in (1, 5)] == [log(finished / f"seed-{s}.jsonl") for s in (1, 5)]


def test_a_seed_trained_together_can_go_on_alone(finished: Path, tmp_path: Path) -> None:
    train(tmp_path, make_config(), stop_at=5)
    alone = Training(make_config(), 5, tmp_path / "seed-5", tmp_path / "seed-5.jsonl", CPU)
    assert alone.completed == 5
    alone.run(8, lambda: False, lambda done: None)
    expected, _ = load_model(finished / "seed-5" / "step-000008")
    torch.testing.assert_close(alone.model.head.weight, expected.head.weight, rtol=1e-3, atol=1e-4)


def test_says_what_trains(tmp_path: Path) -> None:
    config = make_config()
    note = TrainingTogether(config, lanes(tmp_path, config), CPU).note
    assert note == (
        "engine lanes, 2 trainings at once; "
        "on a CPU that is slower than one after another: train_together is meant for GPUs"
    )
