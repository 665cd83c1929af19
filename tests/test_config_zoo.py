"""Every training of configs/ works: trained and evaluated as small as it gets, on data of its own format."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from anml.checkpoints import read_card
from anml.cli.main import main
from anml.config.evaluation import ClassSplit
from anml.config.load import dump_config, load_train_config
from anml.config.smoke_test import smoke_test
from anml.config.training import TrainConfig
from anml.experiment import Experiment

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
OF_OMNIGLOT = sorted(path.stem for path in CONFIGS.glob("train-omni-*.yml"))
OWN_FOLDER = "train-folder-sanml"
OF_PHOTOGRAPHS = sorted({path.stem for path in CONFIGS.glob("train-*.yml")} - {*OF_OMNIGLOT, OWN_FOLDER})
STEPS = 2
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    """A folder with a little of Mini-ImageNet, CIFAR-FS and both OmniImages, laid out like the whole."""
    folder = tmp_path_factory.mktemp("photographs")
    mini = {f"{split}/n{number:08d}": 8 for split, count in (("train", 4), ("test", 2)) for number in range(count)}
    make_images(folder / "mini-imagenet" / "processed_images", mini)
    make_images(folder / "cifar-fs", {f"meta-{name}": count for name, count in mini.items()}, size=32, suffix=".png")
    for count in (20, 100):
        make_images(folder / "omniimage" / f"OmnImage84_{count}", {f"n{number:08d}": 8 for number in range(8)})
    return folder


def train_and_evaluate(name: str, data: str | Path, root: Path) -> tuple[TrainConfig, Experiment]:
    """Do what the jobs of a smoke test do, one after the other, in this process; of several trainings the first."""
    loaded = load_train_config(CONFIGS / f"{name}.yml", options={"data_path": str(data)})
    config, experiment = smoke_test(loaded.config), Experiment(root)
    config = config.for_training(config.trainings[0])
    experiment.config_file.write_text(dump_config(config), encoding="utf-8")
    assert main(["train", "--run-dir", str(root)]) == 0
    for flavor in config.eval:
        assert main(["evaluate", "--run-dir", str(root), "--flavor", flavor, "--step", str(STEPS)]) == 0
    return config, experiment


def check_what_is_left(config: TrainConfig, experiment: Experiment) -> None:
    """Look at the checkpoint, the log and the results of every flavor."""
    card = read_card(experiment.checkpoint(STEPS))
    assert (card.model, card.train_method, card.dataset) == (config.model, config.train_method, config.dataset)
    log = [json.loads(line) for line in experiment.metrics().read_text().splitlines()]
    assert [line["step"] for line in log] == [1, STEPS]
    assert {"val_accuracy" in line for line in log} == {config.val_size > 0}
    for flavor, evaluation in config.eval.items():
        with experiment.result(flavor, STEPS).open() as file:
            rows = list(csv.DictReader(file))
        assert {(row["protocol"], row["dataset"], row["model"]) for row in rows} == {
            (evaluation.eval_method, config.eval_request(evaluation).name, config.display_name)
        }
        rates = set(evaluation.lr) if evaluation.protocol.learns else set()
        assert {float(row["lr"]) for row in rows if row["lr"]} == rates
        assert all(0 <= float(row[key]) <= 1 for row in rows for key in ("train_acc", "test_acc", "test_top5"))


@pytest.mark.omniglot
@pytest.mark.parametrize("name", OF_OMNIGLOT)
def test_a_training_on_omniglot_works(name: str, omniglot_path: str, tmp_path: Path) -> None:
    check_what_is_left(*train_and_evaluate(name, omniglot_path, tmp_path))


@pytest.mark.parametrize("name", OF_PHOTOGRAPHS)
def test_a_training_on_photographs_works(name: str, photographs: Path, tmp_path: Path) -> None:
    check_what_is_left(*train_and_evaluate(name, photographs, tmp_path))


def test_a_training_on_a_folder_of_ones_own_works(make_images: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_images(tmp_path / "own", {f"class {number}": 20 for number in range(17)}, size=20)
    (tmp_path / "run").mkdir()
    config, experiment = train_and_evaluate(OWN_FOLDER, folder, tmp_path / "run")
    check_what_is_left(config, experiment)
    split = config.class_split
    assert isinstance(split, ClassSplit)
    assert {*split.train, *split.eval} <= {f"class {number}" for number in range(17)}
    assert not {*split.train} & {*split.eval}


def test_a_shuffled_training_is_launched_and_reported(run: Callable, experiments: Path, photographs: Path) -> None:
    one = "eval={iid-unfrozen: {eval_method: iid, opt_params: all, classes: 300}}"  # Each flavor is a process.
    done = run("launch_train.py", "-c", "configs/train-oimg-iid-resnet.yml", "--project", "p", "--group", "g",
               "--cluster", "local", "--wandb", "disabled", "--smoke-test", "--data-path", photographs,
               "--set", one)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (experiments / "p/g/results").glob("*.csv")] == ["iid-unfrozen-step-000002.csv"]
    assert "after 2 steps" in done.stdout
    assert (experiments / "p/g/report/index.html").exists()
