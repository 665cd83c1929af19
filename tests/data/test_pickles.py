"""The data sets of few-shot repositories: pickles of arrays, lists of files beside a folder of images."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anml.config.evaluation import DataRequest
from anml.data import load_images
from anml.errors import DataError

pytestmark = pytest.mark.usefixtures("own_cache")

# Of class c, example e the image is all (10 c + e): classes out of order, and one with an example more.
LABELS = [2, 0, 1, 0, 2, 1, 2]
IMAGES = np.stack([np.full((84, 84, 3), 10 * c + LABELS[:i].count(c), np.uint8) for i, c in enumerate(LABELS)])
BY_CLASS = {f"n{c}": [i for i, label in enumerate(LABELS) if label == c] for c in (2, 0, 1)}
EXPECTED = [[0, 1], [10, 11], [20, 21]]


def load(dataset: str, data_path: Path, size: int = 84, **options: Any) -> torch.Tensor:
    request = DataRequest(dataset, options.pop("split", "train"), size, str(data_path), allow_incomplete=True)
    return load_images(request).images


@pytest.mark.parametrize(
    ("dataset", "name", "content"),
    [
        ("mini-imagenet", "mini-imagenet-cache-train.pkl", {"image_data": IMAGES, "class_dict": BY_CLASS}),
        ("mini-imagenet", "miniImageNet_category_split_train_phase_train.pickle", {"data": IMAGES, "labels": LABELS}),
        ("cifar-fs", "CIFAR_FS_train.pickle", {"data": IMAGES, "labels": LABELS}),
        ("cifar-fs", "CIFAR_FS_train.pickle", {"data": np.asfortranarray(IMAGES), "labels": list(np.array(LABELS))}),
        ("cifar-fs", "CIFAR_FS_train.pickle", {"data": IMAGES, "labels": np.array(LABELS, ">i2")}),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_of_arrays_is_read_class_by_class(
    tmp_path, dataset: str, name: str, content: dict, protocol: int
) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
    images = load(dataset, tmp_path)
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (3, 2, 3, 84, 84))
    assert images[:, :, 0, 0, 0].tolist() == EXPECTED
    assert load(dataset, tmp_path, size=28)[:, :, 2, 5, 7].tolist() == EXPECTED


class Exploit:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("was-executed"),)


class Lie:
    """A dtype whose fields are objects while its flags deny it: numpy took the bytes for pointers, and crashed."""

    def __reduce__(self) -> tuple:
        return np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)


class Pointer:
    def __reduce__(self) -> tuple:
        return np.int64(1).__reduce__()[0], (Lie(), b"AAAAAAAA")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"image_data": IMAGES, "class_dict": Exploit()}, "no array"),
        ([IMAGES], "holds a list"),
        ({"data": IMAGES, "labels": [Pointer()] * 7}, "V8"),
        ({"image_data": IMAGES.astype(np.float32), "class_dict": BY_CLASS}, "uint8"),
        ({"data": IMAGES, "labels": LABELS[1:]}, "labels"),
        ({"image_data": IMAGES, "class_dict": {"a": [99]}}, "class_dict"),
        ({"image_data": IMAGES, "class_dict": {"a": [0], 1: [1]}}, "class_dict"),
        ({"image_data": IMAGES, "class_dict": {"a": [0], "b": []}}, "class_dict"),
        ({"image_data": IMAGES, "class_dict": {"a": np.zeros(1, [("x", "i8")])}}, "numbers or texts"),
        ({"data": IMAGES, "labels": [[1], [1, 2]]}, "labels"),
    ],
)
def test_any_other_pickle_is_refused_and_executes_nothing(tmp_path, monkeypatch, content: Any, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mini-imagenet-cache-train.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError) as error:
        load("mini-imagenet", tmp_path)
    assert str(path) in str(error.value)
    assert words in str(error.value)
    assert not (tmp_path / "was-executed").exists()


def test_a_cut_off_pickle_is_refused(tmp_path) -> None:
    whole = pickle.dumps({"data": IMAGES, "labels": LABELS})
    (tmp_path / "CIFAR_FS_train.pickle").write_bytes(whole[:1000])
    with pytest.raises(DataError, match=r"CIFAR_FS_train\.pickle: cannot be read"):
        load("cifar-fs", tmp_path)


def test_a_list_says_which_images_are_of_a_class(tmp_path, make_images: Callable) -> None:
    make_images(tmp_path, {"images": 6})
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    for split, rows in (("train", zip(names[:4], "baba", strict=True)), ("test", zip(names[4:], "cc", strict=True))):
        (tmp_path / f"{split}.csv").write_text("filename,label\n" + "".join(f"{n},{c}\n" for n, c in rows))
    train, test = load("mini-imagenet", tmp_path), load("mini-imagenet", tmp_path, split="eval")
    assert (train.shape[:2], test.shape[:2]) == ((2, 2), (1, 2))
    (tmp_path / "train.csv").write_text(f"filename,label\n{names[0]},a\n{names[2]},a\n{names[1]},b\n{names[3]},b\n")
    assert torch.equal(load("mini-imagenet", tmp_path), train[[1, 0]])


def test_a_list_without_its_columns_is_refused(tmp_path, make_images: Callable) -> None:
    make_images(tmp_path, {"images": 2})
    (tmp_path / "train.csv").write_text("file,class\nimages00000000.jpg,a\n")
    with pytest.raises(DataError, match=r"train\.csv: .*filename and label"):
        load("mini-imagenet", tmp_path)


def test_cifar_fs_may_be_folders(tmp_path, make_images: Callable) -> None:
    make_images(tmp_path / "cifar-fs", {"meta-train/a": 2, "meta-train/b": 2, "meta-test/c": 2}, size=32, suffix=".png")
    assert load("cifar-fs", tmp_path, size=32).shape == (2, 2, 3, 32, 32)
    assert load("cifar-fs", tmp_path, size=32, split="eval").shape == (1, 2, 3, 32, 32)


def test_cifar_fs_may_be_its_authors_folder_and_lists(tmp_path, make_images: Callable) -> None:
    make_images(tmp_path / "cifar100/data", {"a": 2, "b": 2, "c": 2}, size=32, suffix=".png")
    lists = tmp_path / "cifar100/splits/bertinetto"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("c\na\n")
    (lists / "test.txt").write_text("b\n")
    assert load("cifar-fs", tmp_path, size=32).shape == (2, 2, 3, 32, 32)
    assert load("cifar-fs", tmp_path, size=32, split="eval").shape == (1, 2, 3, 32, 32)
    (lists / "test.txt").write_text("b\nd\n")
    with pytest.raises(DataError, match=r"test\.txt: .* no class d"):
        load("cifar-fs", tmp_path, size=32, split="eval")


@pytest.mark.parametrize("folder", ["mini_imagenet_full_size/train", "miniImageNet/images_background"])
def test_mini_imagenet_has_the_folders_of_other_repositories(tmp_path, make_images: Callable, folder: str) -> None:
    make_images(tmp_path / folder, {"n1": 2, "n2": 2})
    assert load("mini-imagenet", tmp_path).shape == (2, 2, 3, 84, 84)


def test_the_pickle_of_one_split_is_not_taken_for_both(tmp_path) -> None:
    path = tmp_path / "mini-imagenet-cache-train.pkl"
    path.write_bytes(pickle.dumps({"image_data": IMAGES, "class_dict": BY_CLASS}))
    with pytest.raises(DataError, match=r"cache-train\.pkl: no mini-imagenet here"):
        load("mini-imagenet", path, split="eval")
