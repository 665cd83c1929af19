"""Every file of configs/ is what its name says."""

import re
from pathlib import Path

import pytest
import torch

from anml.cli.check_config import memory_needs, name_problems
from anml.cli.main import main
from anml.config.load import LoadedTrain, load_eval_configs, load_train_config
from anml.config.profile import PROFILES, load_profile, profile_names
from anml.config.smoke_test import smoke_test
from anml.config.yaml import read_yaml
from anml.jobs.memory import memory_problems
from anml.jobs.plan import make_plan
from anml.models import build_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OWN_FOLDER = CONFIGS / "train-folder-sanml.yml"  # Whose classes are counted as it loads: tests/test_config_zoo.py.
LISTS = sorted([*CONFIGS.rglob("*-flavors.yml"), CONFIGS / "learning-rates.yml"])
PARTS = sorted([*CONFIGS.glob("model-*.yml"), *CONFIGS.glob("results/eval-*.yml")])
# The trainings of docs/results.md.
RESULTS = set(CONFIGS.glob("results/*.yml")) - {*LISTS, *PARTS}
TRAININGS = sorted({*CONFIGS.glob("train-*.yml"), *RESULTS, CONFIGS / "quickstart.yml"} - {OWN_FOLDER})
EVALUATIONS = sorted(CONFIGS.glob("eval-*.yml"))

OMNIGLOT = ["no-sgd", "olft", "unfrozen", "olft-oracle", "unfrozen-oracle"]
OML = ["no-sgd", "1ft", "2ft", "ft-all", "iid-1ft", "iid-ft-all"]
INET = ["no-sgd", "olft", "unfrozen", "lstsq-unfrozen", "iid-olft", "iid-unfrozen", "iid-lstsq-unfrozen"]
OIMG = ["no-sgd", "olft", "unfrozen", "iid-olft", "iid-unfrozen"]
OIMG100 = ["no-sgd", "no-sgd-lg", *OIMG[1:]]
# By name, what higherANML's users know: the model, how it is trained, on what, and its evaluations.
ZOO = {
    "train-omni-anml": ("anml", "meta", "omniglot", OMNIGLOT),
    "train-omni-sanml": ("sanml", "meta", "omniglot", OMNIGLOT),
    "train-omni-oml": ("oml", "meta", "omniglot", OML),
    "train-omni-iid-sanml": ("sanml", "iid", "omniglot", OMNIGLOT),
    "train-omni-iid-anml": ("anml-encoder", "iid", "omniglot", OMNIGLOT),
    "train-omni-seqep-sanml": ("sanml", "sequential_episodic", "omniglot", OMNIGLOT),
    "train-inet-anml": ("anml", "meta", "mini-imagenet", INET),
    "train-inet-sanml": ("convnet", "meta", "mini-imagenet", INET),
    "train-inet-oml": ("oml", "meta", "mini-imagenet", [*INET, "2ft"]),
    "train-inet-baseline": ("resnet18", "meta", "mini-imagenet", INET),
    "train-inet-iid-baseline": ("resnet18", "iid", "mini-imagenet", INET),
    "train-inet-iid-sanml": ("convnet", "iid", "mini-imagenet", INET),
    "train-inet-seqep-sanml": ("convnet", "sequential_episodic", "mini-imagenet", INET),
    "train-oimg-sanml": ("convnet", "meta", "omniimage20", OIMG),
    "train-oimg-iid-sanml": ("convnet", "iid", "omniimage20", OIMG),
    "train-oimg-seqep-sanml": ("convnet", "sequential_episodic", "omniimage20", OIMG),
    "train-oimg-iid-resnet": ("resnet18", "iid", "omniimage20", OIMG),
    "train-oimg100-sanml": ("convnet", "meta", "omniimage100", OIMG100),
    "train-oimg100-iid-sanml": ("convnet", "iid", "omniimage100", OIMG100),
    "train-oimg100-seqep-sanml": ("convnet", "sequential_episodic", "omniimage100", OIMG100),
    "train-oimg100-iid-resnet": ("resnet18", "iid", "omniimage100", OIMG100),
}


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def load(name: str):
    return load_train_config(CONFIGS / f"{name}.yml").config


@pytest.fixture(scope="module")
def trainings() -> dict[str, LoadedTrain]:
    """Every training config, loaded."""
    return {name_of(path): load_train_config(path) for path in TRAININGS}


def test_every_training_config_loads_without_a_notice_and_is_evaluated(trainings: dict[str, LoadedTrain]) -> None:
    assert {name: loaded.notices for name, loaded in trainings.items() if loaded.notices} == {}
    assert [name for name, loaded in trainings.items() if not loaded.config.eval] == []


def test_every_training_is_planned_to_its_end(
    trainings: dict[str, LoadedTrain], capsys, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("ANML_EXPERIMENTS", str(tmp_path))
    options = ["--project", "p", "--cluster", "local", "--wandb", "disabled", "--dry-run"]
    missing = {}
    for name, loaded in trainings.items():
        assert main(["launch", "-c", str(CONFIGS / f"{name}.yml"), *options]) == 0, name
        jobs = [job.name for job in make_plan(loaded.config).jobs]
        last_step = f"train-step-{loaded.config.total_steps:06d}"
        last = ["-".join(filter(None, (last_step, training.tag))) for training in loaded.config.trainings]
        shown = capsys.readouterr().out
        missing[name] = [job for job in jobs if f"\n  {job}" not in shown] + [job for job in last if job not in jobs]
    assert {name: jobs for name, jobs in missing.items() if jobs} == {}
    assert not list(tmp_path.iterdir())


def test_every_parameter_that_a_training_names_exists(trainings: dict[str, LoadedTrain]) -> None:
    problems = {}
    for name, loaded in trainings.items():
        config = smoke_test(loaded.config)  # Narrow layers have the same names.
        model = build_model(config.model, config.model_args, config.image_shape, seed=1)
        problems[name] = name_problems(config, model)
    assert {name: found for name, found in problems.items() if found} == {}


def test_every_training_fits_the_memory_of_every_shipped_profile(trainings: dict[str, LoadedTrain]) -> None:
    profiles = [load_profile(name, PROFILES) for name in profile_names(PROFILES)]
    problems = {}
    for name, (config, *_) in trainings.items():
        needs = list(memory_needs(config))
        problems[name] = [text for each in profiles for text in memory_problems(needs, 0, each, "cpu")]
    assert {name: found for name, found in problems.items() if found} == {}


def test_every_evaluation_config_loads_without_a_notice() -> None:
    assert {path.name: notices for path in EVALUATIONS if (notices := load_eval_configs(path)[0].notices)} == {}


def test_lists_that_others_include_hold_something() -> None:
    assert [path.name for path in LISTS if not isinstance(read_yaml(path).data, list)] == []


def test_every_part_is_included_by_a_config() -> None:
    texts = "\n".join(user.read_text() for user in CONFIGS.rglob("*.yml"))
    parts = [path.name for path in (*LISTS, *PARTS)]
    assert [name for name in parts if not re.search(rf"!include (\.\./)?{re.escape(name)}", texts)] == []


def test_every_config_begins_by_saying_what_it_is() -> None:
    beginnings = {path.name: path.read_text(encoding="utf-8").splitlines()[:2] for path in CONFIGS.rglob("*.yml")}
    wrong = {name for name, (first, second) in beginnings.items() if not first.startswith("# ") or second[:1] == "#"}
    assert wrong == set()


def test_every_config_is_covered() -> None:
    assert set(CONFIGS.rglob("*.yml")) == {*TRAININGS, OWN_FOLDER, *EVALUATIONS, *LISTS, *PARTS}


def test_the_zoo_has_every_model_under_its_known_name(trainings: dict[str, LoadedTrain]) -> None:
    zoo = {}
    for name in ZOO:
        config = trainings[name].config
        kind = config.model_args["encoder"] if config.model == "classifier" else config.model
        zoo[name] = (kind, config.train_method, config.dataset, list(config.eval))
    assert zoo == ZOO


def test_the_parts_of_an_oml_make_the_same_network() -> None:
    whole, parts = (load(name) for name in ("train-omni-oml", "train-omni-oml-equiv"))
    args = {"num_filters": 2, "hidden": 3, "num_classes": 4}
    oml = build_model("oml", whole.model_args | args, whole.image_shape, seed=1)
    encoder_args = parts.model_args["encoder_args"] | {"num_filters": 2}
    head_args = {"num_classes": 4, "hidden_layers": 3}
    small = parts.model_args | {"encoder_args": encoder_args, "classifier_args": head_args}
    equiv = build_model(parts.model, small, parts.image_shape, seed=1)
    equiv.load_state_dict(dict(zip(equiv.state_dict(), oml.state_dict().values(), strict=True)))
    images = torch.rand(2, *parts.image_shape)
    assert torch.equal(equiv(images), oml(images))
    assert (parts.inner_lr, parts.outer_lr, parts.eval["2ft"].opt_params) == (0.03, 0.0001, ("classifier",))
    assert [flavor for flavor in parts.eval if parts.eval[flavor] != whole.eval[flavor]] == ["2ft"]


def test_omniglot_models_are_evaluated_in_five_flavors() -> None:
    config = load("train-omni-sanml")
    methods = {name: (flavor.eval_method, flavor.opt_params) for name, flavor in config.eval.items()}
    assert methods == {
        "no-sgd": ("zero_shot", ("head",)),
        "olft": ("sequential", ("head",)),
        "unfrozen": ("sequential", ("all",)),
        "olft-oracle": ("iid", ("head",)),
        "unfrozen-oracle": ("iid", ("all",)),
    }


def test_oml_has_its_own_rates_and_learns_both_linear_layers() -> None:
    config = load("train-omni-oml")
    assert (config.inner_lr, config.outer_lr, config.im_size, config.inner_params) == (0.03, 0.0001, 84, ("pn",))
    learned = {name: flavor.opt_params for name, flavor in config.eval.items() if flavor.eval_method != "zero_shot"}
    one, two, every = ("head",), ("pn",), ("all",)
    assert learned == {"1ft": one, "2ft": two, "ft-all": every, "iid-1ft": one, "iid-ft-all": every}
    assert {flavor.reinit_params for flavor in config.eval.values()} == {("head",)}


@pytest.mark.parametrize("name", ["train-omni-iid-sanml", "train-omni-iid-anml"])
def test_shuffled_training_on_omniglot(name: str) -> None:
    config = load(name)
    assert (config.train_size, config.batch_size, config.epochs, config.optimizer) == (15, 256, 10, "Adam")
    assert (config.lr, config.total_steps, config.checkpoint_steps) == (0.001, 570, (300, 570))


@pytest.mark.parametrize("name", ["train-inet-iid-sanml", "train-inet-iid-baseline"])
def test_shuffled_training_on_mini_imagenet(name: str) -> None:
    config = load(name)
    assert (config.train_size, config.batch_size, config.epochs) == (500, 256, 30)
    assert (config.optimizer, config.lr, config.optimizer_args) == ("SGD", 0.1, {"momentum": 0.9, "weight_decay": 1e-4})
    assert (config.lr_scheduler, config.lr_scheduler_args) == ("StepLR", {"step_size": 10, "gamma": 0.1})


@pytest.mark.parametrize("name", [name for name in ZOO if "inet" in name and "iid" not in name])
def test_episodes_of_mini_imagenet(name: str) -> None:
    config = load(name)
    assert (config.train_size, config.num_batches, config.val_size, config.remember_size) == (500, 20, 200, 100)
    assert (config.inner_lr, config.outer_lr) == (0.001, 0.001)


def test_evaluations_on_mini_imagenet() -> None:
    flavors = load("train-inet-sanml").eval
    sizes = {name: (f.classes, f.train_examples, f.test_examples, f.batch_size) for name, f in flavors.items()}
    assert {sizes[name] for name in ("olft", "unfrozen", "lstsq-unfrozen")} == {((20,), (10, 20, 30), (200,), 256)}
    assert {sizes[name] for name in INET if name.startswith("iid")} == {((20,), (30, 500), (100,), 64)}
    from_least_squares = [name for name, flavor in flavors.items() if flavor.reinit_method == "lstsq"]
    assert from_least_squares == ["no-sgd", "lstsq-unfrozen", "iid-lstsq-unfrozen"]
    assert {flavors[name].init_size for name in from_least_squares[1:]} == {0}


def test_all_sweeps_try_the_same_rates() -> None:
    rates = tuple(read_yaml(CONFIGS / "learning-rates.yml").data)
    assert len(rates) == 12
    assert {load_eval_configs(path)[0].config.lr for path in EVALUATIONS if "sweep" in path.stem} == {rates}


def test_an_evaluation_by_hand_has_one_rate() -> None:
    assert {len(load_eval_configs(path)[0].config.lr) for path in EVALUATIONS if "sweep" not in path.stem} == {1}
