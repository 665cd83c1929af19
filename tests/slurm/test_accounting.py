"""The same on a cluster that keeps books: sacct knows what became of every job."""

from pathlib import Path

import pytest

from tests.slurm.bench import TINY, Bench

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
