"""An experiment that commit 8200021 launched and ran, frozen code included: today's commands still work on it.

Its archive holds what that commit wrote for ten episodes of a tiny ANML on glyphs, two flavors and one checkpoint, less
its report. The words EXPERIMENT and PYTHON stand for the paths that scripts name.
"""

import csv
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

ARCHIVE = Path(__file__).parent / "data" / "experiment-8200021.tar.xz"
Run = Callable[..., subprocess.CompletedProcess[str]]


def unpack(folder: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for script in folder.glob("jobs/*/job.sh"):
        script.write_text(script.read_text().replace("EXPERIMENT", str(folder)).replace("PYTHON", sys.executable))
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def scored(path: Path) -> list[dict[str, str]]:
    """Return what was scored, without how well: another processor may round another way."""
    return [{name: value for name, value in row.items() if "_acc" not in name and "_top5" not in name}
            for row in rows_of(path)]  # fmt: skip


@pytest.fixture
def old(experiments: Path) -> Path:
    """The experiment `frozen/small`, in the folder that commands look into."""
    return unpack(experiments / "frozen" / "small")


def test_status_says_that_every_job_is_done(run: Run, old: Path) -> None:
    done = run("-m", "anml", "status", "frozen/small", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    jobs = [path.name for path in (old / "jobs").iterdir()]
    assert len(jobs) == 4
    lines = [line for line in done.stdout.splitlines() if any(job in line for job in jobs)]
    assert [line for line in lines if "done" not in line] == []
    assert len(lines) == len(jobs)


def test_retry_makes_a_lost_result_again_with_the_frozen_code(run: Run, old: Path) -> None:
    result = old / "results" / "olft-step-000010.csv"
    before = scored(result)
    result.unlink()
    (old / "jobs/olft-step-000010/status.json").unlink()
    job = old / "code" / "eval_anml.py"
    job.write_text("print('frozen code evaluates', flush=True)\n" + job.read_text())
    done = run("-m", "anml", "retry", "frozen/small")
    assert done.returncode == 0, done.stderr
    assert "frozen code evaluates" in (old / "jobs/olft-step-000010/log.txt").read_text()
    assert scored(result) == before
    assert (old / "report" / "index.html").exists()  # The report follows what was made again.


def test_report_holds_the_accuracies_of_the_results(run: Run, old: Path) -> None:
    done = run("-m", "anml", "report", "frozen/small")
    assert done.returncode == 0, done.stderr
    summary = {row["flavor"]: float(row["test_acc"]) for row in rows_of(old / "report" / "summary.csv")}
    assert summary == {"no-sgd": pytest.approx(0.35), "olft": pytest.approx(0.28)}


def test_compare_shows_two_of_them_side_by_side(run: Run, experiments: Path, old: Path, tmp_path: Path) -> None:
    unpack(experiments / "frozen" / "copy")
    done = run("-m", "anml", "compare", "frozen/small", "frozen/copy", "--output", tmp_path / "comparison")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "comparison" / "comparison.html").read_text()
    assert [name for name in ("small", "copy", "olft", "no-sgd") if name not in page] == []


def test_export_writes_the_weights_unchanged(run: Run, old: Path, tmp_path: Path) -> None:
    done = run("-m", "anml", "export", "frozen/small", tmp_path / "shared")
    assert done.returncode == 0, done.stderr
    weights = old / "checkpoints" / "step-000010" / "model.safetensors"
    assert (tmp_path / "shared" / "model.safetensors").read_bytes() == weights.read_bytes()
    assert json.loads((tmp_path / "shared" / "model.json").read_text())["step"] == 10


def test_launch_into_its_group_completes_it(run: Run, old: Path) -> None:
    result = old / "results" / "no-sgd-step-000010.csv"
    before = scored(result)
    result.unlink()
    (old / "jobs/no-sgd-step-000010/status.json").unlink()
    launch = ("launch_train.py", "-c", old / "config.yml", "--project", "frozen", "--group", "small")
    done = run(*launch, "--cluster", "local", "--wandb", "disabled", ANML_DATA="")
    assert done.returncode == 0, done.stderr
    assert scored(result) == before


def test_launch_into_its_group_with_another_config_is_refused(run: Run, old: Path) -> None:
    launch = ("launch_train.py", "-c", old / "config.yml", "--project", "frozen", "--group", "small")
    done = run(*launch, "--cluster", "local", "--set", "inner_lr=0.05", ANML_DATA="")
    assert done.returncode == 2
    assert "inner_lr" in done.stderr
