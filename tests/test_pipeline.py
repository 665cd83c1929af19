"""The whole path, for real: one YAML file to a report, on the machine at hand."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import anml
from anml.experiment import Experiment
from anml.jobs.job_status import read_status

REPOSITORY = Path(__file__).resolve().parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slow

TINY = {
    "dataset": "glyphs",
    "train_classes": 20,
    "num_batches": 3,
    "remember_size": 8,
    "epochs": 4,
    "eval_steps": [2, 4],
    "model": "anml",
    "model_args": {"rln_chs": 4, "nm_chs": 4, "num_classes": 20},
    "inner_params": ["rln", "fc"],
    "eval": {
        "olft": {"classes": 4, "train_examples": 3, "test_examples": 2, "runs": 2, "lr": [0.001, 0.01], "eval_freq": 2},
        "no-sgd": {"classes": 4, "train_examples": 3, "test_examples": 2, "runs": 2, "eval_method": "zero_shot"},
    },
}
OLFT = {"olft": TINY["eval"]["olft"]}  # type: ignore[index]


def write_config(folder: Path, **changes: object) -> Path:
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(TINY | changes))
    return path


def launch(run: Run, config: Path, *options: str, group: str = "g", **environment: str):
    return run(
        "launch_train.py", "-c", config, "--project", "p", "--group", group, "--cluster", "local",
        "--wandb", "disabled", *options, **environment,
    )  # fmt: skip


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment run once for all tests that only look at it (or launch another beside it)."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder)
    command = ["launch_train.py", "-c", str(config), "--project", "p", "--group", "g", "--cluster", "local"]
    done = subprocess.run(
        [sys.executable, *command, "--wandb", "offline"], cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env=os.environ | {"ANML_EXPERIMENTS": str(folder / "experiments")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "experiments" / "p" / "g"


def test_pipeline_leaves_a_complete_experiment_folder(finished: Path) -> None:
    expected = {
        "config.yml", "plan.json", "environment.json", "code/anml/train/job.py", "code/launch_train.py",
        "jobs/train-step-000002/job.sh", "jobs/train-step-000002/log.txt", "jobs/train-step-000002/status.json",
        "checkpoints/step-000004/model.safetensors", "checkpoints/step-000004/model.json", "metrics/train.jsonl",
        "results/olft-step-000002.csv", "results/olft-step-000004.parquet", "results/no-sgd-step-000004.csv",
        "report/index.html", "report/summary.csv", "report/accuracy-vs-lr.png", "report/training.png",
        "../index.html", "../../index.html",
    }  # fmt: skip
    assert [name for name in sorted(expected) if not (finished / name).exists()] == []


def test_results_hold_every_rate_run_and_scoring(finished: Path) -> None:
    rows = rows_of(finished / "results" / "olft-step-000004.csv")
    points = [(row["run"], float(row["lr"]), int(row["classes_trained"])) for row in rows]
    assert points == [(run, lr, n) for run in "01" for lr in (0.001, 0.01) for n in (1, 2, 4)]


def test_resolved_config_gives_the_same_results_but_for_their_seconds(
    run: Run, experiments: Path, finished: Path
) -> None:
    done = launch(run, finished / "config.yml", group="again")
    assert done.returncode == 0, done.stderr
    for name in ("olft-step-000004.csv", "no-sgd-step-000002.csv"):
        again, before = (rows_of(folder / "results" / name) for folder in (experiments / "p/again", finished))
        assert [row | {"seconds": ""} for row in again] == [row | {"seconds": ""} for row in before]


def test_a_second_experiment_takes_what_the_first_has_measured(run: Run, finished: Path, tmp_path: Path) -> None:
    config, folder = (
        write_config(tmp_path, eval_steps=[4], eval={"more": OLFT["olft"] | {"runs": 3}}),
        finished.parents[1],
    )
    done = launch(run, config, group="second", ANML_EXPERIMENTS=str(folder))
    assert done.returncode == 0, done.stderr
    second = folder / "p/second"
    log, page = (second / name for name in ("jobs/more-step-000004/log.txt", "report/index.html"))
    assert "4 trajectories are taken from p/g/results/olft-step-000004.csv" in log.read_text()
    assert "4 trajectories from p/g." in page.read_text()
    measured, taken = (
        rows_of(path) for path in (finished / "results/olft-step-000004.csv", *second.glob("results/*.csv"))
    )
    assert len(taken) == 1.5 * len(measured)
    assert all(row | {"flavor": "more"} in taken for row in measured)


def test_launch_has_one_wandb_run_for_training_and_one_per_evaluation(finished: Path) -> None:
    runs = {path.name.rsplit("-", 1)[-1] for path in (finished / "wandb" / "wandb").glob("offline-run-*")}
    assert len(runs) == 1 + 4 + 1  # Both segments of the training share theirs; the report has one.


def test_launched_code_is_the_frozen_copy(run: Run, experiments: Path, tmp_path: Path) -> None:
    """A change of the frozen copy changes the job; the repository's code is therefore not what runs."""
    config = write_config(tmp_path, epochs=2, eval_steps=[2], eval={})
    assert launch(run, config).returncode == 0
    root = experiments / "p" / "g"
    frozen = root / "code" / "anml" / "train" / "job.py"
    frozen.write_text(frozen.read_text().replace("training on", "frozen code trains on"))
    (root / "jobs/train-step-000002/status.json").unlink()
    assert run("-m", "anml", "retry", "p/g").returncode == 0
    assert "frozen code trains on" in (root / "jobs/train-step-000002/log.txt").read_text()


def test_failing_job_skips_dependents_still_reports_and_exits_with_1(
    run: Run, experiments: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "broken.yml"
    profile.write_text("scheduler: local\ndevice: cuda\n")
    done = launch(run, write_config(tmp_path), "--cluster", str(profile))
    assert done.returncode == 1
    root = experiments / "p" / "g"
    assert json.loads((root / "jobs/olft-step-000002/status.json").read_text())["state"] == "skipped"
    assert "this profile is for CUDA" in (root / "report/index.html").read_text()
    assert "Traceback" not in done.stderr


def test_a_diverged_training_fails_and_nothing_of_it_is_evaluated(run: Run, experiments: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, inner_lr=1e30, eval_untrained=True)
    root = experiments / "p" / "g"
    for command in (lambda: launch(run, config), lambda: run("-m", "anml", "retry", "p/g")):
        assert command().returncode == 1
        states = {path.parent.name: json.loads(path.read_text()) for path in root.glob("jobs/*/status.json")}
        diverged = states.pop("train-step-000002")
        assert diverged["state"] == "failed"
        assert "episode 1 (seed 1, inner_lr 1e+30) is not finite" in diverged["message"]
        assert str(root / "checkpoints" / "step-000000") in diverged["message"]
        assert states.pop("report")["state"] == "done"
        assert {status["state"] for status in states.values()} == {"skipped"}
        assert diverged["message"] in (root / "report/index.html").read_text()
    assert diverged["message"] in " ".join(run("-m", "anml", "status", "p/g", COLUMNS="1000").stdout.split())
    assert [path.name for path in (root / "checkpoints").iterdir()] == ["step-000000"]
    assert not list((root / "results").glob("*.csv"))


def test_ctrl_c_leaves_a_resumable_experiment(run: Run, experiments: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, epochs=900, eval_steps=[900], save_freq=1000, eval={})
    command = [sys.executable, "launch_train.py", "-c", str(config), "--project", "p", "--group", "g"]
    launcher = subprocess.Popen(
        [*command, "--cluster", "local", "--wandb", "disabled"], cwd=REPOSITORY, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    status_file = experiments / "p/g/jobs/train-step-000900/status.json"
    wait_until(lambda: status_file.exists() and json.loads(status_file.read_text())["done"] > 20)
    os.killpg(launcher.pid, signal.SIGINT)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "Traceback" not in errors
    assert json.loads(status_file.read_text())["state"] == "interrupted"
    assert run("-m", "anml", "retry", "p/g").returncode == 0
    assert launch(run, config, group="undisturbed").returncode == 0
    name = "checkpoints/step-000900/model.safetensors"
    assert (experiments / "p/g" / name).read_bytes() == (experiments / "p/undisturbed" / name).read_bytes()


def wait_until(condition, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_several_seeds_are_trained_and_evaluated_apart(run: Run, experiments: Path, tmp_path: Path) -> None:
    done = launch(run, write_config(tmp_path, seeds=[1, 2], epochs=2, eval_steps=[2], eval=OLFT))
    assert done.returncode == 0, done.stderr
    root = experiments / "p" / "g"
    seeds = {row["train_seed"] for s in (1, 2) for row in rows_of(root / f"results/olft-step-000002-seed-{s}.csv")}
    assert seeds == {"1", "2"}
    assert (root / "checkpoints/seed-2/step-000002/model.json").exists()


def test_seeds_trained_together_are_evaluated_apart(run: Run, experiments: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, seeds=[1, 2], train_together=True, epochs=2, eval_steps=[2], eval=OLFT)
    done = launch(run, config, "--wandb", "offline")
    assert done.returncode == 0, done.stderr
    root = experiments / "p" / "g"
    assert [path.name for path in (root / "jobs").glob("train*")] == ["train-step-000002"]
    log = (root / "jobs/train-step-000002/log.txt").read_text()
    assert "2 trainings at once" in log
    assert "seed-2  step 2" in log
    seeds = {row["train_seed"] for s in (1, 2) for row in rows_of(root / f"results/olft-step-000002-seed-{s}.csv")}
    assert seeds == {"1", "2"}
    assert (root / "checkpoints/seed-2/step-000002/model.json").exists()
    runs = {path.name.rsplit("-", 1)[-1] for path in (root / "wandb" / "wandb").glob("offline-run-*")}
    assert len(runs) == 2 + 2 + 1  # A run for each seed, for each evaluation, and for the report.
    (root / "jobs/olft-step-000002-seed-2/status.json").unlink()
    assert run("-m", "anml", "retry", "p/g").returncode == 0
    assert run("-m", "anml", "status", "p/g").returncode == 0


@pytest.mark.parametrize(
    ("several", "key", "flag"),
    [
        ({"inner_lrs": [0.1, 0.05]}, "inner-lr", "--inner-lr=0.05"),
        ({"vary": {"inner_lr": [0.1, 0.05]}, "train_together": True}, "inner-lr", "--inner-lr=0.05"),
        ({"vary": {"outer_lr": [0.1, 0.05]}}, "outer-lr", "--training=outer-lr-0.05"),
    ],
    ids=["rates", "together", "vary"],
)
def test_what_varies_makes_models_of_their_own_in_the_report(
    run: Run, experiments: Path, tmp_path: Path, several: dict, key: str, flag: str
) -> None:
    config = write_config(tmp_path, **several, epochs=2, eval_steps=[2], eval=OLFT)
    done = launch(run, config)
    assert done.returncode == 0, done.stderr
    root = experiments / "p" / "g"
    for rate in ("0.1", "0.05"):
        rows = rows_of(root / f"results/olft-step-000002-{key}-{rate}.csv")
        assert {row["model"] for row in rows} == {f"anml-{key}-{rate}"}
        assert f"anml-{key}-{rate}: 4 classes" in (root / "report/accuracy.txt").read_text()
    assert run("-m", "anml", "export", "p/g", tmp_path / "out", flag).returncode == 0
    assert f'"display_name": "anml-{key}-0.05"' in (tmp_path / "out/model.json").read_text()


def test_a_finished_experiment_grows_and_what_was_there_stays(run: Run, experiments: Path, tmp_path: Path) -> None:
    assert launch(run, write_config(tmp_path, epochs=4, eval_steps=[2], seeds=[1], eval=OLFT)).returncode == 0
    root = experiments / "p" / "g"
    before = {path: path.read_bytes() for name in ("results", "checkpoints") for path in (root / name).rglob("*.*")}
    more = tmp_path / "more.yml"
    more.write_text(
        "eval: {means: {eval_method: zero_shot, classes: [4], runs: 2}, olft: {lr: [0.001, 0.01, 0.1], runs: 3}}\n"
        "eval_steps: [2, 4]\n"
    )
    done = run("-m", "anml", "add", "p/g", "-c", more)
    assert done.returncode == 0, done.stderr
    # At two checkpoints: two flavors, and what the larger sweep has more. One of them was there.
    assert len(list((root / "results").glob("*.csv"))) == 6
    assert {path: path.read_bytes() for path in before} == before
    assert "means" in (root / "report/accuracy.txt").read_text()
    (addition,) = json.loads((root / "environment.json").read_text())["additions"]
    assert "train-step-000004-seed-1" in addition["jobs"]
    again = run("-m", "anml", "add", "p/g", "-c", more)
    assert (again.returncode, "adds nothing" in again.stderr) == (2, True)

    grown = anml.load(root)
    pooled = grown.results.query("flavor == 'olft' and checkpoint_step == 2")
    whole = anml.evaluate(grown.folder.checkpoint(2, "seed-1"), grown.config.eval["olft"].model_dump(exclude_none=True))
    columns = ["lr", "run", "step", "test_acc"]
    one, other = (pd.DataFrame(t[columns]).sort_values(columns, ignore_index=True) for t in (pooled, whole))
    pd.testing.assert_frame_equal(one, other)


def test_a_rate_is_chosen_on_held_out_classes_and_then_scored_once(run: Run, experiments: Path, tmp_path: Path) -> None:
    choose = {"on": "validation", "by": ["lr", "checkpoint"]}
    done = launch(run, write_config(tmp_path, eval=OLFT | {"chosen": OLFT["olft"] | {"choose": choose}}))
    assert done.returncode == 0, done.stderr
    root = experiments / "p" / "g"
    chosen, swept = (rows_of(root / f"results/{flavor}-step-000004.csv") for flavor in ("chosen", "olft"))
    assert {(row["classes_trained"], row["run"]) for row in chosen} == {(n, run) for n in "124" for run in "01"}
    if {row["checkpoint_step"] for row in chosen} == {"4"}:
        accuracies = [row["test_acc"] for row in swept if row["lr"] == chosen[-1]["lr"] and row["run"] == "1"]
        assert chosen[-1]["test_acc"] == accuracies[-1]
    assert "chosen on held-out classes" in (root / "jobs/chosen-step-000004/log.txt").read_text()
    assert (root / "report/accuracy.txt").read_text().startswith("Chosen on held-out classes")


def test_other_checkpoints_are_evaluated_beside_its_own_by_new_code(
    run: Run, experiments: Path, tmp_path: Path
) -> None:
    assert launch(run, write_config(tmp_path, epochs=2, eval_steps=[2], eval=OLFT)).returncode == 0
    own = anml.load(experiments / "p" / "g")
    before = {path: path.read_bytes() for path in own.folder.results.iterdir()}
    pth, shipped = tmp_path / "same-2.pth", REPOSITORY / "trained_anmls" / "omniglot-anml"
    torch.save(own.model().state_dict(), pth)

    # An earlier version does not know what additions write.
    frozen = own.folder.code / "anml/config/training.py"
    frozen.write_text(frozen.read_text().replace("eval_checkpoints", "of_no_use"))
    words = ("-m", "anml", "add", "p/g", "--checkpoint", pth, f"shipped={shipped}")
    refused = run(*words)
    assert (refused.returncode, "add with --new-code" in refused.stderr) == (2, True)
    assert own.config.eval_checkpoints is None

    done = run(*words, "--new-code")
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in before} == before
    pth.unlink()  # What is evaluated is a copy.
    columns, results = ["lr", "run", "step", "test_acc"], own.results
    of_model = {model: pd.DataFrame(rows[columns]).reset_index(drop=True) for model, rows in results.groupby("model")}
    assert list(of_model) == ["anml", "same", "shipped"]
    pd.testing.assert_frame_equal(of_model["same"], of_model["anml"])
    by_hand = anml.evaluate(shipped, own.config.eval["olft"].model_dump(exclude_none=True))
    pd.testing.assert_frame_equal(of_model["shipped"], pd.DataFrame(by_hand[columns]))
    page = (own.folder.report / "index.html").read_text()
    assert ("shipped: 4 classes learned" in page, "which run code-2/" in page) == (True, True)
    # The code as launched and the present code measure the same.
    recorded = json.loads(own.folder.environment_file.read_text())
    checksums = [each["code_checksum"] for each in (recorded, *recorded["additions"])]
    assert set(results["code"]) == set(checksums)
    ran = {name: (own.folder.job(name).script).read_text() for name in ("olft-step-000002", "olft-step-000002-same")}
    assert ["/code-2 " in script for script in ran.values()] == [False, True]


def test_what_is_added_while_jobs_run_waits_for_them(run: Run, experiments: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, epochs=400, eval_steps=[400], eval=OLFT)
    command = ["launch_train.py", "-c", str(config), "--project", "p", "--group", "g", "--cluster", "local"]
    own = Experiment(experiments / "p" / "g")
    with subprocess.Popen([sys.executable, *command, "--wandb", "disabled"], cwd=REPOSITORY) as launcher:
        wait_until(lambda: read_status(own.job("train-step-000400").status).state == "running", 200)
        done = run("-m", "anml", "add", "p/g", "--set", "eval.olft.runs=3")
        assert (done.returncode, launcher.wait(200)) == (0, 0), done.stderr
    train, added, report = (
        read_status(own.job(name).status) for name in ("train-step-000400", "olft-step-000400-more-1", "report")
    )
    assert (train.attempt, added.state, report.state) == (1, "done", "done")
    times = [train.ended or 0.0, added.started or 0.0, report.started or 0.0]
    assert times == sorted(times)
    assert len(anml.load(own.root).results.run.unique()) == 3


def test_evaluation_by_hand_agrees_with_the_planned_one(run: Run, finished: Path, tmp_path: Path) -> None:
    evaluation = tmp_path / "eval.yml"
    evaluation.write_text(yaml.safe_dump(OLFT["olft"] | {"dataset": "glyphs"}))
    output = tmp_path / "by-hand.csv"
    done = run("eval_anml.py", "-c", evaluation, "-m", finished / "checkpoints/step-000004", "--output", output)
    assert done.returncode == 0, done.stderr
    planned = rows_of(finished / "results/olft-step-000004.csv")
    assert [row["test_acc"] for row in rows_of(output)] == [row["test_acc"] for row in planned]
    assert "std" in done.stdout


@pytest.mark.omniglot
def test_smoke_test_of_real_omniglot_takes_under_a_minute(run: Run, experiments: Path, omniglot_path: str) -> None:
    started = time.monotonic()
    done = launch(run, Path("configs/train-omni-anml.yml"), "--smoke-test", "--data-path", omniglot_path)
    assert done.returncode == 0, done.stderr
    flavors = {"no-sgd", "olft", "unfrozen", "olft-oracle", "unfrozen-oracle"}
    assert {p.name.split("-step")[0] for p in (experiments / "p/g/results").glob("*.csv")} == flavors
    assert time.monotonic() - started < 60 * float(os.environ.get("ANML_TEST_PATIENCE", "2"))
