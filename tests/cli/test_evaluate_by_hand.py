"""`eval_anml.py` by hand: checkpoints of ours and of higherANML, one or several."""

import csv
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch
from tqdm import tqdm

from anml.checkpoints import ModelCard, save_checkpoint
from anml.cli.check_config import find_problems
from anml.config.evaluation import DataRequest, EvalConfig
from anml.config.load import load_eval_configs, load_train_config
from anml.config.yaml import source_of
from anml.data import load_images
from anml.evaluate.by_hand import evaluate_by_hand, load_models
from anml.jobs.job import JobContext, StopRequest
from anml.models import build_model

ARGS = {"rln_chs": 4, "nm_chs": 3, "num_classes": 20}
SMALL = ["--classes", "3", "--train-examples", "2", "--test-examples", "2", "--runs", "2", "--lr", "0.01"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "eval.yml"
    path.write_text("dataset: glyphs\neval_freq: 0\n")
    return path


def save(
    folder: Path, seed: int = 1, step: int = 20, name: str = "anml", train_classes: int | None = None, **changes: bool
) -> Path:
    """Save an ANML as a checkpoint of ours, and as a state_dict beside it; returns the folder."""
    args = ARGS | changes
    model = build_model("anml", args, (1, 28, 28), seed)
    card = ModelCard("anml", args, (1, 28, 28), name, "glyphs", "meta", step, 1, train_classes=train_classes)
    save_checkpoint(folder, model, card, {})
    torch.save(model.state_dict(), folder.with_name(f"{folder.name}-{step}.pth"))
    return folder


def rows(path: Path, *left_out: str) -> list[dict[str, str]]:
    with path.open() as file:
        return [{key: row[key] for key in row if key not in (*left_out, "seconds")} for row in csv.DictReader(file)]


@pytest.mark.parametrize("pooled", [False, True], ids=["published NM", "pooled NM"])
def test_a_state_dict_gives_the_results_of_the_checkpoint(command, config: Path, tmp_path: Path, pooled: bool) -> None:
    ours = save(tmp_path / "ours", pool_nm_output=pooled)
    for model, output in ((ours, "a.csv"), (tmp_path / "ours-20.pth", "b.csv")):
        shown = command("evaluate", "-c", config, "-m", model, *SMALL, "-o", tmp_path / output)
        assert (shown.code, shown.err) == (0, "engine reference, a small sweep\n")
        assert shown.out.startswith("3 classes of glyphs, lr 0.01: train ")
    first, second = rows(tmp_path / "a.csv", "model", "train_seed"), rows(tmp_path / "b.csv", "model", "train_seed")
    assert first == second
    assert {row["checkpoint_step"] for row in second} == {"20"}


def test_options_take_several_numbers(command, config: Path, tmp_path: Path) -> None:
    several = [*SMALL, "0.001", "--classes", "4"]
    assert command("evaluate", "-c", config, "-m", save(tmp_path / "a"), *several, "-o", tmp_path / "a.csv").code == 0
    found = {(row["classes"], row["lr"]) for row in rows(tmp_path / "a.csv")}
    assert found == {(classes, lr) for classes in ("3", "4") for lr in ("0.01", "0.001")}


def test_without_a_config_the_defaults_are_told(command, tmp_path: Path) -> None:
    save(tmp_path / "ours")
    shown = command("evaluate", "-m", tmp_path / "ours-20.pth", "--set", "dataset=glyphs", *SMALL)
    assert shown.code == 0
    assert shown.err.startswith("note: no -c CONFIG: sequential, 3 classes, lr 0.01, 2 runs; ")


def test_a_name_without_a_step_is_noticed(command, config: Path, tmp_path: Path) -> None:
    save(tmp_path / "ours")
    (tmp_path / "ours-20.pth").rename(tmp_path / "best.pth")
    shown = command("evaluate", "-c", config, "-m", tmp_path / "best.pth", *SMALL)
    assert (shown.code, "does not end in -STEP; checkpoint_step is 0" in shown.err) == (0, True)


def test_several_models_are_each_swept(command, config: Path, tmp_path: Path) -> None:
    first, second = save(tmp_path / "a"), save(tmp_path / "b", seed=2, step=40)
    output = tmp_path / "both.csv"
    shown = command("evaluate", "-c", config, "-m", first, second, *SMALL, "-o", output)
    assert shown.code == 0, shown.err
    assert [line.split(": ")[0] for line in shown.out.splitlines()] == ["anml, step 20", "anml, step 40"]
    assert [(r["model"], r["checkpoint_step"]) for r in rows(output)] == [("anml", "20")] * 2 + [("anml", "40")] * 2
    command("evaluate", "-c", config, "-m", second, *SMALL, "-o", tmp_path / "one.csv")
    assert rows(output)[2:] == rows(tmp_path / "one.csv")
    table = pq.read_table(output.with_suffix(".parquet"))
    assert table["checkpoint_step"].to_pylist() == [20] * 6 + [40] * 6
    assert set(table["model"].to_pylist()) == {"anml"}


def test_an_evaluation_that_is_stopped_continues_after_what_it_has_finished(config: Path, tmp_path: Path) -> None:
    checkpoint, output = save(tmp_path / "a"), tmp_path / "out" / "a.csv"
    evaluation = load_eval_configs(config, ["classes=3", "train_examples=2", "test_examples=2", "runs=3"], {})[0].config

    def evaluate(path: Path, must_stop: Callable[[], bool]) -> list[float]:
        steps: list[float] = []
        context = JobContext(StopRequest(), None, tqdm(disable=True))
        context.stop = cast("StopRequest", must_stop)
        context.progress = lambda done, total, unit: steps.append(done)
        assert evaluate_by_hand(context, [evaluation], [checkpoint], "cpu", path) is not must_stop()
        return steps

    evaluate(output, lambda: bool(list(output.parent.glob(".a-*.partial.jsonl"))))
    assert not output.exists()
    assert evaluate(output, lambda: False)[0] == 1  # The first trajectory is there.
    evaluate(tmp_path / "whole.csv", lambda: False)
    assert rows(output) == rows(tmp_path / "whole.csv")
    assert sorted(path.name for path in output.parent.iterdir()) == ["a.csv", "a.parquet"]


def test_models_may_be_a_list_of_the_config(command, config: Path, tmp_path: Path) -> None:
    save(tmp_path / "a")
    save(tmp_path / "b", step=40)
    config.write_text(f"dataset: glyphs\neval_freq: 0\nmodel: [{tmp_path}/a, {tmp_path}/b-40.pth]\n")
    shown = command("evaluate", "-c", config, *SMALL)
    assert [line.split(": ")[0] for line in shown.out.splitlines()] == ["anml, step 20", "b, step 40"]


def test_models_of_one_name_and_step_are_told_apart_by_their_place(command, config: Path, tmp_path: Path) -> None:
    places = [save(tmp_path / run / "step-000020", seed=number) for number, run in enumerate("ab")]
    output = tmp_path / "both.csv"
    assert command("evaluate", "-c", config, "-m", places[0], "-m", places[1], *SMALL, "-o", output).code == 0
    assert [row["model"] for row in rows(output)] == ["anml (a/step-000020)"] * 2 + ["anml (b/step-000020)"] * 2


def test_every_model_is_checked_before_the_first_is_evaluated(command, config: Path, tmp_path: Path) -> None:
    places = [save(tmp_path / name, step=step) for step, name in enumerate("ab")]
    small = ["-m", *places, "--classes", "21", "--runs", "1", "--set", "opt_params=pn", "--set", "im_size=84"]
    shown = command("evaluate", "-c", config, *small)
    assert (shown.code, shown.out) == (2, "")
    for place in places:
        assert f"{place}: im_size 84: this model was trained on 28 pixels" in shown.err
        assert f"{place}: 21 classes do not fit the 20 outputs of this model" in shown.err
        assert f"{place}: opt_params: no parameter is called 'pn'" in shown.err


def test_least_squares_of_a_metric_head_are_refused_before_another_model_is_evaluated(
    command, config: Path, tmp_path: Path
) -> None:
    args = {"encoder": "convnet", "encoder_args": {"num_filters": 3}, "classifier": "metric-classifier"}
    model = build_model("classifier", args, (1, 28, 28), seed=1)
    card = ModelCard("classifier", args, (1, 28, 28), "metric", "glyphs", "meta", 20, 1)
    save_checkpoint(tmp_path / "metric", model, card, {})
    models = ["-m", save(tmp_path / "ours"), tmp_path / "metric"]
    shown = command("evaluate", "-c", config, *models, *SMALL, "--set", "reinit_method=lstsq")
    assert (shown.code, shown.out) == (2, "")
    assert f"{tmp_path}/metric: classifier.metric is a metric layer: least squares" in shown.err


def test_checkpoints_that_are_evaluated_on_the_same_images_share_them(tmp_path: Path) -> None:
    places = [save(tmp_path / name, step=step) for step, name in enumerate("abc")]
    values: dict[str, Any] = {"classes": 3, "train_examples": 2, "test_examples": 2}
    found = load_models(EvalConfig(**values, dataset="glyphs"), places, torch.device("cpu"))
    assert len({id(candidate.data) for candidate in found}) == 1


def test_a_model_for_other_channels_is_refused(command, config: Path, tmp_path: Path) -> None:
    state = build_model("sanml", {"rln_chs": 3, "num_classes": 5}, (3, 28, 28), seed=1).state_dict()
    torch.save(state, tmp_path / "colour-1.pth")
    shown = command("evaluate", "-c", config, "-m", tmp_path / "colour-1.pth", *SMALL)
    assert shown.code == 2
    text = "this model takes images of 3 channels, those of the data set have 1; to convert them, add channels: 3\n"
    assert shown.err.endswith(text)


def test_what_is_wrong_with_each_name_comes_at_once(command, config: Path, tmp_path: Path) -> None:
    place = save(tmp_path / "a")
    shown = command("evaluate", "-c", config, "-m", place, tmp_path / "no", f"{tmp_path}/./a", config)
    assert shown.code == 2
    assert shown.err.splitlines() == [
        "3 problems:",
        f"--model {tmp_path}/no: no checkpoint here: expected a folder with model.safetensors and model.json",
        f"--model {place}: is the same as {place}; name it once",
        f"--model {config}: is neither a folder with model.safetensors and model.json, nor a .pth of higherANML",
    ]


def test_a_model_listed_twice_has_its_line(command, config: Path) -> None:
    config.write_text("dataset: glyphs\nmodel: [a, a]\n")
    shown = command("evaluate", "-c", config)
    assert (shown.code, shown.err) == (2, f'{config}:2: model: "a" is listed twice; remove one\n')


def test_a_damaged_state_dict_is_explained(command, config: Path, tmp_path: Path) -> None:
    (tmp_path / "a-1.pth").write_bytes(b"damaged")
    shown = command("evaluate", "-c", config, "-m", tmp_path / "a-1.pth")
    assert (shown.code, "cannot be read as a state_dict" in shown.err, "Traceback" in shown.err) == (1, True, False)


@pytest.mark.parametrize("bad", ["bad", "bad-20.pth"])
def test_a_model_that_is_not_finite_is_refused_before_another_is_evaluated(
    command, config: Path, tmp_path: Path, bad: str
) -> None:
    model = build_model("anml", ARGS, (1, 28, 28), seed=1)
    with torch.no_grad():
        model.get_parameter("fc.bias")[0] = torch.nan
    card = ModelCard("anml", ARGS, (1, 28, 28), "anml", "glyphs", "meta", 20, 1)
    save_checkpoint(tmp_path / "bad", model, card, {})
    torch.save(model.state_dict(), tmp_path / "bad-20.pth")
    shown = command("evaluate", "-c", config, "-m", save(tmp_path / "good"), tmp_path / bad, *SMALL)
    assert (shown.code, shown.out) == (1, "")
    assert f"{tmp_path / bad}: fc.bias holds numbers that are not finite" in shown.err


def test_source_code_in_a_checkpoint_is_refused_and_its_tensors_can_be_had(
    command, config: Path, tmp_path: Path
) -> None:
    state = build_model("anml", ARGS, (1, 28, 28), seed=1).state_dict()
    source = "raise SystemExit('executed')"
    torch.save({"source": source, "class": "ANML", "kwargs": {}, "state": state}, tmp_path / "anml-1-28-28-20.net")
    shown = command("evaluate", "-c", config, "-m", tmp_path / "anml-1-28-28-20.net", *SMALL)
    assert shown.code == 2
    assert "a .net file holds source code that is executed when it is loaded" in shown.err
    advice = shlex.split(shown.err[shown.err.index("python -c") :])
    subprocess.run([sys.executable, *advice[1:]], check=True)
    assert command("evaluate", "-c", config, "-m", tmp_path / "anml-1-28-28-20.pth", *SMALL).code == 0


def test_a_state_dict_that_is_not_there_is_a_file_that_is_not_there(command, config: Path, tmp_path: Path) -> None:
    shown = command("evaluate", "-c", config, "-m", tmp_path / "none.pth")
    assert shown.code == 2
    assert shown.err.startswith(f"--model {tmp_path / 'none.pth'}: no such file")


def test_several_data_sets_are_each_swept(command, tmp_path: Path, omniglot_path: str) -> None:
    model = save(tmp_path / "ours")
    given = ("--set", "dataset=[glyphs, omniglot]", "--data-path", omniglot_path, *SMALL)
    shown = command("evaluate", "-m", model, *given, "-o", tmp_path / "a.csv")
    assert shown.code == 0, shown.err
    assert [line.split(",")[0] for line in shown.out.splitlines()] == ["3 classes of glyphs", "3 classes of omniglot"]
    assert list(dict.fromkeys(row["dataset"] for row in rows(tmp_path / "a.csv"))) == ["glyphs", "omniglot"]
    assert set(pq.read_table(tmp_path / "a.parquet")["dataset"].to_pylist()) == {"glyphs", "omniglot"}


def test_a_data_set_of_a_list_that_is_none_is_refused_before_any_is_evaluated(command, tmp_path: Path) -> None:
    shown = command("evaluate", "-m", save(tmp_path / "ours"), "--set", "dataset=[glyphs, glifs]", *SMALL)
    assert (shown.code, shown.out) == (2, "")
    assert '"glifs" is not allowed' in shown.err


VALIDATION = [*SMALL, "--set", "split=validation"]


def test_a_validation_says_what_its_numbers_are_of(command, config: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.csv"
    shown = command("evaluate", "-c", config, "-m", save(tmp_path / "a", train_classes=961), *VALIDATION, "-o", output)
    assert shown.code == 0, shown.err
    assert shown.out.startswith("3 held-out background classes of glyphs, lr 0.01: train ")
    assert {row["dataset"] for row in rows(output)} == {"glyphs-validation"}


def test_each_model_is_validated_on_what_it_has_not_seen(tmp_path: Path) -> None:
    places = [save(tmp_path / str(count), train_classes=count) for count in (900, 950)]
    values: dict[str, Any] = {"classes": 3, "train_examples": 2, "test_examples": 2, "split": "validation"}
    found = load_models(EvalConfig(**values), places, torch.device("cpu"))
    background = load_images(DataRequest("glyphs", "train", 28)).images
    assert [candidate.data.num_classes for candidate in found] == [64, 14]
    assert all(torch.equal(candidate.data.images, background[-candidate.data.num_classes :]) for candidate in found)


def test_models_validated_on_different_classes_are_said_not_to_compare(command, config: Path, tmp_path: Path) -> None:
    places = [save(tmp_path / str(count), train_classes=count) for count in (900, 950)]
    note = "left out different classes (all after the first 900, 950): do not compare"
    assert note in command("evaluate", "-c", config, "-m", *places, *VALIDATION).err
    assert note not in command("evaluate", "-c", config, "-m", *places, *SMALL).err


@pytest.mark.parametrize("model", ["a", "a-20.pth"])
def test_a_model_of_which_nobody_knows_what_it_has_not_seen_is_not_validated(
    command, config: Path, tmp_path: Path, model: str
) -> None:
    save(tmp_path / "a")
    shown = command("evaluate", "-c", config, "-m", tmp_path / model, *VALIDATION)
    assert (shown.code, shown.out) == (2, "")
    assert (
        "split: validation needs background classes that training left out; this model was trained on all" in shown.err
    )
    assert "Train one with train_classes: N" in shown.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["dataset=omniglot"], "takes background classes of the training, of glyphs, found omniglot"),
        (["classes=5"], "classes: this model has 4 background classes for validation, found 5"),
        (["allow_incomplete=true"], "in a complete copy; leave allow_incomplete out"),
    ],
)
def test_a_validation_that_cannot_be_is_refused_in_words(
    command, config: Path, tmp_path: Path, changes: list[str], words: str
) -> None:
    options = [part for change in changes for part in ("--set", change)]
    given = [option for option in VALIDATION if option not in ("--classes", "3")]
    place = save(tmp_path / "a", train_classes=960)
    shown = command("evaluate", "-c", config, "-m", place, *given, "--set", "classes=3", *options)
    assert (shown.code, shown.out) == (2, "")
    assert words in shown.err


def test_what_an_experiment_cannot_evaluate_is_refused_before_it_is_added(tmp_path: Path) -> None:
    held_out = {"split": "validation", "classes": 3, "train_examples": 2, "test_examples": 2, "runs": 1, "lr": 0.01}
    config = {"dataset": "glyphs", "train_classes": 900, "model": "sanml", "eval": {"held-out": held_out}}
    for train_classes, told in ((900, ""), (950, "trained on 950 classes, those held out here among them")):
        folder = save(tmp_path / str(train_classes), train_classes=train_classes)
        added = {"eval_checkpoints": {"other": {"path": str(folder), "step": 20}}}
        problems = find_problems(load_train_config(source_of(config | added, "config")).config)
        assert [told in problem for problem in problems] == [True] * bool(told), problems
    wide = {"open": {"classes": 21, "train_examples": 2, "test_examples": 2, "runs": 1, "lr": 0.01}}
    [problem] = find_problems(load_train_config(source_of(config | added | {"eval": wide}, "config")).config)
    assert "other: open: 21 classes do not fit the 20 outputs" in problem
