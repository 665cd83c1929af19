"""I.i.d. training: plain SGD with its schedule, zapping, biased steps, and optimizers that torch does not have."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

import anml.rng
import anml.train.run
from anml.checkpoints import load_model
from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.train.iid import make_optimizer, make_schedule
from tests.train.conftest import CPU, IID, make_config, make_training, step_folder, train


def plain_iid(config: TrainConfig, folder: Path) -> torch.nn.Module:
    """Train with torch's own optimizer and schedule, the data in the order that training has them."""
    model = make_training(folder, config).runs[0].model
    data, _ = anml.train.run.training_data(config, CPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
    for epoch in range(config.epochs):
        order = torch.randperm(150, generator=anml.rng.torch_generator(1, "shuffle", epoch))
        for start in range(0, 150, 32):
            batch = order[start : start + 32]
            images, labels = data.batch(batch // 15, batch % 15)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            if config.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
        schedule.step()
    return model


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_iid_training_is_plain_sgd_with_its_schedule(tmp_path, undisturbed, max_grad_norm):
    config = make_config(IID, lobo_rate=None, max_grad_norm=max_grad_norm)
    expected = plain_iid(config, tmp_path / "plain").state_dict()
    found, _ = load_model(step_folder(undisturbed(config), 15))
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)


def test_zapping_re_draws_output_rows_at_the_start_of_epochs(tmp_path):
    config = make_config(IID, lr=1e-12, optimizer_args={}, lobo_rate=2, epochs=5, eval_steps=[5, 10, 15, 20, 25])
    train(tmp_path, config)
    weights = [load_model(step_folder(tmp_path, step))[0].head.weight for step in (5, 10, 15, 20, 25)]
    moved = [(b - a).abs().amax(dim=1) > 1e-3 for a, b in pairwise(weights)]
    assert [int(rows.sum()) for rows in moved] == [0, 3, 0, 3]  # In epochs 3 and 5.
    assert not torch.equal(moved[1], moved[3])


@pytest.mark.parametrize(("first", "moved"), [(0, [True, False, True, False]), (1, [False, True, False, True])])
def test_zapping_may_begin_earlier(first, moved):
    config = make_config(IID, lobo_rate=2, lobo_first=first)
    assert [config.is_zapping(epoch) for epoch in range(4)] == moved


def test_biased_steps_move_their_parameters_alone_before_the_batches_of_an_epoch(tmp_path):
    biased = {"lobo_biased_steps": 2, "lobo_biased_fraction": 0.5, "lobo_biased_params": ["head"]}
    config = make_config(IID, **biased, lobo_size=12, epochs=2, eval_steps=[5, 6, 7, 8], save_freq=1, lr_scheduler=None)
    assert (config.first_step(1), config.total_steps) == (5, 12)
    train(tmp_path, config, until=8)
    states = [load_model(step_folder(tmp_path, step))[0].state_dict() for step in (5, 6, 7, 8)]
    moved = [{name for name in a if not torch.equal(a[name], b[name])} for a, b in pairwise(states)]
    assert moved[:2] == [{"fc.weight", "fc.bias"}] * 2
    assert moved[2] > moved[0]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(None, (2 / (12 * 36)) ** 0.5), ("all_rows", (2 / (12 * 36)) ** 0.5), ("each_row", (2 / 36) ** 0.5)],
)
def test_zapped_rows_have_the_scale_of_the_config(tmp_path, scale, expected):
    config = make_config(IID, lr=1e-12, optimizer_args={}, lobo_size=12, lobo_scale=scale, epochs=2)
    train(tmp_path, config)
    weight = load_model(step_folder(tmp_path, 10))[0].head.weight
    assert weight.shape == (12, 36)
    assert weight.std().item() == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "Adamm"}, "optimizer: torch has no 'Adamm'"),
        ({"optimizer": "_functional"}, "optimizer: torch has no"),
        ({"optimizer_args": {"momentom": 1}}, "optimizer_args: SGD does not take"),
        ({"optimizer_args": {"momentum": -1}}, "optimizer_args: SGD does not take"),
        ({"lr_scheduler": "Step"}, "lr_scheduler: torch has no 'Step'"),
        ({"lr_scheduler_args": {}}, "lr_scheduler_args: StepLR does not take"),
        ({"lr_scheduler": "ReduceLROnPlateau", "lr_scheduler_args": {}}, "needs a validation loss"),
    ],
    ids=str,
)
def test_a_wrong_optimizer_or_schedule_is_a_config_error(changes, message):
    config = make_config(IID, **changes)
    with pytest.raises(ConfigError, match=message):
        make_schedule(config, make_optimizer(config, torch.nn.Linear(1, 1)))  # type: ignore[arg-type]
