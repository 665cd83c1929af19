"""An experiment that stays open, on a real Slurm: a race, a choice, and additions while it runs and afterwards."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from tests.slurm.bench import TINY, Bench, long_training

pytestmark = pytest.mark.slurm

SIZES = {"classes": 20, "train_examples": 5, "test_examples": 5, "runs": 4, "eval_freq": [20]}
CHOSEN = {"lr": [1e-9, 0.01], "race": True, "choose": {"on": "validation", "by": ["lr"]}}
UNTIL = {"until": {"half_width": 0.001, "at_most": 6}}
MEANS = SIZES | {"eval_method": "ncm"}


def add(bench: Bench, means: dict) -> None:
    more = bench.folder / "more.yml"
    more.write_text(yaml.safe_dump({"eval": {"means": means}}))
    done = bench.python("-m", "anml", "add", "p/g", "-c", str(more))
    assert done.returncode == 0, done.stderr


def files_of(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for name in ("results", "checkpoints") for path in (root / name).rglob("*.*")}


def test_an_experiment_races_chooses_and_grows_while_it_runs_and_afterwards(bench: Bench) -> None:
    launched = bench.launch(config=long_training(400) | {"eval": {"chosen": SIZES | CHOSEN | UNTIL}})
    assert launched.returncode == 0, launched.stderr
    bench.wait_for_training("train-step-000400")
    add(bench, MEANS)
    assert bench.status("train-step-000400")["state"] == "running"
    bench.wait_for_queue()
    jobs = ("train", "chosen-validation", "chosen", "means")
    train, validation, chosen, means = (bench.status(f"{job}-step-000400") for job in jobs)
    report = bench.status("report")
    for status in (train, validation, chosen, means, report):
        assert (status["state"], status["attempt"]) == ("done", 1)
    assert train["ended"] <= min(means["started"], validation["started"])
    assert validation["ended"] <= chosen["started"]
    assert max(chosen["ended"], means["ended"]) <= report["started"]

    root = bench.root()
    (stopped,) = json.loads((root / "results/chosen-validation-step-000400.stopped.json").read_text())["stopped"]
    assert (stopped["lr"], stopped["best"]) == (1e-9, 0.01)
    with (root / "results/chosen-step-000400.csv").open() as file:
        assert {(row["lr"], row["run"]) for row in csv.DictReader(file)} == {("0.01", run) for run in "012345"}
    assert (root / "report/accuracy.txt").read_text().startswith("Chosen on held-out classes")

    before = files_of(root)
    add(bench, MEANS | {"runs": 6})
    bench.wait_for_queue()
    added = {path.name for path in files_of(root).keys() - before.keys()}
    assert added == {f"means-step-000400-more-1.{kind}" for kind in ("csv", "parquet")}
    assert {path: path.read_bytes() for path in before} == before
    assert bench.status("report")["started"] > report["ended"]
    assert "means" in (root / "report/accuracy.txt").read_text()


def test_an_experiment_takes_what_another_has_measured(bench: Bench) -> None:
    for group in ("first", "second"):
        assert bench.launch(config=TINY | {"epochs": 2, "eval_steps": [2]}, group=group).returncode == 0
        bench.wait_for_queue()
    results = [bench.root(group) / "results/olft-step-000002.csv" for group in ("first", "second")]
    assert results[0].read_bytes() == results[1].read_bytes()
    taken = json.loads(results[1].with_suffix(".reused.json").read_text())
    assert taken == {"trajectories": {"p/first/results/olft-step-000002.csv": 4}}
