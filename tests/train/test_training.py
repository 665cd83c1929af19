"""Training: exact to the bit however often it is stopped, and a log that says everything once."""

import hashlib
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import anml.rng
import anml.train.run
from anml.checkpoints import is_complete, load_model, load_training_state, read_card, steps_saved
from anml.config.training import TrainConfig
from anml.data.episodes import draw_episode
from anml.errors import ConfigError, DataError
from anml.meta.engine import EpisodeOutcome
from anml.meta.outer_step import lobotomize
from anml.models.meta_model import select_names
from anml.train.iid import make_optimizer, make_schedule
from anml.train.loop import Training
from anml.train.run import RunSpec

META = {
    "dataset": "glyphs", "train_classes": 10, "train_size": 15, "model": "anml",
    "model_args": {"rln_chs": 4, "nm_chs": 3, "num_classes": 12}, "num_batches": 3, "remember_size": 8,
    "inner_params": ["rln", "fc"], "engine": "fast", "epochs": 12, "log_freq": 4, "save_freq": 5, "val_size": 20,
}  # fmt: skip
# Fifteen steps: epochs of five (the last batch smaller), the rate falling at the second, output rows zapped at both.
IID = {
    "dataset": "glyphs", "train_classes": 10, "train_size": 15, "model": "sanml",
    "model_args": {"rln_chs": 4, "num_classes": 12}, "train_method": "iid", "batch_size": 32, "epochs": 3, "lr": 0.05,
    "optimizer": "SGD", "optimizer_args": {"momentum": 0.9, "weight_decay": 1e-4}, "lr_scheduler": "StepLR",
    "lr_scheduler_args": {"step_size": 2, "gamma": 0.1}, "lobo_rate": 1, "lobo_size": 3, "log_freq": 4, "save_freq": 5,
}  # fmt: skip
CPU = torch.device("cpu")


def make_config(base: dict[str, Any] = META, **changes: Any) -> TrainConfig:
    return TrainConfig(**(base | changes))


def make_training(
    folder: Path, config: TrainConfig, seed: int = 1, on_log: Callable[[dict[str, Any]], None] = lambda line: None
) -> Training:
    spec = RunSpec(config.model_copy(update={"seed": seed}), folder / "checkpoints", folder / "metrics" / "train.jsonl")
    training = Training([spec], CPU)
    training.runs[0].on_log = on_log
    return training


def train(folder: Path, config: TrainConfig, until: int | None = None, stop_at: int | None = None) -> bool:
    """Train in this folder, from whatever it holds; `stop_at` asks to stop after so many steps."""
    training = make_training(folder, config)
    return training.run(until or config.total_steps, lambda: training.completed == stop_at, lambda done: None)


def step_folder(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:06d}"


def content(folder: Path, step: int) -> dict[str, str]:
    """Return the checksum of every file of a checkpoint."""
    files = step_folder(folder, step).iterdir()
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the log without the speed."""
    lines = [json.loads(line) for line in (folder / "metrics" / "train.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "steps_per_second"} for line in lines]


@pytest.fixture
def undisturbed(tmp_path: Path) -> Callable[[TrainConfig], Path]:
    def train_in_one_go(config: TrainConfig) -> Path:
        train(tmp_path / "undisturbed", config)
        return tmp_path / "undisturbed"

    return train_in_one_go


AVERAGED = {"ema_decay": 0.4}
SCHEDULED = {"outer_lr_scheduler": "MultiStepLR", "outer_lr_scheduler_args": {"milestones": [2, 6, 9], "gamma": 0.5}}
KINDS = {
    "meta": META,
    "first-order": META | {"train_method": "meta-first-order"},
    "sequential_episodic": META | {"train_method": "sequential_episodic"},
    "clipped": META | {"max_grad_norm": 0.1},
    "momentum, learned rates": META | {"inner_optimizer": "meta-sgd", "inner_momentum": 0.5},
    "fastest engine": META | {"engine": "auto"},
    "iid": IID,
    "iid, batch norm": IID
    | {
        "model": "classifier",
        "model_args": {
            "encoder": "convnet",
            "encoder_args": {"num_blocks": 2, "num_filters": [3], "norm_type": "bn"},
            "classifier_args": {"num_classes": 12},
        },
        "val_size": 20,
    },
    "averaged, scheduled": META | AVERAGED | SCHEDULED,
    "averaged, scheduled, fastest engine": META | AVERAGED | SCHEDULED | {"engine": "auto"},
    "sequential_episodic, averaged, scheduled": META | {"train_method": "sequential_episodic"} | AVERAGED | SCHEDULED,
    "iid, Adam": IID | {"optimizer": "Adam", "optimizer_args": {}, "lr_scheduler": None},
}
KINDS["iid, biased"] = IID | {"lobo_biased_steps": 2, "lobo_biased_fraction": 0.5, "lobo_biased_params": ["head"]}
KINDS["iid, batch norm, averaged"] = KINDS["iid, batch norm"] | AVERAGED


@pytest.mark.parametrize("stops", [(7,), (1, 2, 5, 11)], ids=["once", "often"])
@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.native] * ("engine" in k)) for k in KINDS])
def test_a_stopped_training_ends_in_the_same_bytes(tmp_path, undisturbed, kind, stops):
    config = make_config(KINDS[kind])
    expected = undisturbed(config)
    for stop in stops:
        assert not train(tmp_path / "stopped", config, stop_at=stop)
        assert is_complete(step_folder(tmp_path / "stopped", stop))
    assert train(tmp_path / "stopped", config)
    assert content(tmp_path / "stopped", config.total_steps) == content(expected, config.total_steps)
    assert log(tmp_path / "stopped") == log(expected)


def test_segments_end_in_the_same_model(tmp_path, undisturbed):
    config = make_config()
    expected = undisturbed(config)
    for until in (3, 8, 12):
        assert train(tmp_path / "segments", config, until=until)
    assert content(tmp_path / "segments", 12) == content(expected, 12)


class Killed(BaseException):
    """Ends a training as abruptly as a test can."""


@pytest.mark.parametrize("kind", ["meta", "averaged, scheduled"])
@pytest.mark.parametrize("moment", ["before the checkpoint", "after it"])
def test_a_training_killed_around_its_checkpoint_resumes_exactly(tmp_path, undisturbed, moment, kind):
    config = make_config(KINDS[kind], save_freq=4)  # Step 8 is logged, then saved, then reported as progress.
    expected = undisturbed(config)

    def die(step: int, now: str) -> None:
        if (step, now) == (8, moment):
            raise Killed

    training = make_training(tmp_path, config, on_log=lambda line: die(line["step"], "before the checkpoint"))
    with pytest.raises(Killed):
        training.run(12, lambda: False, lambda done: die(done, "after it"))
    assert [line["step"] for line in log(tmp_path)] == [4, 8]
    assert is_complete(step_folder(tmp_path, 8)) == (moment == "after it")
    train(tmp_path, config)
    assert log(tmp_path) == log(expected)
    assert content(tmp_path, 12) == content(expected, 12)


def test_a_log_line_that_was_cut_off_is_written_again(tmp_path, undisturbed):
    config = make_config()
    expected = undisturbed(config)
    train(tmp_path / "cut", config, until=5)
    with (tmp_path / "cut" / "metrics" / "train.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    train(tmp_path / "cut", config)
    assert [line["step"] for line in log(tmp_path / "cut")] == [4, 5, 8, 12]
    assert content(tmp_path / "cut", 12) == content(expected, 12)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "model.json", "training.json"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path, undisturbed, name):
    config = make_config()
    expected = undisturbed(config)
    train(tmp_path / "damaged", config, stop_at=11)
    assert steps_saved(tmp_path / "damaged" / "checkpoints") == [10, 11]
    (step_folder(tmp_path / "damaged", 11) / name).write_bytes(b"x")
    assert make_training(tmp_path / "damaged", config).completed == 10
    train(tmp_path / "damaged", config)
    assert content(tmp_path / "damaged", 12) == content(expected, 12)
    assert log(tmp_path / "damaged") == log(expected)


def test_without_a_good_checkpoint_training_starts_again(tmp_path, undisturbed):
    config = make_config()
    expected = undisturbed(config)
    train(tmp_path / "damaged", config, stop_at=4)
    (step_folder(tmp_path / "damaged", 4) / "model.json").unlink()
    train(tmp_path / "damaged", config)
    assert content(tmp_path / "damaged", 12) == content(expected, 12)
    assert log(tmp_path / "damaged") == log(expected)


def test_a_finished_training_does_nothing_more(tmp_path):
    config = make_config()
    train(tmp_path, config)
    before = content(tmp_path, 12), log(tmp_path)
    assert train(tmp_path, config)
    assert (content(tmp_path, 12), log(tmp_path)) == before


def test_old_checkpoints_go_but_evaluated_ones_and_a_spare_stay(tmp_path):
    train(tmp_path, make_config(save_freq=2, eval_steps=[3, 12], eval_untrained=True), until=3)
    train(tmp_path, make_config(save_freq=2, eval_steps=[3, 12], eval_untrained=True))
    assert steps_saved(tmp_path / "checkpoints") == [0, 3, 10, 12]


def test_the_untrained_network_is_kept_when_it_is_evaluated(tmp_path):
    config = make_config(eval_untrained=True)
    make_training(tmp_path, config, seed=5)
    model, card = load_model(step_folder(tmp_path, 0))
    fresh = make_training(tmp_path / "other", config, seed=5).runs[0].model
    assert card.step == 0
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in fresh.state_dict().items())


def test_a_card_says_where_the_model_comes_from(tmp_path):
    train(tmp_path, make_config(model_name="ANML small"))
    card = read_card(step_folder(tmp_path, 12))
    assert (card.model, card.display_name, card.dataset) == ("anml", "ANML small", "glyphs")
    assert (card.train_method, card.step, card.seed, card.image_shape) == ("meta", 12, 1, (1, 28, 28))


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


def test_validation_is_on_examples_that_training_never_sees(tmp_path):
    training = make_training(tmp_path, make_config())
    assert training.runs[0].validation.images.shape[:2] == (10, 5)
    held_back = {image.numpy().tobytes() for image in training.runs[0].validation.images.flatten(0, 1)}
    seen = {
        image.numpy().tobytes() for image in anml.train.run.training_data(make_config(), CPU)[0].images.flatten(0, 1)
    }
    assert len(seen) == 150
    assert not held_back & seen


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


def test_validating_does_not_train(tmp_path, undisturbed):
    """A BatchNorm in training mode would take the validation set into its running statistics."""
    config = make_config(KINDS["iid, batch norm"])
    expected = undisturbed(config.model_copy(update={"val_size": 0}))
    train(tmp_path / "validated", config)
    assert content(tmp_path / "validated", 15)["model.safetensors"] == content(expected, 15)["model.safetensors"]


def test_validation_without_examples_left_is_refused():
    with pytest.raises(DataError, match="validation needs examples that train_size 20 leaves over"):
        anml.train.run.training_data(make_config(train_size=20), CPU)


def test_more_examples_than_there_are_is_refused():
    with pytest.raises(DataError, match="training needs 10 classes of 15 examples, found 10 of 8"):
        anml.train.run.training_data(make_config(imgs_per_class=8), CPU)


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


def test_seeds_train_different_models(tmp_path):
    for seed in (1, 2):
        make_training(tmp_path / str(seed), make_config(), seed).run(1, lambda: False, lambda done: None)
    first, second = (content(tmp_path / str(seed), 1)["model.safetensors"] for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize("kind", ["meta", "first-order", "iid"])
def test_global_generators_neither_matter_nor_move(tmp_path, kind):
    config = make_config(KINDS[kind])
    for folder in ("a", "b"):
        torch.manual_seed(ord(folder))
        before = torch.get_rng_state()
        train(tmp_path / folder, config)
        assert torch.equal(torch.get_rng_state(), before)
    assert content(tmp_path / "a", config.total_steps) == content(tmp_path / "b", config.total_steps)


LEARNING = {
    "meta": META
    | {"model": "sanml", "model_args": {"rln_chs": 6, "num_classes": 10}, "inner_params": "all"}
    | {"remember_size": 16, "epochs": 160, "outer_lr": 0.01},
    "iid": IID | {"epochs": 20, "lr_scheduler": None, "lobo_rate": None},
}


@pytest.mark.parametrize("kind", LEARNING)
def test_training_lowers_the_loss(tmp_path, kind):
    train(tmp_path, make_config(LEARNING[kind], log_freq=20, save_freq=500, val_size=0))
    losses = [line["loss"] for line in log(tmp_path)]
    assert losses[-1] < 0.9 * losses[0]


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
