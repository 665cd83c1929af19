"""A real Slurm for the tests in this folder; without Slurm on the machine they are skipped, and say so."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.slurm.bench import Bench, train_undisturbed
from tests.slurm.cluster import ACCOUNTING, DevCluster
from tests.slurm.light import Cluster


@pytest.fixture(scope="session")
def dev_cluster() -> Iterator[DevCluster]:
    """The cluster that SLURM_CONF points to if it is a running dev cluster, else one for this session alone."""
    found = DevCluster(Path(os.environ.get("SLURM_CONF", "/nowhere/slurm.conf")).parent)
    if found.run("status").returncode == 0:
        yield found
        return
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    if absent := [name for name in ("sbatch", "munged") if not shutil.which(name, path=path)]:
        pytest.skip(
            f"{' and '.join(absent)} not found (Debian packages slurm-wlm, munge): nothing was submitted to a real "
            "Slurm, so dependencies, arrays, signals, requeueing and failures there are untested"
        )
    with private_cluster(*ACCOUNTING) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def accounting_cluster() -> Iterator[DevCluster]:
    """A cluster with slurmdbd and MariaDB, for this session alone."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    if absent := [name for name in ("sbatch", "munged", "slurmdbd", "mariadbd") if not shutil.which(name, path=path)]:
        pytest.skip(f"{', '.join(absent)} not found (packages slurmdbd, mariadb-server): accounting is untested")
    with private_cluster("--accounting") as cluster:
        yield cluster


@contextmanager
def private_cluster(*options: str) -> Iterator[DevCluster]:
    """Bring a cluster up and take it down again."""
    with tempfile.TemporaryDirectory(prefix="anml-slurm-") as folder:  # pytest's own paths may be too long for sockets
        Path(folder).chmod(0o755)  # Jobs of other users run from the spool below it.
        cluster = DevCluster(Path(folder) / "cluster")
        try:
            cluster.call("up", *options)
            yield cluster
        finally:
            cluster.call("down")


@pytest.fixture
def bench(dev_cluster: DevCluster, tmp_path: Path) -> Iterator[Bench]:
    """A bench whose jobs are gone when the test ends."""
    bench = Bench(dev_cluster.env, tmp_path)
    yield bench
    live = bench.slurm("squeue", "--noheader", "--format=%A").split()
    if live:
        bench.slurm("scancel", *live)
        bench.wait_for_queue()


@pytest.fixture(scope="session")
def undisturbed(dev_cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The checksums that a long training has after 200 and 400 steps where nothing happens to it."""
    return train_undisturbed(Bench(dev_cluster.env, tmp_path_factory.mktemp("undisturbed")), [200, 400])


@pytest.fixture
def cluster(dev_cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("SLURM_CONF", dev_cluster.env["SLURM_CONF"])
    cluster = Cluster(dev_cluster.env, tmp_path, monkeypatch)
    yield cluster
    if ids := cluster.ids():
        subprocess.run(["scancel", *ids], env=cluster.env, check=False)
