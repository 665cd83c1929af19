"""Trainings, and the evaluations of each, as two arrays of a real Slurm: few calls of sbatch, the same jobs."""

import json
from pathlib import Path

import pytest

from anml.jobs.launch import read_plan_file
from anml.jobs.plan import Job
from tests.slurm.light import REPORT, WORK, Cluster

pytestmark = pytest.mark.slurm

# Each job is let go by itself, or fails.
WORK_APART = WORK.replace('not Path(root, "go").exists()', 'not any(Path(root).glob(f"[gb][oa]* {name}"))').replace(
    "    return", '    assert not Path(root, f"bad {name}").exists()\n    return'
)
TRAININGS = [Job(f"train-seed-{seed}", "train", ("-c", WORK_APART, "--seed", str(seed))) for seed in range(8)]
SWEEPS = [
    Job(f"olft-seed-{seed}", "evaluate", ("-c", WORK_APART, "--train-seed", str(seed)), (f"train-seed-{seed}",))
    for seed in range(8)
]
JOBS = [job for pair in zip(TRAININGS, SWEEPS, strict=True) for job in pair]
REPORT_OF_ALL = Job("report", "report", REPORT.argv, tuple(job.name for job in JOBS), after_any=True)
NAMES = [job.name for job in JOBS]


def let_go(cluster: Cluster, *names: str, to: str = "go") -> None:
    for name in names:
        (cluster.experiment.root / f"{to} {name}").touch()


def test_alike_jobs_are_arrays_whose_tasks_wait_end_and_are_retried_one_by_one(cluster: Cluster) -> None:
    calls = cluster.folder / "calls"
    cluster.wrap("sbatch", f'echo x >> "{calls}"', 'exec $REAL "$@"')
    ids = cluster.launch(*JOBS, REPORT_OF_ALL)
    assert (len(calls.read_text().split()), list(ids)) == (3, [*NAMES[::2], *NAMES[1::2], "report"])
    cluster.wait_for("train-seed-2", "running")
    let_go(cluster, "train-seed-2")
    let_go(cluster, "train-seed-5", to="bad")
    cluster.wait_for("olft-seed-2", "running")
    cluster.wait(lambda: cluster.states()["olft-seed-5"] == "skipped")
    states = cluster.states()
    assert (states["train-seed-2"], states["train-seed-5"], states["olft-seed-3"]) == ("done", "failed", "pending")
    assert "AssertionError" in cluster.experiment.job("train-seed-5").log.read_text()

    # A launch that was killed before it could write down what it had submitted.
    plan = read_plan_file(cluster.experiment)
    cluster.experiment.plan_file.write_text(json.dumps(plan | {"submitted": {}}))
    (cluster.experiment.root / "bad train-seed-5").unlink()
    again = cluster.launch(*JOBS, REPORT_OF_ALL)
    assert list(again) == ["train-seed-5", "olft-seed-5", "report"]
    assert len(calls.read_text().split()) == 6

    cluster.scheduler.cancel([ids["train-seed-3"]])
    cluster.wait_for("train-seed-3", "interrupted")
    let_go(cluster, *NAMES)
    (cluster.experiment.root / "go").touch()
    cluster.wait(lambda: cluster.status("report").get("state") == "done")
    undone = {name for name, state in cluster.states().items() if state != "done"}
    assert undone == {"train-seed-3", "olft-seed-3"}
    assert {path.name for path in Path(cluster.experiment.jobs).iterdir() if path.name not in NAMES} == {
        "report", "train-array-1", "evaluate-array-1",
    }  # fmt: skip
