"""Scripts for Slurm, and what works without the package that writes them."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from anml.config.profile import ClusterProfile, JobOptions
from anml.errors import SubmissionError
from anml.experiment import Experiment
from anml.jobs.plan import Job
from anml.jobs.schedulers import SchedulerState, controller
from anml.jobs.schedulers.controller import ControllerAwayError, jobs_by_id, patiently
from anml.jobs.schedulers.slurm import SlurmScheduler
from anml.jobs.schedulers.slurm_options import listed_options

IMPORT_ALL = """
import importlib, pkgutil, anml
for module in pkgutil.walk_packages(anml.__path__, "anml."):
    importlib.import_module(module.name)
"""


@pytest.mark.parametrize(
    ("value", "written"),
    [("64G", "=64G"), (-5, "='-5'"), ("-x y", "='-x y'"), ("a b", "='a b'"), (True, "")],
    ids=str,
)
def test_an_option_is_written_as_sbatch_reads_it(tmp_path: Path, value: str | int | bool, written: str) -> None:
    profile = ClusterProfile(name="c", scheduler="slurm", sbatch=JobOptions(all={"comment": value}))
    script = SlurmScheduler(Experiment(tmp_path / "p/g"), profile, "offline").render(Job("j", "train", ("x.py",)))
    [line] = [line for line in script.splitlines() if line.startswith("#SBATCH --comment")]
    assert line.rstrip() == f"#SBATCH --comment{written}"


def test_an_option_that_is_false_is_not_written(tmp_path: Path) -> None:
    profile = ClusterProfile(name="c", scheduler="slurm", sbatch=JobOptions(all={"exclusive": False}))
    script = SlurmScheduler(Experiment(tmp_path / "p/g"), profile, "offline").render(Job("j", "train", ("x.py",)))
    assert "exclusive" not in script


def test_a_script_tells_the_job_how_long_files_may_be_late(tmp_path: Path) -> None:
    profile = ClusterProfile(name="c", scheduler="slurm", latency_wait=7)
    script = SlurmScheduler(Experiment(tmp_path / "p/g"), profile, "offline").render(Job("j", "train", ("x.py",)))
    assert "export ANML_LATENCY_WAIT=7" in script.splitlines()


def test_the_options_of_sbatch_are_known_by_their_long_names() -> None:
    names = listed_options()
    assert names >= {"mem", "time", "gres", "cpus-per-task", "kill-on-invalid-dep", "job-name"}
    assert not {"shell", "a", "J"} & names


def test_a_user_may_have_a_format_for_squeue(run: Callable, experiments: Path) -> None:
    arguments = ["-c", "configs/quickstart.yml", "--project", "p", "--cluster", "dggpu", "--dry-run"]
    done = run("launch_train.py", *arguments, SQUEUE_FORMAT="%.18i %.9P %.8T")
    assert (done.returncode, done.stderr) == (0, "")


def test_every_module_is_imported_without_simple_slurm(run: Callable, without: Callable) -> None:
    done = run("-c", IMPORT_ALL, PYTHONPATH=without("simple_slurm"))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_local_launch_needs_no_simple_slurm(run: Callable, without: Callable, experiments: Path) -> None:
    arguments = ["-c", "configs/quickstart.yml", "--project", "p", "--cluster", "local", "--dry-run"]
    done = run("launch_train.py", *arguments, PYTHONPATH=without("simple_slurm"))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_slurm_cluster_without_simple_slurm_is_an_error_that_names_it(
    run: Callable, without: Callable, experiments: Path
) -> None:
    arguments = ["-c", "configs/quickstart.yml", "--project", "p", "--cluster", "dggpu"]
    for dry in ([], ["--dry-run"]):
        done = run("launch_train.py", *arguments, *dry, PYTHONPATH=without("simple_slurm"))
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert all(text in done.stderr for text in ("simple-slurm", "docs/install.md", "--cluster local"))
    assert not experiments.exists()


def test_a_misspelt_option_is_explained_without_simple_slurm(run: Callable, without: Callable) -> None:
    arguments = ["-c", "configs/quickstart.yml", "--project", "p", "--cluster", "local", "--smoketest"]
    done = run("launch_train.py", *arguments, "--dry-run", PYTHONPATH=without("simple_slurm"))
    assert done.returncode == 2
    assert all(text in done.stderr for text in ("--smoketest", "--smoke-test?", "simple-slurm"))


@pytest.mark.parametrize(
    ("setup", "code", "said"),
    [
        (["true", "[ -e nothing ] || true  # a comment"], 0, "ran"),
        (["nothing-of-this-name --quiet", "touch too-far"], 127, "line 1 of profile c failed: nothing-of-this"),
        (["A=1", "if true; then\n  (exit 3)\nfi"], 3, "line 2 of profile c failed: if true"),
    ],
)  # fmt: skip
def test_a_script_ends_at_the_first_setup_line_that_fails(
    tmp_path: Path, setup: list[str], code: int, said: str
) -> None:
    experiment = Experiment(tmp_path / "p/g")
    experiment.code.mkdir(parents=True)
    profile = ClusterProfile(name="c", scheduler="slurm", setup=tuple(setup), python="echo")
    script = SlurmScheduler(experiment, profile, "offline").render(Job("j", "train", ("ran",)))
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True)
    assert not (tmp_path / "too-far").exists()


@pytest.mark.parametrize(
    ("line", "phase", "words"),
    [
        ("PENDING|Resources", "waiting", "Resources"),
        ("PENDING|DependencyNeverSatisfied", "waiting in vain", "DependencyNeverSatisfied"),
        ("CANCELLED|DependencyNeverSatisfied", "skipped", "DependencyNeverSatisfied"),
        ("CANCELLED|None", "cancelled", "CANCELLED (None)"),
        ("RUNNING|None", "running", ""),
        ("COMPLETING|None", "ending", "completing"),
        ("CONFIGURING|None", "running", "configuring"),
        ("STOPPED|None", "running", "stopped"),
        ("SIGNALING|None", "running", "signaling"),
        ("RESIZING|None", "running", "resizing"),
        ("STAGE_OUT|None", "running", "stage_out"),
        ("POWER_UP_NODE|None", "running", "power_up_node"),
        ("A_STATE_OF_THE_FUTURE|None", "running", "a_state_of_the_future"),
        ("RECONFIG_FAIL|None", "running", "reconfig_fail"),
        ("REQUEUED|None", "waiting", "REQUEUED (None)"),
        ("SPECIAL_EXIT|None", "waiting", "SPECIAL_EXIT (None): held, `scontrol release 7` lets it go"),
        ("RESV_DEL_HOLD|None", "waiting", "RESV_DEL_HOLD (None): held, `scontrol release 7` lets it go"),
        ("PENDING|JobHeldUser", "waiting", "PENDING (JobHeldUser): held, `scontrol release 7` lets it go"),
        (
            "PENDING|launch failed requeued held", "waiting",
            "PENDING (launch failed requeued held): held, `scontrol release 7` lets it go",
        ),
        ("DEADLINE|None", "failed", "DEADLINE (None)"),
        ("REVOKED|None", "failed", "REVOKED (None)"),
        ("COMPLETED|None", "completed", "COMPLETED (None)"),
        ("TIMEOUT|TimeLimit", "failed", "TIMEOUT (TimeLimit)"),
        ("OUT_OF_MEMORY|None", "failed", "OUT_OF_MEMORY (None)"),
    ],
)  # fmt: skip
def test_a_line_of_squeue_is_read(tmp_path: Path, monkeypatch, line: str, phase: str, words: str) -> None:
    scheduler = SlurmScheduler(Experiment(tmp_path / "p/g"), ClusterProfile(name="c", scheduler="slurm"), "offline")
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(f"#!/bin/sh\necho '7|3|me|{line}|a.{scheduler.mark}'\necho '8|N/A|me|{line}|a.stranger'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    assert scheduler.states() == {"a": {3: SchedulerState("7", phase, words, "me")}}  # type: ignore[arg-type]


# What sacct of Slurm 22.05 prints, and of a site that counts memory.
ACCOUNTS = """1|me|OUT_OF_MEMORY|0:125|00:00:07||a.12345678
1.batch||OUT_OF_MEMORY|0:125|00:00:07|2097152K|batch
2_0|me|COMPLETED|0:0|00:00:01||b.12345678
2_0.batch||COMPLETED|0:0|00:00:01||batch
2_1|me|TIMEOUT|0:0|00:20:00||b.12345678
3_[0-2]|me|CANCELLED by 0|0:0|00:00:00||c.12345678
4|me|RUNNING|0:0|99-00:00:00||d.12345678
"""


def test_accounting_tells_how_a_job_ended_that_the_controller_does_not_know_any_more(tmp_path: Path, monkeypatch):
    forgotten = "while read -r words; do echo 'slurm_load_jobs error: Invalid job id specified' >&2; done; exit 1"
    for command, lines in {"scontrol": forgotten, "sacct": f"cat <<END\n{ACCOUNTS}END"}.items():
        (tmp_path / command).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    jobs = jobs_by_id(["1", "2", "3", "4", "5"])
    assert [(job.id, job.task, job.answer.phase) for job in jobs] == [
        ("1", None, "failed"), ("2", 0, "completed"), ("2", 1, "failed"),
        ("3", 0, "cancelled"), ("3", 1, "cancelled"), ("3", 2, "cancelled"),
    ]  # fmt: skip
    assert jobs[0].answer.words == "OUT_OF_MEMORY (exit code 0:125, ran 00:00:07, 2097152K of memory)"

    # The controller forgets a task of an array while others of it go on.
    shown = "JobId=8 ArrayJobId=2 ArrayTaskId=4 JobName=b.1 UserId=me(0) JobState=RUNNING Reason=None"
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\ncat > /dev/null; echo '{shown}'\n")
    phases = {(job.id, job.task): job.answer.phase for job in jobs_by_id(["2_1", "2_4"])}
    assert (phases["2", 4], phases["2", 1]) == ("running", "failed")


def test_a_controller_that_stays_away_is_told_again_and_again_and_given_up_with_its_words(monkeypatch, capsys) -> None:
    monkeypatch.setattr(controller, "SAY_SECONDS", 0.1)
    monkeypatch.setattr(controller, "PATIENCE_SECONDS", 0.5)
    words = "job queue full"

    def refuse() -> None:
        raise ControllerAwayError(words, in_doubt=False)

    with pytest.raises(SubmissionError, match=words):
        patiently(refuse)
    assert capsys.readouterr().err.count(f"waiting for Slurm's controller: {words}") >= 2
