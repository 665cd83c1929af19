"""A report that does not tell of all jobs is not done."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.slurm.bench import REPOSITORY
from tests.slurm.light import REPORT, TRAIN, Cluster

pytestmark = pytest.mark.slurm
REPORT_OF_TRAIN = replace(REPORT, after=("train",))


def test_a_report_is_not_done_while_a_retry_that_was_killed_has_not_submitted_it(cluster: Cluster) -> None:
    """Of jobs that have run since, the report that is there says nothing."""
    cluster.launch(TRAIN, REPORT_OF_TRAIN)
    cluster.let_go()
    cluster.wait_for("report", "done")
    cluster.wait(lambda: not cluster.scheduler.live_ids())
    cluster.experiment.job("train").status.write_text(json.dumps(cluster.status("train") | {"state": "failed"}))
    cluster.monkeypatch.setenv("ANML_EXPERIMENTS", str(cluster.folder / "experiments"))
    cluster.wrap("sbatch", '[[ "$*" != *report* ]] || kill -KILL $PPID', 'exec $REAL "$@"')
    retry = [sys.executable, "-m", "anml", "retry", "p/g"]
    assert subprocess.run(retry, cwd=REPOSITORY, check=False).returncode == -signal.SIGKILL
    cluster.wait_for("train", "done")
    assert cluster.states() == {"train": "done", "report": "cancelled"}


def test_a_report_that_starts_amid_a_retry_is_written_again_after_it(cluster: Cluster) -> None:
    """squeue still calls the report waiting when the launch first looks."""
    cluster.launch(TRAIN, REPORT_OF_TRAIN)
    cluster.wait_for("train", "running")
    cluster.slurm("scancel", "--batch", "--signal=KILL", cluster.scheduler.states()["train"][None].id)
    cluster.wait_for("report", "running")
    looked = cluster.folder / "looked"
    late = "sed 's/RUNNING|None|report/PENDING|None|report/'"
    cluster.wrap("squeue", f'[ -e "{looked}" ] && exec $REAL "$@"; touch "{looked}"; $REAL "$@" | {late}')
    assert set(cluster.launch(TRAIN, REPORT_OF_TRAIN)) == {"train", "report"}
    cluster.let_go()
    cluster.wait(lambda: set(cluster.states().values()) == {"done"})
    assert cluster.status("report")["started"] >= cluster.status("train")["ended"]
