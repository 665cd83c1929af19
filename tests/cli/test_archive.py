"""`python -m anml archive`: one file that others can check."""

import subprocess
import tarfile
from pathlib import Path

import pytest

from anml.atomic import write_text
from tests.report.conftest import SMALL, Builder, start_experiment


@pytest.fixture
def builder(experiments: Path) -> Builder:
    """Return a finished experiment with two checkpoints, and with what no appendix needs."""
    builder = start_experiment(experiments / "p" / "g", SMALL).results().metrics(5).jobs()
    for step in (200, 600):
        for name in ("model.json", "model.safetensors", "training.safetensors"):
            write_text(builder.experiment.checkpoint(step) / name, f"{step} {name}")
    reports = ("report/index.html", "report/results.parquet")
    for name in ("code/anml/__pycache__/x.pyc", "code/anml/x.py", "wandb/secret", *reports):
        write_text(builder.experiment.root / name, name)
    return builder


def test_an_archive_holds_what_an_appendix_needs_and_checks_itself(command, builder, tmp_path: Path) -> None:
    done = command("archive", "p/g", tmp_path / "a.tar.gz")
    assert (done.code, done.err) == (0, "")
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        names = {name.removeprefix("g/") for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    assert names >= {
        "config.yml", "environment.json", "plan.json", "code/anml/x.py", "report/index.html", "metrics/train.jsonl",
        "results/olft-step-000600.csv", "jobs/train-step-000600/status.json", "checkpoints/step-000600/model.json",
        "checkpoints/step-000600/model.safetensors", "README.txt", "SHA256SUMS",
        "report/results.parquet",
    }  # fmt: skip
    unwanted = ("checkpoints/step-000200", "training.", "pycache", "wandb")
    assert not [name for name in names if any(part in name for part in unwanted)]
    check = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "g", capture_output=True, text=True)
    assert (check.returncode, check.stdout.count(": OK\n")) == (0, len(names) - 1)


def test_a_changed_file_of_an_archive_is_told(command, builder, tmp_path: Path) -> None:
    command("archive", "p/g", tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    with (tmp_path / "g" / "results" / "olft-step-000600.csv").open("a") as results:
        results.write("0.99\n")
    check = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "g", capture_output=True)
    assert check.returncode == 1


def test_all_models_are_those_of_the_evaluated_checkpoints(command, builder, tmp_path: Path) -> None:
    command("archive", "p/g", tmp_path / "a.tar", "--all-models")
    with tarfile.open(tmp_path / "a.tar") as archive:
        models = [name for name in archive.getnames() if name.endswith(".safetensors")]
    assert models == [f"g/checkpoints/step-000{step}/model.safetensors" for step in (200, 600)]


def test_what_is_not_complete_is_archived_with_a_notice(command, builder, tmp_path: Path) -> None:
    builder.jobs(olft_step_000600="running")
    done = command("archive", "p/g", tmp_path / "a.tar")
    assert (done.code, "not complete: " in done.err) == (0, True)


def test_a_name_that_is_none_of_an_archive_is_refused(command, builder, tmp_path: Path) -> None:
    done = command("archive", "p/g", tmp_path / "a.zip")
    assert (done.code, ".tar.gz" in done.err, (tmp_path / "a.zip").exists()) == (2, True, False)
