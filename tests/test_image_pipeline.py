"""Photographs through the ordinary path: from folders of JPEGs to results, planned and by hand."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from anml.checkpoints import read_card
from anml.cli.main import main, run_command
from anml.config.facts import IMAGENET
from anml.config.load import load_experiment_config, load_train_config
from anml.data import load_images
from anml.train.loop import Training
from anml.train.run import RunSpec

pytestmark = pytest.mark.slow
MINI = {f"{split}/n{number}": 8 for split, count in (("train", 5), ("test", 3)) for number in range(count)}
SMALL = {"classes": 2, "train_examples": 3, "test_examples": 2, "runs": 1, "lr": 0.01}
TRAIN = {
    "dataset": "mini-imagenet",
    "train_classes": 4,
    "train_size": 6,
    "imgs_per_class": 8,
    "val_size": 4,
    "im_size": 28,
    "augment": True,
    "num_batches": 2,
    "remember_size": 4,
    "epochs": 2,
    "log_freq": 1,
    "engine": "fast",
    "model": "sanml",
    "model_args": {"rln_chs": 4, "num_classes": 8},
}


@pytest.fixture
def mini(tmp_path: Path, make_images: Callable[..., Path]) -> Path:
    """A folder with a small Mini-ImageNet."""
    make_images(tmp_path / "data" / "mini-imagenet" / "processed_images", MINI)
    return tmp_path / "data"


@pytest.fixture
def own(tmp_path: Path, make_images: Callable[..., Path]) -> Path:
    """A folder of the user's own: six classes, of unequal size."""
    return make_images(tmp_path / "own", {f"class {letter}": 6 + number for number, letter in enumerate("abcdef")})


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_config(settings: dict, **changes: object) -> Path:
        path = tmp_path / f"config-{len(list(tmp_path.glob('config-*')))}.yml"
        path.write_text(
            yaml.safe_dump({key: value for key, value in (settings | changes).items() if value is not None})
        )
        return path

    return write_config


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], experiments: Path) -> Callable:
    """Run a command in this process; returns its exit code and what it printed."""
    monkeypatch.delenv("ANML_DATA", raising=False)

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
        code = run_command(main)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_a_smoke_test_needs_no_more_than_a_sample_of_the_data(run, write, experiments, mini, own) -> None:
    whole = {"imgs_per_class": None, "train_size": 500, "train_classes": None, "model_args": {"num_classes": 64}}
    config = write(TRAIN, **whole, eval={
        "same": SMALL | {"train_examples": [30, 500], "test_examples": 100, "classes": 20},
        "other": SMALL | {"dataset": "images-folder", "data_path": str(own)},
    })  # fmt: skip
    done = run("launch_train.py", "-c", config, "--project", "p", "--group", "g", "--cluster", "local", "--st",
               "--wandb", "disabled", "--data-path", mini)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every class gives its first 6" in done.stderr
    datasets = {}
    for path in (experiments / "p/g/results").glob("*.csv"):
        with path.open() as file:
            datasets |= {path.name.split("-")[0]: {row["dataset"] for row in csv.DictReader(file)}}
    assert datasets == {"same": {"mini-imagenet"}, "other": {"images-folder"}}


def test_a_launch_refuses_an_incomplete_copy_before_anything_is_created(run, write, experiments, mini) -> None:
    config = write(TRAIN, eval={"same": SMALL})
    done = run("launch_train.py", "-c", config, "--project", "p", "--group", "g", "--cluster", "local",
               "--wandb", "disabled", "--data-path", mini)  # fmt: skip
    assert done.returncode == 2
    assert "expected 64 train classes of mini-imagenet with 600 images each, found 5 classes" in done.stderr
    assert not (experiments / "p/g").exists()


def test_a_copy_with_less_than_the_config_needs_is_refused(by_hand, write, mini) -> None:
    config = write(TRAIN, allow_incomplete=True, train_classes=6, eval={"a": SMALL | {"test_examples": 6}})
    code, shown = by_hand("train", "-c", config, "--data-path", mini)
    assert code == 2
    assert "training needs 6 classes of 6 examples, found 5 of 8" in shown
    assert "mini-imagenet has 3 evaluation classes of 8 examples; asked for 2 classes of 3 training and 6 test" in shown


def test_a_model_of_ones_own_folder_is_evaluated_on_the_classes_it_has_not_seen(by_hand, write, own, tmp_path) -> None:
    config = write(
        TRAIN, dataset="images-folder", data_path=str(own), imgs_per_class=None, class_split=0.7, train_size=4
    )
    code, shown = by_hand("train", "-c", config, "--run-dir", tmp_path / "run")
    assert code == 0, shown
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000002"
    card = read_card(checkpoint)
    assert card.class_split is not None
    assert (len(card.class_split["train"]), len(card.class_split["eval"]), card.imgs_per_class) == (4, 2, 6)
    code, shown = by_hand("evaluate", "-c", write(SMALL), "-m", checkpoint, "--data-path", own)
    assert (code, "2 classes of images-folder, lr 0.01" in shown) == (0, True), shown
    # One class more than it has not seen, and one that it has.
    code, shown = by_hand("evaluate", "-c", write(SMALL, classes=3), "-m", checkpoint, "--data-path", own)
    assert "images-folder has 2 evaluation classes of 6 examples" in shown
    seen = [*card.class_split["eval"], card.class_split["train"][0]]
    config = write(SMALL, dataset="images-folder", data_path=str(own), class_split={"eval": seen})
    code, shown = by_hand("evaluate", "-c", config, "-m", checkpoint)
    assert (code, "the model is trained on 1 of these classes" in shown) == (2, True), shown


def test_a_model_of_ones_own_folder_is_validated_on_the_classes_held_out(by_hand, write, own, tmp_path) -> None:
    split, flavors = (
        {"class_split": 0.7, "train_size": 4, "imgs_per_class": None},
        {"a": SMALL | {"split": "validation"}},
    )
    config = write(TRAIN, dataset="images-folder", data_path=str(own), **split, train_classes=2, eval=flavors)
    run = tmp_path / "run"
    code, shown = by_hand("train", "-c", config, "--run-dir", run)
    assert code == 0, shown
    assert read_card(run / "checkpoints" / "step-000002").train_classes == 2
    given = ("-m", run / "checkpoints" / "step-000002", "--data-path", own, "-o", tmp_path / "a.csv")
    code, shown = by_hand("evaluate", "-c", write(SMALL, split="validation"), *given)
    assert (code, "2 held-out background classes of images-folder, lr 0.01" in shown) == (0, True), shown
    assert "images-folder-validation" in (tmp_path / "a.csv").read_text()
    code, shown = by_hand("evaluate", "-c", write(SMALL, split="validation", classes=3), *given)
    assert (code, "has 2 background classes for validation, found 3" in shown) == (2, True), shown


def test_a_model_of_characters_is_evaluated_on_photographs_made_grey(by_hand, write, mini, tmp_path) -> None:
    config = write(TRAIN, dataset="glyphs", augment=None, imgs_per_class=None)
    assert by_hand("train", "-c", config, "--run-dir", tmp_path / "run")[0] == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000002"
    config = write(SMALL, dataset="inet", allow_incomplete=True)
    code, shown = by_hand("evaluate", "-c", config, "-m", checkpoint, "--data-path", mini)
    assert (code, "takes images of 1 channels, those of the data set have 3" in shown) == (2, True), shown
    config = write(SMALL, dataset="inet", allow_incomplete=True, channels=1)
    code, shown = by_hand("evaluate", "-c", config, "-m", checkpoint, "--data-path", mini)
    assert (code, "2 classes of mini-imagenet" in shown) == (0, True), shown


def test_a_model_of_photographs_is_evaluated_on_characters_in_an_experiment(by_hand, write, own, tmp_path) -> None:
    """Grey drawings are normalised as the photographs that it was trained on; what it is trained on may be grey too."""
    settings = {"dataset": "images-folder", "data_path": str(own), "imgs_per_class": None, "train_size": 4}
    for channels, flavor in ((None, {"channels": 3}), (1, {})):
        flavors = {"drawn": SMALL | flavor | {"dataset": "glyphs"}, "own": SMALL}
        run = tmp_path / str(channels)
        path = write(TRAIN, **settings, channels=channels, class_split=0.7, eval=flavors, augment=None)
        code, shown = by_hand("train", "-c", path, "--run-dir", run)
        assert code == 0, shown
        config = load_experiment_config(run / "config.yml").config
        for name in flavors:
            given = ("--run-dir", run, "--flavor", name, "--step", "2")
            assert by_hand("evaluate", *given)[0] == 0
        first = torch.tensor([0])
        drawn, own_images = (load_images(config.eval_request(config.eval[name])) for name in flavors)
        assert {images.batch(first, first)[0].shape[1] for images in (drawn, own_images)} == {channels or 3}
        if channels is None:
            assert drawn.mean_std == IMAGENET


@pytest.mark.parametrize("method", [{}, {"train_method": "iid", "batch_size": 16}])
def test_training_on_augmented_images_resumes_to_the_bit(write, mini, tmp_path, method) -> None:
    path = write(TRAIN, **method, allow_incomplete=True, data_path=str(mini), epochs=4)
    config = load_train_config(path).config

    def train_to(folder: str, step: int) -> list[torch.Tensor]:
        training = Training([RunSpec(config, tmp_path / folder, tmp_path / f"{folder}.jsonl")], torch.device("cpu"))
        training.run(step, lambda: False, lambda done: None)
        return list(training.runs[0].model.state_dict().values())

    undisturbed = train_to("once", 4)
    train_to("twice", 3)
    assert all(torch.equal(a, b) for a, b in zip(undisturbed, train_to("twice", 4), strict=True))


@pytest.mark.parametrize("method", [{}, {"train_method": "iid", "batch_size": 16}])
def test_training_sees_augmented_images_and_validation_does_not(write, mini, tmp_path, method) -> None:
    losses, accuracies = [], []
    for augment in (True, False):
        path = write(TRAIN, **method, allow_incomplete=True, data_path=str(mini), epochs=1, augment=augment)
        # Rates of nearly nothing: both models validate as they were drawn.
        config = load_train_config(path, ["lr=1e-30", "outer_lr=1e-30"]).config
        metrics = tmp_path / f"{augment}.jsonl"
        training = Training([RunSpec(config, tmp_path / str(augment), metrics)], torch.device("cpu"))
        training.run(1, lambda: False, lambda done: None)
        [line] = [json.loads(text) for text in metrics.read_text().splitlines()]
        losses.append(line["loss"])
        accuracies.append(line["val_accuracy"])
    assert losses[0] != losses[1]
    assert accuracies[0] == accuracies[1]


def test_download_converts_a_local_copy_or_says_where_to_get_one(by_hand, mini, tmp_path) -> None:
    code, shown = by_hand("download", "mini-imagenet")
    assert (code, "cannot be downloaded automatically" in shown) == (1, True)
    code, shown = by_hand("download", "inet", "--data-path", mini)
    assert (code, "expected 64 train classes" in shown) == (1, True)
    code, shown = by_hand("download", "images-folder", "--data-path", tmp_path)
    assert (code, "converted when an experiment is launched" in shown) == (2, True)


def test_download_converts_the_copy_that_the_environment_names(by_hand, mini, monkeypatch) -> None:
    monkeypatch.setenv("ANML_DATA", str(mini))
    code, shown = by_hand("download", "mini-imagenet")
    assert (code, str(mini) in shown.splitlines()[0], "expected 64 train classes" in shown) == (1, True, True)


def test_download_says_where_the_arrays_are(by_hand) -> None:
    code, shown = by_hand("download", "glyphs")
    files = dict(line.split() for line in shown.splitlines())
    assert (code, list(files)) == (0, ["train", "eval"])
    assert all(Path(file).is_file() for file in files.values())
