"""The outer learning rate by episode: as torch's own optimizer has it, whatever the method and the engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anml.cli.check_config import find_problems
from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.meta.outer_step import outer_lrs
from anml.train.loop import Training
from anml.train.run import RunSpec

SMALL = {
    "dataset": "glyphs", "train_classes": 10, "train_size": 15, "model": "sanml",
    "model_args": {"rln_chs": 3, "num_classes": 12}, "num_batches": 2, "remember_size": 6, "epochs": 8,
    "engine": "fast", "log_freq": 2, "outer_lr": 0.01,
}  # fmt: skip
SCHEDULES: dict[str, dict[str, Any]] = {
    "MultiStepLR": {"milestones": [3, 6], "gamma": 0.1},
    "CosineAnnealingLR": {"T_max": 8},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "LinearLR": {"start_factor": 0.1, "total_iters": 4},
    "PolynomialLR": {"total_iters": 5, "power": 2.0},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 8, "cycle_momentum": False},
    "CyclicLR": {"base_lr": 0.001, "max_lr": 0.01, "step_size_up": 3, "cycle_momentum": False},
}
MILESTONES = {"outer_lr_scheduler": "MultiStepLR", "outer_lr_scheduler_args": SCHEDULES["MultiStepLR"]}


def make_config(**changes: Any) -> TrainConfig:
    return TrainConfig(**(SMALL | changes))


def make_training(folder: Path, config: TrainConfig) -> Training:
    return Training([RunSpec(config, folder / "checkpoints", folder / "train.jsonl")], torch.device("cpu"))


def train(folder: Path, config: TrainConfig) -> Training:
    training = make_training(folder, config)
    assert training.run(config.total_steps, lambda: False, lambda done: None)
    return training


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_those_of_torchs_own_optimizer(name: str) -> None:
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=0.01)
    schedule = getattr(torch.optim.lr_scheduler, name)(optimizer, **SCHEDULES[name])
    expected = []
    for episode in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        parameter.grad = torch.ones(1)
        optimizer.step()
        if episode < 7:
            schedule.step()
    found = outer_lrs(make_config(outer_lr_scheduler=name, outer_lr_scheduler_args=SCHEDULES[name]))
    assert found == expected
    assert len(set(found)) > 1


def test_without_a_schedule_there_are_no_rates() -> None:
    assert outer_lrs(make_config()) == []


@pytest.mark.parametrize("method", ["meta", "meta-first-order", "sequential_episodic"])
def test_every_update_is_made_with_the_rate_of_its_episode(tmp_path: Path, method: str) -> None:
    """The same as a training whose rate is changed by hand at the milestones."""
    found = train(tmp_path / "scheduled", make_config(train_method=method, **MILESTONES))
    by_hand = make_training(tmp_path / "by hand", make_config(train_method=method))
    for until, rate in ((3, 0.01), (6, 0.01 * 0.1), (8, 0.01 * 0.1 * 0.1)):
        by_hand.updaters[0].optimizer.param_groups[0]["lr"] = rate
        by_hand.run(until, lambda: False, lambda done: None)
    for name, value in by_hand.runs[0].model.state_dict().items():
        assert torch.equal(found.runs[0].model.state_dict()[name], value), name


def test_the_log_tells_the_rate_only_where_there_is_a_schedule(tmp_path: Path) -> None:
    train(tmp_path / "a", make_config(**MILESTONES))
    train(tmp_path / "b", make_config())
    with_schedule, without = (
        [json.loads(line) for line in (tmp_path / name / "train.jsonl").read_text().splitlines()] for name in "ab"
    )
    # The rates of episodes 2, 4, 6 and 8, counted from one: before the first milestone, and after it, and after both.
    assert [line["outer_lr"] for line in with_schedule] == pytest.approx([0.01, 0.001, 0.001, 0.0001])
    assert [line for line in without if "outer_lr" in line] == []


WRONG = [
    ("MultiStep", {}, "outer_lr_scheduler: torch has no 'MultiStep'; did you mean 'MultiStepLR'"),
    ("MultiStepLR", {}, "outer_lr_scheduler_args: MultiStepLR does not take"),
    ("MultiStepLR", {"milestone": [3]}, "outer_lr_scheduler_args: MultiStepLR does not take"),
    ("MultiStepLR", {"milestones": 3}, "outer_lr_scheduler_args: MultiStepLR does not take"),
    ("StepLR", {"step_size": 0}, "outer_lr_scheduler_args: StepLR with .* fails at episode 1"),
    ("StepLR", {"step_size": 2, "gamma": -1.0}, "gives the rate -0.01 at episode 2"),
    ("StepLR", {"step_size": 1, "gamma": 1e200}, "gives the rate inf at episode 2"),
    ("CosineAnnealingLR", {"T_max": "all"}, "outer_lr_scheduler_args: CosineAnnealingLR"),
    ("OneCycleLR", {"max_lr": 0.1, "total_steps": 8}, "changes Adam's betas; .* add cycle_momentum: false"),
    ("OneCycleLR", {"max_lr": 0.1, "total_steps": 5, "cycle_momentum": False}, "fails at episode 6"),
    ("ReduceLROnPlateau", {}, "needs a validation loss; use one that depends on the episode alone"),
    ("LambdaLR", {"lr_lambda": "lambda e: 1"}, "outer_lr_scheduler_args: LambdaLR does not take"),
    ("SequentialLR", {"schedulers": ["StepLR"], "milestones": []}, "outer_lr_scheduler_args: SequentialLR does not"),
    ("ChainedScheduler", {}, "outer_lr_scheduler_args: ChainedScheduler"),
    ("LRScheduler", {}, "outer_lr_scheduler: torch has no 'LRScheduler'"),
    ("Counter", {}, "outer_lr_scheduler: torch has no 'Counter'"),
    ("Cosine", {}, "torch has no 'Cosine'; it has: ChainedScheduler, .*CosineAnnealingLR"),
    ("warmup", {}, "torch has no 'warmup'; it has: ChainedScheduler, .*CosineAnnealingLR"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), WRONG, ids=str)
def test_a_wrong_schedule_is_a_config_error(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        outer_lrs(make_config(outer_lr_scheduler=name, outer_lr_scheduler_args=arguments))


def test_a_wrong_schedule_is_found_before_anything_is_submitted() -> None:
    config = make_config(outer_lr_scheduler="MultiStepLR", outer_lr_scheduler_args={"milestone": [3]})
    [message] = find_problems(config)
    assert message.startswith("outer_lr_scheduler_args: MultiStepLR does not take {'milestone': [3]}")
