"""Files that other nodes see late: the job scripts of a finished experiment run again while something is missing."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from anml.jobs.job_status import LATENCY_SECONDS
from anml.jobs.process import this_process
from tests.test_pipeline import OLFT, launch, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("late")
    config = write_config(folder, eval=OLFT)
    environment = os.environ | {"ANML_EXPERIMENTS": str(folder / "experiments")}
    repository = Path(__file__).parents[2]

    def run(*arguments: str | Path, **_: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=True)

    launch(run, config)
    return folder / "experiments/p/g"


def run_without(path: Path, root: Path, job: str, seconds: str = "60") -> str:
    """Run the script of a job while a file is missing, which comes back once the job waits. Return its log."""
    away = path.rename(path.with_name(f"{path.name}.away"))
    environment = os.environ | {"ANML_LATENCY_WAIT": seconds}
    command = ["bash", str(root / "jobs" / job / "job.sh")]
    log = ""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for line in run.stdout or ():
            log += line
            if "waiting up to 60 s" in line:
                away.rename(path)
    if away.exists():
        away.rename(path)
    return log


def state(root: Path, job: str) -> str:
    return json.loads((root / "jobs" / job / "status.json").read_text())["state"]


def test_an_evaluation_waits_for_the_checkpoint(root: Path) -> None:
    assert "waiting" in run_without(root / "checkpoints/step-000004", root, "olft-step-000004")
    assert state(root, "olft-step-000004") == "done"


def test_a_segment_waits_for_the_checkpoint_of_the_one_before(root: Path) -> None:
    shutil.rmtree(root / "checkpoints/step-000004")
    assert "steps 2 to 4" in run_without(root / "checkpoints/step-000002", root, "train-step-000004")


@pytest.mark.parametrize("late", ["jobs/olft-step-000002/status.json", "results/olft-step-000004.csv"])
def test_the_report_waits_for_what_jobs_have_left(root: Path, late: str) -> None:
    assert "waiting" in run_without(root / late, root, "report")
    assert state(root, "report") == "done"
    page = (root / "report/index.html").read_text()
    assert "no results" not in page
    assert "failed" not in page


def test_a_report_without_the_results_of_a_job_that_is_done_is_not_done(root: Path) -> None:
    log = run_without(root / "results/olft-step-000004.csv", root, "report", seconds="0")
    assert state(root, "report") == "failed"
    assert "olft-step-000004: done, but no results" in log


def test_a_report_is_written_again_when_a_job_ends_meanwhile(root: Path) -> None:
    """As where Slurm has started a job twice: the copy that has left is the one that the report waited for."""
    file, page = root / "jobs/olft-step-000004/status.json", root / "report/index.html"
    done = json.loads(file.read_text())
    file.write_text(json.dumps(done | asdict(this_process()) | {"state": "running", "updated": time.time()}))
    command = ["bash", str(root / "jobs/report/job.sh")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert any("waiting up to 35 s" in line for line in run.stdout or ())
        first = page.stat().st_mtime_ns
        file.write_text(json.dumps(done | {"ended": time.time()}))
    assert state(root, "report") == "done"
    assert page.stat().st_mtime_ns > first


def test_a_retry_measures_again_what_is_gone(root: Path) -> None:
    file, results = root / "jobs/olft-step-000002/status.json", root / "results/olft-step-000002.csv"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ended": time.time() - 2 * LATENCY_SECONDS}))
    results.unlink()
    command = [sys.executable, "-m", "anml", "retry", str(root)]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True)
    assert results.is_file()
    assert state(root, "report") == "done"
