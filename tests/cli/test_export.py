"""A checkpoint to share: small, complete, evaluated without the experiment it came from."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from anml.atomic import write_text
from anml.checkpoints import ModelCard, load_model, save_checkpoint
from anml.checkpoints.export import export_model
from anml.cli.main import main
from anml.config.load import dump_config, load_train_config
from anml.config.training import TrainConfig, TrainingId
from anml.errors import CheckpointError
from anml.experiment import Experiment
from anml.models import build_model

SMALL = """
dataset: glyphs
data_path: .
train_classes: 20
num_batches: 3
remember_size: 4
epochs: 2
engine: fast
model: anml
model_args: {rln_chs: 6, nm_chs: 4, num_classes: 20}
inner_params: [rln, fc]
eval:
  - olft: {classes: 4, train_examples: 3, test_examples: 2, runs: 2, lr: [0.001, 0.01], eval_freq: 2}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Return the folder of a finished experiment."""
    root = tmp_path_factory.mktemp("experiments")
    config = root / "small.yml"
    config.write_text(SMALL)
    common = ["--experiments-dir", str(root), "--wandb", "disabled", "--cluster", "local"]
    assert main(["launch", "-c", str(config), "--project", "p", "--group", "g", *common]) == 0
    return root / "p" / "g"


def test_an_exported_model_is_the_checkpoint_without_its_training_state(trained, tmp_path, run):
    result = run("-m", "anml", "export", trained, tmp_path / "model")
    assert result.returncode == 0, result.stderr
    assert f"Evaluate it: python -m anml evaluate -m {tmp_path / 'model'} --classes 4" in result.stdout
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]
    shared, card = load_model(tmp_path / "model")
    original, expected = load_model(trained / "checkpoints" / "step-000002")
    assert card == expected
    assert card.train_classes == 20  # Whoever gets the model can tell what it has not seen.
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in shared.state_dict().items())


def test_its_card_tells_origin_and_accuracy(trained, tmp_path, run):
    run("-m", "anml", "export", trained, tmp_path / "model", "--half")
    text = (tmp_path / "model" / "model.json").read_text()
    assert "data_path" not in text
    assert "host" not in text
    about = json.loads(text)["about"]
    assert about["config"]["model"] == "anml"
    assert about["weights"] == "float16"
    assert [(m["flavor"], m["classes"], m["runs"]) for m in about["accuracy"]] == [
        ("olft", 1, 2), ("olft", 2, 2), ("olft", 4, 2),
    ]  # fmt: skip


def test_a_card_says_which_results_are_missing(trained, tmp_path, run):
    shutil.copytree(trained, tmp_path / "p" / "g")
    (results,) = (tmp_path / "p" / "g" / "results").glob("olft-step-000002.csv")
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(line for line in lines if ",0.01,1,1," not in line))
    result = run("-m", "anml", "export", tmp_path / "p" / "g", tmp_path / "model")
    sentence = "olft, after 2 episodes: 3 of 4 trajectories"
    assert f"results are missing: {sentence}" in result.stderr
    assert json.loads((tmp_path / "model" / "model.json").read_text())["about"]["missing"] == [sentence]


def test_a_training_of_several_is_told_by_its_own_rate_and_seed(tmp_path):
    (tmp_path / "small.yml").write_text(SMALL)
    config = load_train_config(tmp_path / "small.yml", ["inner_lrs=[0.1, 1e-5]", "seeds=[1, 2]"]).config
    experiment = Experiment(tmp_path / "p" / "g")
    write_text(experiment.config_file, dump_config(config))
    alone = config.for_training(config.training_id(1e-5, 2))
    model = build_model("anml", alone.model_args, alone.image_shape, seed=2)
    card = ModelCard("anml", alone.model_args, (1, 28, 28), alone.display_name, "glyphs", "meta", 2, 2)
    save_checkpoint(experiment.checkpoint(2, "inner-lr-1e-05-seed-2"), model, card, {})
    options = ["--experiments-dir", str(tmp_path), "--inner-lr", "0.00001", "--seed", "2"]
    assert main(["export", "p/g", str(tmp_path / "model"), *options]) == 0
    about = json.loads((tmp_path / "model" / "model.json").read_text())["about"]["config"]
    assert (about["inner_lr"], about["seed"], about["model_name"]) == (1e-5, 2, "anml-inner-lr-1e-05")
    assert not {"inner_lrs", "seeds"} & set(about)


def test_half_is_half_the_size_and_evaluates_like_any_checkpoint(trained, tmp_path, run):
    for name, options in (("whole", []), ("half", ["--half"])):
        run("-m", "anml", "export", trained, tmp_path / name, *options)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.7 * sizes[0]
    result = run("eval_anml.py", "-m", tmp_path / "half", "--classes", "4", "--runs", "1")
    assert result.returncode == 0, result.stderr
    assert "4 classes of glyphs" in result.stdout


def experiment_with_weight(folder: Path, weight: float) -> Experiment:
    """Return an experiment whose checkpoint of step 2 has this number among its weights, as fc.bias[2]."""
    experiment = Experiment(folder)
    model = build_model("sanml", {"rln_chs": 3, "num_classes": 5}, (1, 28, 28), seed=1)
    with torch.no_grad():
        model.get_parameter("fc.bias")[2] = weight
    card = ModelCard("sanml", {"rln_chs": 3, "num_classes": 5}, (1, 28, 28), "sanml", "glyphs", "meta", 2, 1)
    save_checkpoint(experiment.checkpoint(2), model, card, {})
    return experiment


def test_half_of_what_float16_cannot_hold_is_refused(tmp_path):
    experiment = experiment_with_weight(tmp_path / "experiment", 1e5)
    config = TrainConfig(dataset="glyphs", model="sanml")
    with pytest.raises(CheckpointError, match=r"fc\.bias has numbers beyond float16's range"):
        export_model(experiment, config, 2, TrainingId(), tmp_path / "half", half=True)
    assert not (tmp_path / "half").exists()


def test_a_model_that_is_not_finite_is_not_exported(tmp_path):
    experiment = experiment_with_weight(tmp_path / "experiment", torch.nan)
    config = TrainConfig(dataset="glyphs", model="sanml")
    with pytest.raises(CheckpointError, match=r"step-000002: fc\.bias .* not finite"):
        export_model(experiment, config, 2, TrainingId(), tmp_path / "out", half=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step", "7"], "step-000007: no checkpoint here; give --step, one of 2"),
        (["--seed", "x"], "invalid int value"),
        (["--inner-lr", "0.3"], "--inner-lr 0.3: this experiment has no such training; all of it is with 0.1"),
        (["--seed", "2"], "--seed 2: this experiment has no such training; all of it is with 1"),
    ],
)
def test_what_is_not_there_is_told_in_words(trained, tmp_path, run, arguments, words):
    result = run("-m", "anml", "export", trained, tmp_path / "model", *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "model").exists()


def test_an_export_replaces_an_earlier_one_and_fills_an_empty_folder(trained, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    assert main(["export", str(trained), str(target)]) == 0
    assert main(["export", str(trained), str(target), "--half"]) == 0
    assert json.loads((target / "model.json").read_text())["about"]["weights"] == "float16"


def test_any_other_target_is_left_as_it_is(trained, tmp_path, command):
    precious, file, link = tmp_path / "thesis", tmp_path / "file", tmp_path / "link"
    write_text(precious / "chapter.tex", "years of work")
    write_text(file, "no folder")
    link.symlink_to(precious)
    checkpoint = tmp_path / "step-000002"
    shutil.copytree(trained / "checkpoints" / "step-000002", checkpoint)
    before = sorted(tmp_path.rglob("*"))
    for target in (precious, file, link, checkpoint):
        code, _, error = command("export", trained, target)
        assert (code, str(target.resolve()) in error) == (2, True)
    assert sorted(tmp_path.rglob("*")) == before
