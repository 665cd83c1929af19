"""Measures how launching and status scale: a sweep of 1,000 trajectories as an array on a Slurm cluster.

On the development cluster:

    eval "$(python slurm/dev-cluster/dev_cluster.py env)"
    python benchmarks/launch_scale.py --cluster slurm/dev-cluster/dggpu.yml

The script submits the jobs on hold and cancels them at the end, so that none runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--points", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), options.cluster, options.points), indent=2))


def measure(folder: Path, cluster: str, points: int) -> dict[str, float]:
    """Return seconds and calls of launching a sweep, and seconds of its status: by the clock and of processors."""
    calls = folder / "calls"
    environment = os.environ | {"ANML_EXPERIMENTS": str(folder / "experiments"), "PATH": counting_path(folder, calls)}
    profile = yaml.safe_load((REPOSITORY / cluster).read_text()) | {"points_per_job": 1}
    (folder / "profile.yml").write_text(yaml.safe_dump(profile))
    (folder / "config.yml").write_text(yaml.safe_dump(config(points)))
    launch = ["launch_train.py", "-c", str(folder / "config.yml"), "--project", "p", "--group", "g", "--hold"]
    try:
        launched = timed([*launch, "--cluster", str(folder / "profile.yml"), "--wandb", "disabled"], environment)
        status = timed(["-m", "anml", "status", "p/g"], environment)
    finally:
        timed(["-m", "anml", "cancel", "p/g"], environment)
    sbatch_calls = len(calls.read_text().splitlines())
    names = ("launch_s", "launch_cpu_s", "status_s", "status_cpu_s")
    return {"points": points, "sbatch_calls": sbatch_calls} | dict(zip(names, (*launched, *status), strict=True))


def config(points: int) -> dict:
    evaluation = {"classes": 5, "runs": points // 10, "lr": [10.0 ** -(k / 3) for k in range(3, 13)]}
    return {
        "dataset": "glyphs",
        "model": "sanml",
        "model_args": {"rln_chs": 4},
        "epochs": 10,
        "eval": {"olft": evaluation},
    }


def counting_path(folder: Path, calls: Path) -> str:
    """Return a PATH whose sbatch counts its calls and passes them on."""
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    wrapper = folder / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho call >> "{calls}"\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    return f"{wrapper.parent}:{os.environ['PATH']}"


def timed(arguments: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return the seconds that a command takes, and those of processors, which a busy machine changes less."""
    started, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return round(time.perf_counter() - started, 2), round(cpu, 2)


if __name__ == "__main__":
    main()
