"""What a user is told of data: what lies where nothing was found, and images that are smaller or darker than usual."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anml.cli.check_config import find_problems
from anml.config.evaluation import DataRequest
from anml.config.load import load_train_config
from anml.data import load_images, notices_of
from anml.data.layouts import find_below
from anml.errors import DataError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(
    ("dataset", "files", "words"),
    [
        ("cifar-fs", ["a/CIFAR_FS_train.pickle"], "{}/a looks like cifar-fs: give that folder"),
        ("mini-imagenet", ["a/b/mini-imagenet-cache-train.pkl"], "{}/a/b looks like mini-imagenet: give that folder"),
        ("mini-imagenet", ["a/mini_imagenet_full_size/train/n1/1.jpg"], "{}/a looks like mini-imagenet: give that"),
        ("mini-imagenet", ["jpegs-of-mini-imagenet/train/n1/1.jpg"], "{}/jpegs-of-mini-imagenet looks like mini-im"),
        ("mini-imagenet", ["a/images/1.jpg", "a/train.csv"], "if those in {}/a are mini-imagenet, give that folder"),
        ("mini-imagenet", ["heron/1.jpg"], "write dataset: images-folder."),
        # What is there in part, or in another way, is not found by giving its folder.
        ("cifar-fs", ["cifar-fs/CIFAR_FS_val.pickle"], "{}/cifar-fs looks like cifar-fs, but a part is missing"),
        ("cifar-fs", ["cifar-100-python/train"], "cifar-100-python looks like cifar-fs, but a part is missing"),
        ("mini-imagenet", ["mini-imagenet-cache-val.pkl"], "cache-val.pkl looks like mini-imagenet, but a part"),
        ("mini-imagenet", ["images_background/n1/1.jpg"], "images_background looks like omniglot or mini-imagenet, bu"),
        ("omniglot", ["omniglot.npy"], "omniglot.npy looks like omniglot, but a part is missing"),
        # Other data sets.
        ("omniglot", ["a/CIFAR_FS_train.pickle"], "looks like cifar-fs: write dataset: cifar-fs"),
        ("cifar-fs", ["mini-imagenet/train/n1/1.jpg"], "{}/mini-imagenet looks like mini-imagenet: write dataset"),
        ("omniimage20", ["OmnImage84_100.zip", "test_class_names.json"], "write dataset: omniimage100"),
        ("cifar-fs", ["images_background.zip", "CIFAR_FS_val.pickle"], "CIFAR_FS_val.pickle looks like cifar-fs, but"),
        ("omniglot", ["notes.txt"], "It holds notes.txt."),
    ],
)
def test_what_lies_there_instead_is_named(tmp_path: Path, dataset: str, files: list[str], words: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(DataError) as error:
        load_images(DataRequest(dataset, "train", 28, str(tmp_path)))
    assert words.format(tmp_path) in str(error.value)


def test_a_link_to_the_images_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "images_background").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "my-omniglot").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"my-omniglot looks like omniglot: give that folder"):
        load_images(DataRequest("omniglot", "train", 28, str(tmp_path / "data")))


def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path: Path) -> None:
    def search(request: DataRequest, folder: Path) -> Path | None:
        if folder.name == "lost+found":
            raise PermissionError
        return None

    (tmp_path / "lost+found").mkdir()
    with pytest.raises(DataError, match=r"It holds lost\+found"):
        find_below(tmp_path, DataRequest("omniglot", "train", 28, str(tmp_path)), search, "images")


def notices(data_path: Path, size: int) -> list[str]:
    request = DataRequest("images-folder", "train", size, str(data_path), ("a", "b"), 2)
    return list(notices_of(request, load_images(request)))


def test_images_that_are_enlarged_are_told_whenever_they_are_loaded(tmp_path: Path, make_images: Callable) -> None:
    make_images(tmp_path, {"a": 2, "b": 2}, size=32)
    told = [[("32 pixels are enlarged to 84" in text) for text in notices(tmp_path, size)] for size in (84, 32, 84)]
    assert told == [[True], [], [True]]


def test_a_launch_tells_it(tmp_path: Path, make_images: Callable) -> None:
    make_images(tmp_path, {"train/a": 3, "train/b": 3, "test/c": 3}, size=32)
    text = (
        f"dataset: images-folder\ndata_path: {tmp_path}\nmodel: sanml\nmodel_args: {{rln_chs: 2}}\neval: {{classes: 1}}"
    )
    (tmp_path / "train.yml").write_text(f"{text}\n")
    overrides = ["eval.eval.train_examples=2", "eval.eval.test_examples=1"]
    found: list[str] = []
    assert find_problems(load_train_config(tmp_path / "train.yml", overrides).config, found) == []
    assert ["enlarged to 84" in text for text in found] == [True]


@pytest.mark.parametrize(("strokes", "told"), [("light", True), ("dark", False), ("coloured", False)])
def test_light_strokes_on_dark_are_told(tmp_path: Path, strokes: str, told: bool) -> None:
    pixels = np.full((28, 28, 3), 0 if strokes != "dark" else 255, np.uint8)
    pixels[3:6, 5:20] = (255, 0, 0) if strokes == "coloured" else 255 - pixels[0, 0]
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    assert [("light on dark" in notice) for notice in notices(tmp_path, 28)] == [True] * told
