"""A running development cluster, as tests use it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DEV_CLUSTER = Path(__file__).parents[2] / "slurm" / "dev-cluster" / "dev_cluster.py"
# ANML_TEST_ACCOUNTING=1 runs all tests of this folder on clusters that keep books.
ACCOUNTING = ["--accounting"] * (os.environ.get("ANML_TEST_ACCOUNTING") == "1")
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

    def start_node(self, node: str, *options: str) -> None:
        """Start a node again and wait until it is usable."""
        self.call("start-node", node, *options)
