"""Meta-training by heads without a gradient; rotations, tasks, Reptile, and the best model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Normal, StudentT
from torch.nn.functional import cross_entropy

from anml.checkpoints import load_model, read_card
from anml.config.checks import check_train
from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import draw_episode, draw_few_shot
from anml.errors import JobError
from anml.meta import make_engine
from anml.models.meta_model import select_names
from anml.train.few_shot import FewShotUpdater
from anml.train.loop import Training
from anml.train.run import RunSpec, new_model, step_folder, training_data

CPU = torch.device("cpu")
FEW_SHOT = {"ways": 5, "shots": 4, "queries": 3, "temperature": 0.1}
BASE: dict[str, Any] = {
    "dataset": "glyphs", "train_classes": 40, "train_size": 15, "train_method": "prototypes", "few_shot": FEW_SHOT,
    "model": "sanml", "model_args": {"rln_chs": 4, "num_classes": 100}, "epochs": 12, "log_freq": 3, "save_freq": 3,
}  # fmt: skip


def make_config(**changes: Any) -> TrainConfig:
    return TrainConfig(**(BASE | changes))


def prototypes(support: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    return -((queries[:, None] - support.mean(dim=1)) ** 2).sum(dim=2)


def posteriors(support: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean, alpha and beta of each class and feature by the textbook."""
    mean = support.mean(dim=1)
    scatter = ((support - mean[:, None]) ** 2).sum(dim=1)
    beta = alpha * scatter.sum() / scatter.shape[1] / (support.shape[0] * support.shape[1])
    return mean, torch.tensor(alpha + support.shape[1] / 2), beta + scatter / 2


def gemcl_predictive(support: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    mean, alpha, beta = posteriors(support, 10.0)
    scale = (beta / alpha * (1 + 1 / support.shape[1])).sqrt()
    return StudentT(2 * alpha, mean, scale).log_prob(queries[:, None]).sum(dim=2)


def gemcl_map(support: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    mean, alpha, beta = posteriors(support, 3.0)
    return Normal(mean, (beta / (alpha - 0.5)).sqrt()).log_prob(queries[:, None]).sum(dim=2)


@pytest.mark.parametrize(
    ("method", "options", "plain"),
    [
        ("prototypes", {}, prototypes),
        ("gemcl", {}, gemcl_predictive),
        ("gemcl", {"posterior": "map", "prior_alpha": 3.0}, gemcl_map),
    ],
)
def test_gradients_are_those_of_the_textbook(method: str, options: dict[str, Any], plain: Any) -> None:
    config = make_config(train_method=method, few_shot=FEW_SHOT | options)
    data, _ = training_data(config, CPU)
    model = new_model(config).double()
    images = draw_few_shot(data, config, 3, torch.float64)
    outcome = FewShotUpdater(config, model, data).run(images)

    features = model.encode(images.flatten(0, 1)).view(5, 7, -1)
    logits = plain(features[:, :4], features[:, 4:].flatten(0, 1))
    loss = cross_entropy(0.1 * logits, torch.arange(5).repeat_interleave(3))
    names = [name for name, _ in model.named_parameters() if not name.startswith("fc.")]
    expected = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
    assert abs(float(outcome.loss - loss.detach())) < 1e-9
    for name, gradient in zip(names, expected, strict=True):
        # A convolution's bias is taken out again by the norm: its gradient is rounding.
        assert (outcome.gradients[name] - gradient).norm() <= 1e-9 * gradient.norm() + 1e-10, name
    assert not outcome.gradients["fc.weight"].any()


def test_an_episode_has_different_classes_and_examples() -> None:
    config = make_config()
    # Every image is all of one grey: 20 times its class, plus its example.
    codes = (20 * torch.arange(8)[:, None] + torch.arange(15)).to(torch.uint8)
    data = ClassImages(codes[:, :, None, None, None].expand(8, 15, 1, 2, 2), "codes")
    images = (draw_few_shot(data, config, 0)[:, :, 0, 0, 0] * 255).round().long()
    assert len({int(row[0]) // 20 for row in images}) == 5
    assert all(len({int(code) // 20 for code in row}) == 1 and len(set(row.tolist())) == 7 for row in images)


def test_keys_without_effect_refuse_nothing() -> None:
    config = make_config(val_size=5, train_size=20)
    assert not [key for key, _ in check_train(config, has_epochs=True) if key == "val_size"]
    assert training_data(config, CPU)[0].examples_per_class == 20


def test_each_rotation_of_a_class_is_a_class() -> None:
    plain, _ = training_data(make_config(), CPU)
    turned, _ = training_data(make_config(rotations=[0, 90]), CPU)
    assert turned.num_classes == 80
    assert torch.equal(turned.images[:40], plain.images)
    assert torch.equal(turned.images[43], torch.rot90(plain.images[3], 1, (-2, -1)))


def test_a_sequential_inner_loop_learns_class_after_class() -> None:
    config = make_config(train_method="meta", sample_method="sequential", tasks=3, num_batches=4, remember_size=6)
    data, _ = training_data(config, CPU)
    episode = draw_episode(data, config, seed=1, index=5)
    learned = [int(episode.labels[index]) for index in episode.support_index]
    assert [learned[0]] * 4 + [learned[4]] * 4 + [learned[8]] * 4 == learned
    assert episode.new_classes == tuple(sorted({*learned}))
    assert len(set(learned)) == 3
    assert len(episode.images) == 3 * 4 + 6


def test_reptile_moves_towards_the_weights_after_the_inner_loop() -> None:
    config = make_config(train_method="reptile", num_batches=3, remember_size=8, inner_lr=0.05, inner_params=["rln"])
    data, _ = training_data(config, CPU)
    model = new_model(config).double()
    names = select_names(model, config.inner_params)
    episode = draw_episode(data, config, 1, 0, torch.float64)
    outcome = make_engine(config, model, names)[0].run(episode)

    start = {name: model.get_parameter(name).detach().clone() for name in names}
    learner = torch.optim.SGD([model.get_parameter(name) for name in names], lr=0.05)
    for rows in [*episode.support_index, slice(episode.query_start, None)]:
        learner.zero_grad()
        cross_entropy(model(episode.images[rows]), episode.labels[rows]).backward()
        learner.step()
    for name in names:
        assert (outcome.gradients[name] - (start[name] - model.get_parameter(name))).abs().max() < 1e-12, name


def run(folder: Path, config: TrainConfig, stop_at: int | None = None) -> Training:
    training = Training([RunSpec(config, folder / "checkpoints", folder / "metrics" / "train.jsonl")], CPU)
    training.run(config.total_steps, lambda: training.completed == stop_at, lambda done: None)
    return training


def log(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics" / "train.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "steps_per_second"} for line in lines]


# At such a rate the network becomes worse again.
BEST = {"keep_best": "validation", "ema_decay": 0.5, "outer_lr": 0.05}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "metrics").mkdir()
    return tmp_path


def test_a_checkpoint_holds_the_best_model_on_held_out_classes(folder: Path) -> None:
    config = make_config(**BEST, epochs=30)
    training = run(folder, config)
    lines = log(folder)
    best = max(lines, key=lambda line: line["held_out_accuracy"])
    assert 0 < best["step"] < config.total_steps, "the test needs a training that becomes worse again"
    checkpoint = step_folder(folder / "checkpoints", config.total_steps)
    judge = training.runs[0].best
    assert judge
    assert judge.measure(load_model(checkpoint)[0]) == best["held_out_accuracy"]
    assert read_card(checkpoint).best_step == best["step"]


@pytest.mark.parametrize("stop_at", [2, 7])
def test_it_is_the_same_however_often_training_stops(folder: Path, tmp_path: Path, stop_at: int) -> None:
    other = tmp_path / "other"
    (other / "metrics").mkdir(parents=True)
    run(folder, make_config(**BEST))
    run(other, make_config(**BEST), stop_at)
    run(other, make_config(**BEST))
    files = [step_folder(each / "checkpoints", 12) for each in (folder, other)]
    assert log(folder) == log(other)
    for name in ("model.safetensors", "training.safetensors"):
        assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes(), name


def test_patience_ends_a_training_that_becomes_no_better(folder: Path) -> None:
    config = make_config(**BEST, patience=1, epochs=3000)
    training = run(folder, config)
    last = log(folder)[-1]
    assert last["step"] < 100
    assert last["best_step"] == last["step"] - config.save_freq
    assert read_card(step_folder(folder / "checkpoints", 3000)).best_step == last["best_step"]
    assert f"ended at step {last['step']}" in training.note


def test_trainings_together_end_by_patience_as_each_would_alone(folder: Path) -> None:
    config = make_config(**BEST, patience=1, epochs=30, seeds=[1, 2, 3], train_together=True)
    specs = [
        RunSpec(config.for_training(each), folder / each.tag, folder / f"{each.tag}.jsonl") for each in config.trainings
    ]
    Training(specs, CPU).run(30, lambda: False, lambda done: None)
    for spec in specs:
        alone = RunSpec(spec.config, folder / "alone" / spec.checkpoints.name, folder / f"alone-{spec.metrics.name}")
        Training([alone], CPU).run(30, lambda: False, lambda done: None)
        steps = [step_folder(each.checkpoints, 30) for each in (spec, alone)]
        for name in ("model.safetensors", "training.safetensors"):
            assert (steps[0] / name).read_bytes() == (steps[1] / name).read_bytes(), (spec.checkpoints.name, name)
        lines = [[json.loads(line)["step"] for line in each.metrics.read_text().splitlines()] for each in (spec, alone)]
        assert lines[0] == lines[1], "one that waits for the others updates and logs nothing"


def test_a_model_that_was_not_validated_yet_is_not_called_the_best(folder: Path) -> None:
    config = make_config(keep_best="validation", epochs=5, save_freq=5, eval_steps=[2, 5], eval_untrained=True)
    config = config.model_copy(update={"rotations": (0, 90)})
    training = Training([RunSpec(config, folder / "checkpoints", folder / "metrics" / "train.jsonl")], CPU)
    training.run(2, lambda: False, lambda done: None)
    training.run(5, lambda: False, lambda done: None)
    assert [read_card(step_folder(folder / "checkpoints", step)).best_step for step in (0, 2, 5)] == [None, None, 5]
    assert read_card(step_folder(folder / "checkpoints", 5)).rotations == [0, 90]


def test_a_training_that_diverged_is_not_saved_with_an_earlier_best_model(folder: Path) -> None:
    config = make_config(keep_best="validation")
    training = Training([RunSpec(config, folder / "checkpoints", folder / "metrics" / "train.jsonl")], CPU)
    training.run(3, lambda: False, lambda done: None)
    next(training.runs[0].model.parameters()).data.fill_(torch.nan)
    training.runs[0].completed = 4
    with pytest.raises(JobError, match="not finite"):
        training.runs[0].save()
