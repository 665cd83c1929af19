"""A real Slurm for the tests in this folder; without Slurm on the machine they are skipped, and say so."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.bench import Bench

DEV_CLUSTER = Path(__file__).parents[2] / "slurm" / "dev-cluster" / "dev_cluster.py"
OF_SLURM = ("SLURM_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SCANCEL_")


@dataclass(frozen=True)
class DevCluster:
    """A running dev cluster: `env` for subprocesses that talk to it, `state` its folder."""

    state: Path

    @property
    def env(self) -> dict[str, str]:
        """Our environment, without what an outer Slurm left in it, with this cluster's SLURM_CONF."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_SLURM)}
        return {**kept, "SLURM_CONF": str(self.state / "slurm.conf")}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one command of dev_cluster.py."""
        argv = [sys.executable, str(DEV_CLUSTER), *command, "--state", str(self.state)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=120)

    def call(self, *command: str) -> str:
        """Run one command of dev_cluster.py that must succeed; what it prints."""
        done = self.run(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop_controller(self) -> None:
        """Stop slurmctld; its state is kept."""
        self.call("stop-controller")

    def start_controller(self) -> None:
        """Start slurmctld again."""
        self.call("start-controller")

    def stop_node(self, node: str) -> None:
        """Kill a node with all its jobs. Slurm notices when it is started again, or after some 25 s."""
        self.call("stop-node", node)

    def start_node(self, node: str) -> None:
        """Start a node again and wait until it is usable."""
        self.call("start-node", node)


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
    with tempfile.TemporaryDirectory(prefix="anml-slurm-") as folder:  # pytest's own paths may be too long for sockets
        cluster = DevCluster(Path(folder) / "cluster")
        try:
            cluster.call("up")
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
