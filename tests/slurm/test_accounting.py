"""The same on a cluster that keeps books: sacct knows what became of every job."""

import os
import pwd
import threading
from pathlib import Path

import pytest

from anml.jobs.plan import Job
from tests.slurm.bench import TINY, Bench
from tests.slurm.light import REPORT, TRAIN, Cluster

pytestmark = pytest.mark.slurm


def test_an_experiment_ends_well_and_the_accounts_say_so(accounting_cluster, tmp_path: Path) -> None:
    bench = Bench(accounting_cluster.env, tmp_path)
    launched = bench.launch(config=TINY | {"epochs": 2, "eval_steps": [2]})
    assert launched.returncode == 0, launched.stderr
    bench.wait_for_queue()
    assert bench.status("report")["state"] == "done"
    rows = bench.slurm("sacct", "--allocations", "--noheader", "--parsable2", "--format=State").split()
    assert rows == ["COMPLETED"] * 3
    assert bench.python("-m", "anml", "status", "p/g").returncode == 0


@pytest.fixture
def cluster(accounting_cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("SLURM_CONF", accounting_cluster.env["SLURM_CONF"])
    return Cluster(accounting_cluster.env, tmp_path, monkeypatch)


def test_accounting_tells_the_end_of_a_job_that_the_controller_has_forgotten(cluster: Cluster) -> None:
    cluster.launch(Job("train", "train", ("-c", "import os; os._exit(3)")))
    cluster.wait(lambda: not cluster.scheduler.live_ids())
    cluster.wrap("squeue", "exit 0")
    cluster.wrap("scontrol", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    cluster.wait(lambda: "train" in cluster.scheduler.states())  # slurmctld tells it to the database a little later.
    end = cluster.scheduler.states()["train"][None]
    assert end.phase == "failed"
    assert "exit code 3:0" in end.words


def test_a_launch_waits_with_words_while_an_account_has_as_many_jobs_as_it_may(cluster: Cluster, capfd) -> None:
    def limit(jobs: int) -> None:
        user = pwd.getpwuid(os.getuid()).pw_name
        cluster.slurm("sacctmgr", "--immediate", "modify", "user", user, "set", f"MaxSubmitJobs={jobs}")

    def lift() -> None:
        cluster.wait(refused.exists)
        limit(-1)

    refused = cluster.folder / "refused"
    cluster.wrap("sbatch", f'$REAL "$@" || {{ touch "{refused}"; exit 1; }}')
    limit(1)
    threading.Thread(target=lift).start()
    assert len(cluster.launch(TRAIN, REPORT)) == 2
    assert "violates accounting/QOS policy" in capfd.readouterr().err
    cluster.let_go()
    cluster.wait_for("report", "done")
