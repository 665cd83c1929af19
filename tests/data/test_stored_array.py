"""A large array left in its file gives the same images as one in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anml import data
from anml.config.evaluation import DataRequest
from anml.config.facts import IMAGENET
from anml.data.class_images import ClassImages
from anml.data.episodes import shuffled_batch
from anml.errors import DataError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An array file of 5 classes of 7 images that counts as large."""
    path = tmp_path / "array.npy"
    np.save(path, np.random.default_rng(1).integers(256, size=(5, 7, 3, 9, 9), dtype=np.uint8))
    monkeypatch.setattr(data, "_COPIED_BYTES", 0)
    monkeypatch.setattr(data, "array_file", lambda *request: path)
    return path


@pytest.fixture
def stored(file: Path) -> ClassImages:
    return data.load_images(DataRequest("mini-imagenet", "train", 9, None))


@pytest.fixture
def held(file: Path) -> ClassImages:
    return ClassImages(torch.from_numpy(np.load(file)), "mini-imagenet", mean_std=IMAGENET)


def test_it_is_left_in_its_file(stored):
    assert stored.stored is not None


@pytest.mark.parametrize(
    "part",
    [
        lambda data: data,
        lambda data: data.first_examples(2, 6),
        lambda data: data.first_classes(3).first_examples(1, 4),
        lambda data: data.to(torch.device("cpu")),
    ],
)
def test_batches_of_any_part_of_it_are_those_of_an_array_in_memory(stored, held, part):
    for step in range(3):
        (images, labels), (expected, same) = (
            shuffled_batch(part(data), 8, seed=1, step=step) for data in (stored, held)
        )
        assert torch.equal(images, expected)
        assert torch.equal(labels, same)


def test_all_of_it_can_be_moved_to_a_device(stored, held):
    moved = stored.to(torch.device("meta"))
    assert moved.stored is None
    assert moved.images.shape == held.images.shape


def test_it_survives_its_cache(stored, held, file):
    file.unlink()
    assert torch.equal(shuffled_batch(stored, 8, 1, 0)[0], shuffled_batch(held, 8, 1, 0)[0])


def test_a_file_that_is_cut_short_is_told_not_read_as_zeros(stored, file):
    with file.open("r+b") as stream:
        stream.truncate(200)
    with pytest.raises(DataError, match="became shorter"):
        stored.batch(torch.tensor([4]), torch.tensor([6]))
