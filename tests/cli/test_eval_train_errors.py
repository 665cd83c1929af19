"""What `eval_anml.py` and `train_anml.py` say when they cannot begin."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EVAL = REPOSITORY / "configs" / "eval-omni-anml.yml"
TRAIN = """
dataset: glyphs
train_classes: 20
epochs: 2
model: sanml
model_args: {rln_chs: 4, num_classes: 20}
eval: {olft: {classes: 4, runs: 2}}
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The folder of an experiment with a config and something like a checkpoint."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-000002").mkdir(parents=True)
    (folder / "checkpoints" / "step-000002" / "model.json").write_text("{}")
    (folder / "config.yml").write_text(TRAIN)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "train.yml"
    path.write_text(TRAIN)
    return path


def test_evaluation_needs_a_config(command) -> None:
    assert command("evaluate") == (2, "", "give an evaluation config: -c configs/eval-omni-anml.yml\n")


def test_evaluation_needs_a_checkpoint(command) -> None:
    shown = command("evaluate", "-c", EVAL)
    assert (shown.code, shown.err.startswith("give the checkpoint to evaluate: -m ")) == (2, True)


def test_a_missing_checkpoint_is_told(command, tmp_path: Path) -> None:
    missing = tmp_path / "no"
    assert command("evaluate", "-c", EVAL, "-m", missing) == (
        2, "", f"--model {missing}: no checkpoint here: expected a folder with model.safetensors and model.json\n",
    )  # fmt: skip


@pytest.mark.parametrize("part", [".", "checkpoints", "checkpoints/step-2"])
def test_the_wrong_folder_is_answered_with_the_checkpoints_near_it(command, run_dir: Path, part: str) -> None:
    shown = command("evaluate", "-c", EVAL, "-m", run_dir / part)
    assert shown.code == 2
    assert shown.err.endswith(f"; there are: {run_dir / 'checkpoints' / 'step-000002'}\n")


def test_evaluation_takes_no_training_config(command, config: Path) -> None:
    shown = command("evaluate", "-c", config, "-m", ".")
    assert (shown.code, f"{config}:1: this is a training config" in shown.err) == (2, True)


def test_options_of_an_evaluation_are_checked_like_its_config(command) -> None:
    assert command("evaluate", "-c", EVAL, "-m", ".", "--classes", "0", "--lr", "-1", "--set", "rnus=3") == (
        2, "", "3 problems:\n--classes: classes[0]: must be 1 or more, found 0\n"
        "--lr: lr[0]: must be greater than 0, found -1.0\n--set: rnus: unknown key; did you mean 'runs'?\n",
    )  # fmt: skip


@pytest.mark.parametrize("what", ["folder", "link", "device", "folder beside", "parquet", "long name", "file above"])
def test_results_that_cannot_be_written_are_found_before_the_work(command, run_dir: Path, tmp_path, what: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "file")
    (tmp_path / "taken.parquet").mkdir()
    (tmp_path / "out.parquet").touch()
    output = {
        "folder": run_dir, "link": tmp_path / "link.csv", "device": Path("/dev/null"),
        "folder beside": tmp_path / "taken.csv", "parquet": tmp_path / "out.parquet",
        "long name": tmp_path / f"{'x' * 250}.csv", "file above": tmp_path / "file" / "a.csv",
    }[what]  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    shown = command("evaluate", "-c", EVAL, "-m", run_dir / "checkpoints" / "step-000002", "-o", output)
    assert (shown.code, f"--output {output.with_suffix('')}" in shown.err) == (2, True)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_flavor_is_answered_with_those_there_are(command, run_dir: Path) -> None:
    assert command("evaluate", "--run-dir", run_dir, "--flavor", "oltf", "--step", "2") == (
        2, "", "--run-dir takes --flavor and --step; flavors of this experiment: olft; found oltf\n",
    )  # fmt: skip


def test_training_needs_a_config_or_a_run(command) -> None:
    assert command("train") == (
        2, "", "give a config (-c CONFIG), or the folder of a run to continue (--run-dir DIR)\n",
    )  # fmt: skip


def test_a_folder_without_a_run_is_told(command, tmp_path: Path) -> None:
    assert command("train", "--run-dir", tmp_path) == (
        2, "", f"{tmp_path}/config.yml: cannot read this file: No such file or directory\n",
    )  # fmt: skip


def test_a_training_does_not_begin_among_the_checkpoints_of_something_else(
    command, config: Path, run_dir: Path
) -> None:
    (run_dir / "config.yml").unlink()
    shown = command("train", "-c", config, "--run-dir", run_dir)
    assert (shown.code, shown.err.startswith(f"{run_dir / 'checkpoints'}: ")) == (2, True)
    assert not (run_dir / "config.yml").exists()


def test_none_of_the_seeds_trained_together_can_be_chosen(command, config: Path, experiments: Path) -> None:
    overrides = ["--set", "seeds=[1, 2]", "--set", "train_together=true", "--seed", "1"]
    code, _, errors = command("train", "-c", config, *overrides)
    assert code == 2
    assert errors == "--seed 1: this config does its trainings together (train_together); leave that out\n"


@pytest.mark.parametrize("choice", [[], ["--inner-lr", "0.2", "--seed", "1"], ["--inner-lr", "0.05"]])
def test_one_of_several_trainings_must_be_chosen(command, config: Path, experiments: Path, choice: list[str]) -> None:
    several = ["--set", "seeds=[1, 2]", "--set", "inner_lrs=[0.1, 0.05]"]
    assert command("train", "-c", config, *several, *choice) == (
        2, "", "this config has several trainings; say which one: --inner-lr 0.1 | 0.05, --seed 1 | 2\n",
    )  # fmt: skip
    assert not experiments.exists()


def test_an_inner_rate_cannot_be_chosen_where_there_is_one(command, config: Path, experiments: Path) -> None:
    assert command("train", "-c", config, "--inner-lr", "0.2") == (
        2, "", "--inner-lr 0.2: there are no inner_lrs to choose from; use --set inner_lr=NUMBER\n",
    )  # fmt: skip


@pytest.mark.parametrize("seed", [[], ["--seed", "3"]])
def test_one_of_several_seeds_must_be_chosen(command, config: Path, experiments: Path, seed: list[str]) -> None:
    assert command("train", "-c", config, "--set", "seeds=[1, 2]", *seed) == (
        2, "", "this config has several trainings; say which one: --seed 1 | 2\n",
    )  # fmt: skip
    assert not experiments.exists()


@pytest.mark.parametrize("step", ["0", "-3", "x"])
def test_training_ends_at_a_step(command, config: Path, step: str) -> None:
    shown = command("train", "-c", config, f"--until-step={step}")
    assert (shown.code, f"must be a whole number of 1 or more, found '{step}'" in shown.err) == (2, True)


def test_a_config_that_the_model_does_not_fit_leaves_nothing_behind(command, config: Path, experiments: Path) -> None:
    shown = command("train", "-c", config, "--set", "inner_params=rnl")
    assert shown.code == 2
    assert shown.err.startswith("--set: inner_params: no parameter is called 'rnl'; ")
    assert not experiments.exists()


def test_a_folder_of_another_run_is_left_alone(command, config: Path, run_dir: Path) -> None:
    assert command("train", "-c", config, "--run-dir", run_dir) == (
        2, "", f"{run_dir}: holds a run with another config; choose another with --run-dir DIR\n",
    )  # fmt: skip
    assert (run_dir / "config.yml").read_text() == TRAIN
