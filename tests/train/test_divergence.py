"""A training that diverges stops at once, says where and what is left of it, and keeps no checkpoint of NaNs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anml.checkpoints import steps_saved
from anml.config.training import FewShot, TrainConfig
from anml.data.class_images import ClassImages
from anml.errors import JobError
from anml.meta.engine import EpisodeOutcome
from anml.train.loop import EpisodeUpdater, Training
from anml.train.run import RunSpec

SMALL = {
    "dataset": "glyphs", "train_classes": 10, "train_size": 15, "num_batches": 2, "remember_size": 6, "epochs": 12,
    "model": "anml", "model_args": {"rln_chs": 3, "nm_chs": 2, "num_classes": 12}, "inner_params": ["rln", "fc"],
    "engine": "fast", "log_freq": 4, "save_freq": 5, "seed": 7,
}  # fmt: skip
IID = {"train_method": "iid", "batch_size": 75, "epochs": 6, "lr": 0.001}
PROTOTYPES = {"train_method": "prototypes", "few_shot": FewShot(ways=5, shots=3, queries=3), "outer_lr": 1e38}
KINDS: dict[str, dict[str, Any]] = {
    "meta": {},
    "meta, native": {"engine": "native"},
    "meta, clipped": {"max_grad_norm": 0.1},
    "meta, averaged": {"ema_decay": 0.4},
    "first order": {"train_method": "meta-first-order"},
    "sequential_episodic": {"train_method": "sequential_episodic"},
    "iid": IID,
}
CPU = torch.device("cpu")


def make_config(**changes: Any) -> TrainConfig:
    return TrainConfig(**(SMALL | changes))


def make_training(folder: Path, **changes: Any) -> Training:
    return Training([RunSpec(make_config(**changes), folder / "checkpoints", folder / "metrics.jsonl")], CPU)


def make_together(folder: Path, **changes: Any) -> Training:
    config = make_config(train_together=True, **changes)
    ids = config.trainings
    return Training(
        [RunSpec(config.for_training(each), folder / each.tag, folder / f"{each.tag}.jsonl") for each in ids], CPU
    )


def run(training: Training, until: int = 12) -> bool:
    return training.run(until, lambda: False, lambda done: None)


def failure(training: Training, until: int = 12) -> str:
    """Return what a training says that diverges before step `until`."""
    with pytest.raises(JobError) as caught:
        run(training, until)
    return str(caught.value)


def spoil_next_update(training: Training, rate: float = 1e30) -> None:
    """Let the next update put numbers into the weights that the loss of the step behind it cannot hold."""
    for group in training.updaters[0].optimizer.param_groups:
        group["lr"] = rate


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.native] * ("native" in k)) for k in KINDS])
def test_a_diverged_training_names_the_step_the_seed_and_its_last_good_checkpoint(tmp_path: Path, kind: str) -> None:
    training = make_training(tmp_path, **KINDS[kind])
    assert run(training, 5)
    spoil_next_update(training)
    message = failure(training)
    assert training.completed == 7
    assert f"in {'optimizer step' if kind == 'iid' else 'episode'} 7 (seed 7" in message
    assert f"last good checkpoint: {tmp_path / 'checkpoints' / 'step-000005'}." in message
    assert steps_saved(tmp_path / "checkpoints") == [5]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inner_lr": 1e30}, "(seed 7, inner_lr 1e+30) is not finite; there is no checkpoint from before"),
        ({"inner_lr": 1e30}, "launch with a lower inner_lr or outer_lr, or with max_grad_norm."),
        ({"inner_lr": 1e30, "max_grad_norm": 1.0}, "or with a lower max_grad_norm."),
        (IID | {"lr": 1e30}, "launch with a lower lr, or with max_grad_norm."),
        (PROTOTYPES, "(seed 7) is not finite"),
        (PROTOTYPES, "launch with a lower outer_lr, or with max_grad_norm."),
    ],
)
def test_a_diverged_training_says_what_may_help(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in failure(make_training(tmp_path, **changes))


def test_the_untrained_network_is_a_good_checkpoint(tmp_path: Path) -> None:
    message = failure(make_training(tmp_path, inner_lr=1e30, eval_untrained=True))
    assert f"last good checkpoint: {tmp_path / 'checkpoints' / 'step-000000'}." in message


def test_a_gradient_that_is_not_finite_is_told_though_the_loss_is(tmp_path: Path) -> None:
    training = make_training(tmp_path, **IID)
    with torch.no_grad():  # Gradients grow at the output layer, and again at the norm, which divides by little.
        training.runs[0].model.get_parameter("fc.weight").mul_(3e36)
        training.runs[0].model.get_parameter("rln.convBlock1.conv.weight").mul_(1e-6)
    assert "the gradient of rln.convBlock1.conv.weight in optimizer step 1 " in failure(training)
    [(loss, _)] = training.runs[0].recent
    assert loss.isfinite()


def test_no_checkpoint_holds_a_learned_rate_that_is_not_finite(tmp_path: Path) -> None:
    training = make_training(tmp_path, inner_optimizer="meta-sgd")
    assert run(training, 5)
    spoiled = training.runs[0]
    spoiled.completed = 6
    spoiled.rates["inner_lr.fc.bias"].detach().fill_(torch.nan)
    with pytest.raises(JobError, match=r"inner_lr\.fc\.bias after episode 6 "):
        spoiled.save()
    assert steps_saved(tmp_path / "checkpoints") == [5]


def test_one_of_several_trainings_together_is_named(tmp_path: Path) -> None:
    assert run(make_together(tmp_path, inner_lrs=[0.1, 0.01]), 5)
    (tmp_path / "inner-lr-0.01").rename(tmp_path / "inner-lr-1e+30")
    message = failure(make_together(tmp_path, inner_lrs=[0.1, 1e30]))
    assert "in episode 6 (seed 7, inner_lr 1e+30)" in message
    assert f"last good checkpoint: {tmp_path / 'inner-lr-1e+30' / 'step-000005'}." in message
    assert "set train_together: false" in message
    assert [steps_saved(tmp_path / f"inner-lr-{rate}") for rate in ("0.1", "1e+30")] == [[5], [5]]


def ordinary(training: Training) -> None:
    """Leave a training as it is."""


def static(training: Training) -> None:
    """Let a training do the updates that a graph replays: losses come from a ring, gradients from nowhere."""
    updater = training.updaters[0]
    assert isinstance(updater, EpisodeUpdater)
    update = updater.static_update()

    def step(index: int) -> EpisodeOutcome:
        update.fill(index)
        update.update()
        return update.outcome(index)

    updater.step = step


def as_on_a_gpu(folder: Path, way: Callable[[Training], None], **changes: Any) -> Training:
    """Return a training at step 5 that diverges in episode 7, and looks at its losses where one on a GPU does."""
    assert run(make_training(folder, **changes), 5)
    training = make_training(folder, **changes)
    training.runs[0].checks_every_step = False
    way(training)
    spoil_next_update(training)
    return training


@pytest.mark.parametrize("way", [ordinary, static])
def test_a_line_of_the_log_names_the_very_episode(tmp_path: Path, way: Callable[[Training], None]) -> None:
    training = as_on_a_gpu(tmp_path, way)
    assert "the loss in episode 7 " in failure(training)
    assert training.completed == 8
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 5]


@pytest.mark.parametrize("way", [ordinary, static])
def test_a_checkpoint_is_not_kept_after_a_loss_that_is_not_finite(
    tmp_path: Path, way: Callable[[Training], None]
) -> None:
    training = as_on_a_gpu(tmp_path, way, log_freq=100)
    assert "the loss in episode 7 " in failure(training)
    assert training.completed == 10
    assert steps_saved(tmp_path / "checkpoints") == [5]


def test_a_training_that_is_asked_to_stop_keeps_no_checkpoint_either(tmp_path: Path) -> None:
    training = as_on_a_gpu(tmp_path, ordinary, log_freq=100)
    with pytest.raises(JobError, match="the loss in episode 7 "):
        training.run(12, lambda: training.completed == 8, lambda done: None)
    assert steps_saved(tmp_path / "checkpoints") == [5]


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.4}], ids=["weights", "average"])
def test_weights_that_no_loss_has_shown_yet_are_not_kept(tmp_path: Path, changes: dict[str, Any]) -> None:
    training = make_training(tmp_path, save_freq=1, **changes)
    spoil_next_update(training, 1e38)  # Adam divides it by 0.1: beyond float32.
    assert " after episode 1 " in failure(training)
    assert steps_saved(tmp_path / "checkpoints") == []


def test_running_statistics_that_overflow_are_not_kept(tmp_path: Path) -> None:
    encoder = {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": [3], "norm_type": "bn"}}
    training = make_training(
        tmp_path, **IID, model="classifier", model_args=encoder | {"classifier_args": {"num_classes": 12}}
    )
    with torch.no_grad():  # The variance overflows; divided by it, the images are zeros, and the loss is finite.
        training.runs[0].model.get_parameter("encoder.block1.conv.weight").mul_(1e25)
    assert "encoder.block1.norm.running_var after optimizer step 5 " in failure(training)
    assert steps_saved(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("kind", ["meta", "first order", "iid"])
def test_a_single_update_that_is_not_finite_may_be_left_out(tmp_path: Path, kind: str) -> None:
    training = make_training(tmp_path, **KINDS[kind], on_divergence="skip")
    assert run(training, 5)
    before = {name: value.clone() for name, value in training.runs[0].model.state_dict().items()}
    images = training.updaters[0].data.images  # type: ignore[attr-defined]
    whole = training.updaters[0].data.mean_std  # type: ignore[attr-defined]
    nan = ((torch.nan,), (1.0,))
    training.updaters[0].data = ClassImages(images, "spoiled", nan)  # type: ignore[attr-defined]
    assert run(training, 6)
    training.updaters[0].data = ClassImages(images, "whole", whole)  # type: ignore[attr-defined]
    after = training.runs[0].model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed <= {"fc.weight"}  # Where the lobotomy has been.
    assert run(training, 12)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["skipped"] for line in lines} == {4: 0, 5: 0, 6: 1, 8: 0, 12: 0}
    assert all(after[name].isfinite().all() for name in after)


@pytest.mark.parametrize("kind", ["meta", "first order"])
def test_ten_updates_left_out_in_a_row_end_the_training(tmp_path: Path, kind: str) -> None:
    message = failure(make_training(tmp_path, **KINDS[kind], on_divergence="skip", inner_lr=1e30))
    assert "the loss in episode 10 (seed 7" in message
