"""`python -m anml clean` and `ls`: nothing goes that is needed, runs, or is not ours."""

import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from anml.atomic import read_json, write_json, write_text
from anml.jobs.job_status import read_status, write_status
from anml.jobs.submission import one_at_a_time
from tests.report.conftest import SMALL, Builder, start_experiment

MONTH_AGO = time.time() - 30 * 86400
LOCAL = {"name": "x", "scheduler": "local"}


def experiment(root: Path, state: str = "done", with_results: bool = True) -> Builder:
    """Make an experiment whose jobs all ended a month ago, with checkpoints of steps 0, 200 and 600."""
    builder = start_experiment(root, SMALL).jobs()
    builder = builder.results() if with_results else builder
    plan = read_json(builder.experiment.plan_file)
    names = {job["name"]: {"id": "1"} for job in plan["jobs"]}
    write_json(builder.experiment.plan_file, plan | {"cluster": LOCAL, "wandb": "disabled", "submitted": names})
    for job in plan["jobs"]:
        file = builder.experiment.job(job["name"]).status
        write_status(file, replace(read_status(file), state=state, updated=MONTH_AGO))
    for step in (0, 200, 600):
        for name in ("model.json", "model.safetensors", "training.json", "training.safetensors"):
            write_text(builder.experiment.checkpoint(step) / name, f"{step} {name}")
    return builder


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".submitting.lock")


def steps(builder: Builder) -> list[str]:
    return sorted(path.name for path in builder.experiment.checkpoints().iterdir())


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache of images."""
    monkeypatch.setenv("ANML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_rehearsal_shows_what_would_go_and_changes_nothing(command, experiments: Path) -> None:
    experiment(experiments / "p" / "done")
    experiment(experiments / "p" / "bad", "failed", with_results=False)
    before = files(experiments)
    done = command("clean")
    assert (done.code, files(experiments)) == (0, before)
    assert all(words in done.out for words in ("p/done: done: 2 checkpoints", "p/bad: failed", "Nothing was deleted"))


def test_the_last_checkpoint_and_all_results_of_what_is_done_stay(command, experiments: Path) -> None:
    builder = experiment(experiments / "p" / "g")
    others = [file for file in files(experiments) if "checkpoints" not in file.parts]
    assert command("clean", "p/g", "--delete").code == 0
    assert steps(builder) == ["step-000600"]
    assert [file for file in files(experiments) if "checkpoints" not in file.parts] == others


def test_a_failed_experiment_goes_only_without_results(command, experiments: Path) -> None:
    kept = experiment(experiments / "p" / "kept", "failed")
    gone = experiment(experiments / "p" / "gone", "failed", with_results=False)
    assert command("clean", "--delete").code == 0
    assert (kept.experiment.root.exists(), steps(kept)) == (True, ["step-000000", "step-000200", "step-000600"])
    assert [path.name for path in gone.experiment.root.parent.iterdir()] == ["kept"]


def running(builder: Builder) -> Callable[[], object]:
    """Let a job run that has not written its status for a month: it was suspended."""
    words = ["--run-dir", str(builder.experiment.root), "--job", "train-step-000600"]
    job = subprocess.Popen(["bash", "-c", "read", "bash", *words], stdin=subprocess.PIPE)
    file = builder.experiment.job("train-step-000600").status
    write_status(file, replace(read_status(file), state="running", host=socket.gethostname(), pid=job.pid))
    return job.communicate


def elsewhere(builder: Builder) -> None:
    """Let a job run on another machine, of which this one knows nothing."""
    file = builder.experiment.job("train-step-000600").status
    write_status(file, replace(read_status(file), state="running", host="elsewhere", pid=1))


def recent(builder: Builder) -> None:
    file = builder.experiment.job("train-step-000600").status
    write_status(file, replace(read_status(file), updated=time.time()))


def with_notes(builder: Builder) -> None:
    for folder in (builder.experiment.root, *builder.experiment.checkpoints().iterdir()):
        write_text(folder / "notes.txt", "by hand")


def of_another_user(builder: Builder) -> Callable[[], object]:
    """Be somebody else."""
    patch = pytest.MonkeyPatch()
    patch.setattr("anml.cli.experiments.os.getuid", lambda: 12345)
    return patch.undo


def locked(builder: Builder) -> Callable[[], object]:
    """Let a launch submit it just now."""
    launch = ExitStack()
    launch.enter_context(one_at_a_time(builder.experiment))
    return launch.close


@pytest.mark.parametrize("state", ["done", "failed"])
@pytest.mark.parametrize("why", [running, elsewhere, recent, with_notes, of_another_user, locked])
def test_what_runs_or_is_not_ours_stays(command, experiments: Path, state: str, why) -> None:
    end = why(experiment(experiments / "p" / "g", state, with_results=False))
    before = files(experiments)
    code = command("clean", "--delete").code
    gone = set(before) - set(files(experiments))
    if end:
        end()
    assert (code, gone) == (0, set())


def test_a_copy_elsewhere_stays(command, experiments: Path, tmp_path: Path) -> None:
    """A link in the folder of experiments may lead to an archive."""
    experiment(tmp_path / "archive" / "p" / "g")
    (experiments / "p").mkdir(parents=True)
    (experiments / "p" / "g").symlink_to(tmp_path / "archive" / "p" / "g")
    before = files(tmp_path / "archive")
    assert command("clean", "--delete").code == 0
    assert files(tmp_path / "archive") == before


def test_of_the_cache_goes_what_nothing_leads_to(command, experiments: Path, no_cache: Path) -> None:
    ages = {
        "glyphs-train-28px-drawn-v1.npy": 40, "glyphs-train-28px-drawn-v2.npy": 39, "glyphs-eval-28px-drawn-v2.npy": 50,
        "inet-train-84px-aaaa-v2.npy": 40, "inet-train-84px-bbbb-v2.npy": 39, "inet-train-84px-cccc-v2.npy": 1,
        ".inet-train-84px-aaaa-v2.npy.k3": 40, "mine.npy": 400,
    }  # fmt: skip
    for name, days in ages.items():
        write_text(no_cache / name, name)
        then = time.time() - 86400 * days
        os.utime(no_cache / name, (then, then))
    write_json(no_cache / "inet-train-of-1-v2.json", {"contents": "aaaa"})
    assert command("clean", "--delete").code == 0
    gone = {"glyphs-train-28px-drawn-v1.npy", "inet-train-84px-bbbb-v2.npy", ".inet-train-84px-aaaa-v2.npy.k3"}
    assert {file.name for file in files(no_cache)} == set(ages) - gone | {"inet-train-of-1-v2.json"}


def test_experiments_are_listed_with_what_became_of_them(command, experiments: Path) -> None:
    experiment(experiments / "p" / "one")
    experiment(experiments / "q" / "two", "failed")
    done = command("ls")
    states = [(line.split()[0], line.split()[-1]) for line in done.out.splitlines()[1:]]
    assert states == [("p/one", "done"), ("q/two", "succeed")]
    assert "q/two" not in command("ls", "p").out
    assert command("ls", "nothing").code == 2


def test_a_report_that_its_jobs_have_outrun_is_told_in_the_list(command, experiments: Path) -> None:
    page = experiment(experiments / "p" / "one").experiment.report / "index.html"
    write_text(page, "")
    assert command("ls").out.split()[-1] == "done"
    os.utime(page, (MONTH_AGO, MONTH_AGO - 60))
    assert command("ls").out.split()[-5:] == ["done;", "its", "report", "is", "older"]
