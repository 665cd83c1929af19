"""The real Omniglot: all characters, as they were drawn, quickly loaded, and something can be learned of them."""

import hashlib
import time

import pytest
import torch

from anml.config.evaluation import DataRequest
from anml.config.facts import Split
from anml.config.training import TrainConfig
from anml.data import array_file, load_images
from anml.data.class_images import ClassImages
from anml.train.loop import Training
from anml.train.run import RunSpec

pytestmark = pytest.mark.omniglot


@pytest.fixture(scope="module", params=["train", "eval"])
def split(request: pytest.FixtureRequest) -> Split:
    return request.param


@pytest.fixture
def images(omniglot_path: str, split: Split) -> ClassImages:
    return load_images(DataRequest("omniglot", split, 28, omniglot_path))


def test_all_characters_are_there(images, split):
    assert images.images.shape == ({"train": 964, "eval": 659}[split], 20, 1, 28, 28)


def test_drawings_are_thin_dark_strokes_on_white(images):
    ink = 1 - images.images.double() / 255
    assert 0.05 < ink.mean() < 0.12
    assert ink.mean(dim=(2, 3, 4)).min() > 0.001  # No drawing is empty.
    assert ink.mean(dim=(2, 3, 4)).max() < 0.35


def test_characters_differ_more_than_drawings_of_one(images):
    pixels = images.images[:100].double().flatten(2) / 255
    within = pixels.var(dim=1).sum(dim=1).mean()
    between = pixels.mean(dim=1).var(dim=0).sum()
    assert between > 0.2 * within


def test_a_known_drawing_has_its_known_bytes(images, split):
    digest = hashlib.sha256(images.images[0, 0].numpy().tobytes()).hexdigest()
    assert digest == {
        "train": "e132fe6273ea3c5b6ff932150dc1c7a2e27c3c38b3296602e49e5badba56e0a6",  # Magi 1, drawing 0709_01.
        "eval": "08433ffb869dcdb724bec283ffdfc7dafb6b92cc872be14022f67a3b98b5a968",  # Angelic 1, drawing 0965_01.
    }[split]  # fmt: skip


def test_loading_again_takes_well_under_a_second(omniglot_path, split):
    array_file(DataRequest("omniglot", split, 28, omniglot_path))
    started = time.perf_counter()
    load_images(DataRequest("omniglot", split, 28, omniglot_path))
    assert time.perf_counter() - started < 1


def test_a_short_training_learns(omniglot_path, tmp_path):
    config = TrainConfig(
        dataset="omniglot", data_path=omniglot_path, train_classes=20, train_size=15, val_size=100, model="sanml",
        model_args={"rln_chs": 8, "num_classes": 20}, num_batches=3, remember_size=32, outer_lr=0.01, epochs=80,
        log_freq=20, engine="fast",
    )  # fmt: skip
    lines = []
    training = Training([RunSpec(config, tmp_path / "checkpoints", tmp_path / "log")], torch.device("cpu"))
    training.runs[0].on_log = lines.append
    training.run(80, stop=lambda: False, progress=lambda done: None)
    assert lines[-1]["loss"] < 0.85 * lines[0]["loss"]
    assert sum(line["val_accuracy"] for line in lines) / 4 > 0.15  # On drawings never seen; chance is 0.05.
