"""A bench on which tests launch experiments on the dev cluster and watch what becomes of them."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 400.0

TINY = {
    "dataset": "glyphs",
    "train_classes": 20,
    "num_batches": 3,
    "remember_size": 8,
    "epochs": 4,
    "eval_steps": [2, 4],
    "save_freq": 2,
    "model": "sanml",
    "model_args": {"rln_chs": 4, "num_classes": 20},
    "eval": {"olft": {"classes": 3, "train_examples": 3, "test_examples": 2, "runs": 2, "lr": [0.001, 0.01]}},
}


class Bench:
    """Launches experiments on the dev cluster and watches them."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.folder = folder
        self.env = env | {"ANML_EXPERIMENTS": str(folder / "experiments")}

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command line of the project."""
        return subprocess.run(
            [sys.executable, *arguments], cwd=REPOSITORY, env=self.env | environment,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def slurm(self, *command: str) -> str:
        """Run a Slurm command that must succeed."""
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=True).stdout

    def profile(self, name: str = "profile", **changes: object) -> str:
        """Write a profile like the dev cluster's own, with changes; returns its path."""
        base = yaml.safe_load((REPOSITORY / "slurm/dev-cluster/dggpu.yml").read_text())
        path = self.folder / f"{name}.yml"
        path.write_text(yaml.safe_dump(base | changes))
        return str(path)

    def launch(
        self, *options: str, config: dict | None = None, group: str = "g", project: str = "p", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run launch_train.py with a small config."""
        path = self.folder / "config.yml"
        path.write_text(yaml.safe_dump(config or TINY))
        if "--cluster" not in options:
            options = (*options, "--cluster", "slurm/dev-cluster/dggpu.yml")
        return self.python(
            "launch_train.py", "-c", str(path), "--project", project, "--group", group, "--wandb", "disabled", *options,
            **environment,
        )  # fmt: skip

    def root(self, group: str = "g", project: str = "p") -> Path:
        """Return an experiment's folder."""
        return self.folder / "experiments" / project / group

    def status(self, job: str, group: str = "g") -> dict:
        """Return what a job says of itself."""
        path = self.root(group) / "jobs" / job / "status.json"
        return json.loads(path.read_text()) if path.exists() else {"state": "pending", "done": 0}

    def id_of(self, job: str, group: str = "g") -> str:
        """Return a job's Slurm id."""
        return json.loads((self.root(group) / "plan.json").read_text())["submitted"][job]["id"]

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"never happened: {what}\n{self.slurm('squeue', '--states=all')}"
            time.sleep(0.3)

    def wait_for_queue(self) -> None:
        """Wait until no job waits or runs."""
        self.wait(lambda: not self.slurm("squeue", "--noheader").strip(), "an empty queue")

    def wait_for_training(self, job: str, steps: int = 1) -> None:
        """Wait until a training is under way."""
        self.wait(
            lambda: self.status(job)["state"] == "running" and self.status(job)["done"] >= steps, f"{job} running"
        )


def long_training(steps: int) -> dict:
    """A config whose training takes long enough to be disturbed, with the engine that is as slow on every machine."""
    sizes = {"num_batches": 10, "remember_size": 64, "engine": "fast"}
    return TINY | sizes | {"epochs": steps, "eval_steps": [steps], "save_freq": 20, "log_freq": 5, "eval": {}}


def model_hash(root: Path, step: int) -> str:
    """Return the checksum of a checkpoint's model and training state."""
    folder = root / "checkpoints" / f"step-{step:06d}"
    files = [(folder / name).read_bytes() for name in ("model.safetensors", "training.safetensors")]
    return hashlib.sha256(b"".join(files)).hexdigest()


def train_undisturbed(bench: Bench, steps: list[int]) -> dict[int, str]:
    """Run the long training in one go, with as many threads as a job; return its checksum after so many steps."""
    config, folder = bench.folder / "config.yml", bench.folder / "undisturbed"
    config.write_text(yaml.safe_dump(long_training(max(steps)) | {"eval_steps": steps}))
    done = bench.python("train_anml.py", "-c", str(config), "--run-dir", str(folder), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return {step: model_hash(folder, step) for step in steps}
