"""Training: exact to the bit however often it is stopped; what it keeps, and the images it holds back."""

import pytest
import torch

import anml.train.run
from anml.checkpoints import is_complete, load_model, read_card, steps_saved
from anml.errors import DataError
from tests.train.conftest import CPU, IID, META, content, log, make_config, make_training, step_folder, train

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


def test_validation_is_on_examples_that_training_never_sees(tmp_path):
    training = make_training(tmp_path, make_config())
    assert training.runs[0].validation.images.shape[:2] == (10, 5)
    held_back = {image.numpy().tobytes() for image in training.runs[0].validation.images.flatten(0, 1)}
    seen = {
        image.numpy().tobytes() for image in anml.train.run.training_data(make_config(), CPU)[0].images.flatten(0, 1)
    }
    assert len(seen) == 150
    assert not held_back & seen


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
