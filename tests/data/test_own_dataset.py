"""A config may name the user's own data set: `./FILE.py:NAME` or `MODULE:NAME`."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from anml.config.evaluation import DataRequest
from anml.config.facts import DATASETS, Dataset
from anml.config.load import dump_config, load_eval_configs, load_experiment_config, load_train_config
from anml.data import array_file, load_images
from anml.errors import ConfigError, DataError
from anml.report.labels import sentence

CODE = """
import numpy as np
from anml.config.facts import Dataset


def load(split, size, data_path):
    shade = int((data_path / "shade.txt").read_text()) if data_path else 0
    return np.full((COUNT if split == "train" else 4, 6, 3, size, size), shade, np.uint8)


TINY = Dataset(train_classes=5, eval_classes=4, examples_per_class=6, channels=3, default_size=28, loader=load,
               display_name="Tiny", noun="squares", mean_std=((0.5,) * 3, (0.25,) * 3))
""".replace("COUNT", "5")
CONFIG = """
dataset: ./tiny.py:TINY
train_size: 4
num_batches: 2
remember_size: 4
model: sanml
eval:
- one: {classes: 3, train_examples: 2, test_examples: 1}
- two: {dataset: [./tiny.py:TINY, omniimage20], classes: 3, train_examples: 2, test_examples: 1}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a data set, a config that names it, and a cache of its own."""
    monkeypatch.setenv("ANML_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ANML_DATA", raising=False)
    (tmp_path / "tiny.py").write_text(CODE)
    (tmp_path / "train.yml").write_text(CONFIG)
    return tmp_path


def request_of(folder: Path, file: str = "tiny.py", **changes: object) -> DataRequest:
    return DataRequest(f"{folder / file}:TINY", "train", 28)._replace(**changes)


def test_a_file_is_relative_to_the_config_that_names_it(folder: Path) -> None:
    config = load_train_config(folder / "train.yml").config
    reference = f"{folder}/tiny.py:TINY"
    assert (config.dataset, config.image_shape, config.num_train_classes) == (reference, (3, 28, 28), 5)
    assert {name: flavor.dataset for name, flavor in config.eval.items()} == {
        "one": reference,
        "two-TINY": reference,
        "two-omniimage20": "omniimage20",
    }


def test_a_resolved_config_is_the_same_from_anywhere(folder: Path) -> None:
    config = load_train_config(folder / "train.yml").config
    elsewhere = folder / "elsewhere" / "config.yml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(dump_config(config))
    assert load_experiment_config(elsewhere).config == config


def test_every_reference_is_made_absolute_where_it_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "base").mkdir()
    (folder / "base" / "tiny.py").write_text(CODE)
    (folder / "base" / "flavor.yml").write_text("dataset: ./tiny.py:TINY\nclasses: 3\n")
    (folder / "one.yml").write_text("<<: !include base/flavor.yml\n")
    [loaded] = load_eval_configs(folder / "one.yml", ["train_examples=2", "test_examples=1"])
    assert loaded.config.dataset == f"{folder}/base/tiny.py:TINY"
    monkeypatch.chdir(folder / "base")
    [loaded] = load_eval_configs(None, ["dataset=tiny.py:TINY", "classes=3", "train_examples=2", "test_examples=1"])
    assert loaded.config.dataset == f"{folder}/base/tiny.py:TINY"


def test_the_counts_of_a_users_data_set_are_checked(folder: Path) -> None:
    (folder / "train.yml").write_text(CONFIG.replace("- one: {classes: 3", "- one: {classes: 9"))
    with pytest.raises(ConfigError) as error:
        load_train_config(folder / "train.yml")
    [problem] = error.value.problems
    assert problem.startswith(f"{folder}/train.yml:8: eval.one.classes: ")
    assert re.search(r"has 4 evaluation classes, found 9", problem)


def test_its_images_are_converted_once_and_normalised_as_it_says(folder: Path) -> None:
    images = load_images(request_of(folder))
    assert (images.images.shape, images.name) == ((5, 6, 3, 28, 28), "TINY")
    first = torch.tensor([0])
    assert torch.equal(images.batch(first, first)[0], torch.full((1, 3, 28, 28), -2.0))
    file = array_file(request_of(folder))
    written = file.stat().st_mtime_ns
    assert (array_file(request_of(folder)), file.stat().st_mtime_ns) == (file, written)


def test_other_data_or_other_code_is_another_array(folder: Path) -> None:
    def shade(file: str = "tiny.py") -> int:
        return int(load_images(request_of(folder, file, data_path=str(folder / "data"))).images.max())

    (folder / "data").mkdir()
    (folder / "data" / "shade.txt").write_text("7")
    assert shade() == 7
    (folder / "data" / "shade.txt").write_text("90")
    assert shade() == 90
    (folder / "other.py").write_text(CODE.replace("shade, np.uint8", "shade + 1, np.uint8"))
    assert shade("other.py") == 91


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("(5 if", "(3 if", ("TINY", "[5, 6, 3, 28, 28]", "[3, 6, 3, 28, 28]")),
        ("size, size), shade", "size, 2), shade", ("TINY", "[5, 6, 3, 28, 2]")),
        ("np.uint8", "np.float32", ("TINY", "uint8", "float32")),
        ("    shade", "    broken\n    shade", ("TINY", "NameError", "broken")),
    ],
)
def test_what_a_loader_returns_is_checked(folder: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    (folder / "tiny.py").write_text(CODE.replace(old, new))
    with pytest.raises(DataError) as error:
        load_images(request_of(folder))
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("TINY =", "OTHER =", ("defines no TINY",)),
        ("TINY = Dataset(", "TINY = dict(", ("TINY", "Dataset", "dict")),
        ("loader=load,", "", ("loader",)),
        ("channels=3", "channels=0", ("TINY.channels", "found 0")),
        ("loader=load", "loader=7", ("TINY.loader", "found 7")),
        ("(0.5,) * 3", "(0.5,)", ("TINY.mean_std", "3 channels")),
    ],
)
def test_a_wrong_record_is_an_error_with_its_line(folder: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    (folder / "tiny.py").write_text(CODE.replace(old, new))
    (folder / "train.yml").write_text("\n".join(CONFIG.splitlines()[:6]))
    with pytest.raises(ConfigError) as error:
        load_train_config(folder / "train.yml")
    [problem] = error.value.problems
    assert problem.startswith(f"{folder}/train.yml:2: dataset: {folder}/tiny.py")
    assert [word for word in words if word not in problem] == []


def test_reports_call_it_by_its_own_words(folder: Path) -> None:
    words = sentence(load_train_config(folder / "train.yml").config)
    assert "on Tiny (5 classes of 4 squares, 28x28 pixels)" in words


def test_one_record_makes_a_shipped_data_set(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def load(split: str, size: int, data_path: Path | None) -> np.ndarray:
        return np.zeros((5 if split == "train" else 4, 6, 1, size, size), np.uint8)

    monkeypatch.setitem(DATASETS, "tiny", Dataset(5, 4, 6, 1, 28, load, aliases=("tinyimages",)))
    (folder / "train.yml").write_text(CONFIG.replace("./tiny.py:TINY", "Tiny-Images").replace(", omniimage20", ""))
    config = load_train_config(folder / "train.yml").config
    assert (config.dataset, config.eval["two"].dataset) == ("tiny", "tiny")
    assert load_images(config.train_request).images.shape == (5, 6, 1, 28, 28)
