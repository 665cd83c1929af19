"""The soak: experiments on the development cluster under random faults, then an audit out of Slurm's own books.

    make soak                                          # 200 experiments, 20 minutes of faults
    python -m tests.slurm.soak --folder F --experiments 10 --minutes 2

A run that was stopped goes on with the same --folder. The faults are drawn from one seed; what they meet is not.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import yaml

from tests.slurm.bench import REPOSITORY, TINY, Bench
from tests.slurm.cluster import DevCluster

NODES = ("dg1", "dg2", "bd1")
MOST_AT_ONCE = 12
SEEDS = 2  # So many different trainings there are; each is run once without faults.
CONFIG = TINY | {"epochs": 60, "eval_steps": [60], "save_freq": 10, "num_batches": 10, "engine": "fast"}
ROUNDS_AT_THE_END = 12
HARMS = (
    "kill", "kill", "requeue", "requeue", "cancel", "warn", "warn", "stop_and_continue", "hold_and_release",
    "kill_launcher", "kill_launcher", "restart_controller", "cut_power", "restart_slurmd",
)  # fmt: skip

# What stands in front of Slurm's own commands: slow, and not always true. The site's words come from bug reports.
SBATCH = """#!/bin/bash
case $((RANDOM % 12)) in
  0) sleep 3 ;;
  1) {real} "$@" > /dev/null
     echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1 ;;
  2) echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1 ;;
  3) {real} "$@" || exit; echo "Your quota is 80% used."; exit 0 ;;
esac
exec {real} "$@"
"""
SQUEUE = """#!/bin/bash
copy="{cache}/$(echo "$*" | cksum | tr -d ' ')"
case $((RANDOM % 8)) in
  0) sleep 2 ;;
  1) [ -e "$copy" ] && cat "$copy" && exit 0 ;;
  2) echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2; exit 1 ;;
esac
{real} "$@" > "$copy.$$" || exit
mv "$copy.$$" "$copy"; cat "$copy"
"""


@dataclass
class Soak:
    """One soak in one folder. started: experiments that were launched; pending: commands of users that run now."""

    cluster: DevCluster
    folder: Path
    experiments: int
    rng: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    pending: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    false_ends: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.bench = Bench(self.cluster.env, self.folder)
        self.user_env = self.bench.env | {"PATH": f"{self._wrappers()}:{os.environ['PATH']}"}
        self.profile = self.bench.profile(python=sys.executable, signal_seconds=30, latency_wait=2)
        self.reference = {seed: self._undisturbed(seed) for seed in range(SEEDS)}

    # Experiments

    def root(self, number: int) -> Path:
        return self.bench.root(f"e{number:03d}", "soak")

    def command(self, number: int) -> list[str]:
        """Return what a user types for an experiment: the launch, which also completes a broken one, else `retry`."""
        if (self.root(number) / "plan.json").exists() and self.rng.random() < 0.7:
            return ["-m", "anml", "retry", f"soak/e{number:03d}"]
        options = ["--project", "soak", "--group", f"e{number:03d}", "--wandb", "disabled", "--cluster", self.profile]
        return ["launch_train.py", "-c", str(self._config(number % SEEDS)), *options]

    def is_done(self, number: int) -> bool:
        """Say whether every job of an experiment says that it is done."""
        names = [job["name"] for job in _json(self.root(number) / "plan.json").get("jobs", [])]
        states = [_json(self.root(number) / "jobs" / name / "status.json").get("state") for name in names]
        return bool(states) and set(states) == {"done"}

    def results(self, root: Path) -> dict[str, list[list[str]]]:
        """Return the rows of every results file, without what evaluating cost: memory and seconds differ by nature."""
        files = sorted((root / "results").glob("*.csv"))
        return {file.name: [line.split(",")[:18] for line in file.read_text().splitlines()] for file in files}

    def is_as_undisturbed(self, number: int) -> bool:
        page = self.root(number) / "report/index.html"
        is_whole = page.is_file() and "no results" not in page.read_text()
        return is_whole and self.results(self.root(number)) == self.reference[number % SEEDS]

    def _config(self, seed: int) -> Path:
        path = self.folder / f"seed-{seed}.yml"
        path.write_text(yaml.safe_dump(CONFIG | {"seed": seed}))
        return path

    def _undisturbed(self, seed: int) -> dict[str, list[list[str]]]:
        root = self.bench.root(f"seed-{seed}", "undisturbed")
        if not (root / "report/index.html").exists():
            options = ["--project", "undisturbed", "--group", f"seed-{seed}", "--wandb", "disabled"]
            words = ["launch_train.py", "-c", str(self._config(seed)), *options, "--cluster", "local"]
            done = self.bench.python(*words, OMP_NUM_THREADS="1")
            assert done.returncode == 0, done.stderr
        return self.results(root)

    def _wrappers(self) -> Path:
        folder, cache = self.folder / "bin", self.folder / "cache"
        folder.mkdir(parents=True, exist_ok=True)
        cache.mkdir(exist_ok=True)
        for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
            (folder / name).write_text(text.format(real=f"/usr/bin/{name}", cache=cache))
            (folder / name).chmod(0o755)
        return folder

    # Users

    def serve(self, most: int) -> None:
        """Start what users would: launches of new experiments, and of those that ended without being done."""
        self.pending = {number: run for number, run in self.pending.items() if run.poll() is None}
        live = self.live()
        for number in range(self.experiments):
            if len(self.pending) >= 2 or len(live) >= 3 * most:
                return
            if number not in self.pending and not self.is_done(number) and not self._is_live(number, live):
                run = subprocess.Popen(
                    [sys.executable, *self.command(number)], cwd=REPOSITORY, env=self.user_env,
                    stdout=self._log(), stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
                self.pending[number] = run

    def live(self) -> dict[str, str]:
        """Return the states of what waits or runs, by id."""
        with suppress(subprocess.SubprocessError):
            lines = self.bench.slurm("squeue", "--noheader", "--format=%A %T").splitlines()
            return dict(map(str.split, lines))
        return {"unknown": "UNKNOWN"}

    def _is_live(self, number: int, live: dict[str, str]) -> bool:
        submitted = _json(self.root(number) / "plan.json").get("submitted", {})
        return "unknown" in live or any(job["id"] in live for job in submitted.values())

    def _log(self) -> int:
        return os.open(self.folder / "users.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    # Faults

    def strike(self) -> None:
        """Do one harm, chosen at random."""
        harm = self.rng.choice(HARMS)
        with suppress(subprocess.SubprocessError, OSError, IndexError, AssertionError):
            getattr(self, harm)()
            self.faults[harm] += 1

    def kill(self) -> None:
        states = map(_json, self.folder.glob("experiments/soak/*/jobs/*/status.json"))
        pids = [state["pid"] for state in states if state.get("state") == "running"]
        # An id may by now be of a process that is none of ours.
        ours = [pid for pid in pids if str(self.folder) in Path(f"/proc/{pid}/cmdline").read_text(errors="replace")]
        os.kill(self.rng.choice(ours), signal.SIGKILL)

    def requeue(self) -> None:
        self.bench.slurm("scontrol", "requeue", self._any("RUNNING"))

    def cancel(self) -> None:
        self.bench.slurm("scancel", self._any("RUNNING", "PENDING"))

    def warn(self) -> None:
        self.bench.slurm("scancel", "--batch", "--signal=USR1", self._any("RUNNING"))

    def stop_and_continue(self) -> None:
        id_ = self._any("RUNNING")
        self.bench.slurm("scancel", "--signal=STOP", "--full", id_)
        time.sleep(2)
        self.bench.slurm("scancel", "--signal=CONT", "--full", id_)

    def hold_and_release(self) -> None:
        id_ = self._any("PENDING")
        self.bench.slurm("scontrol", "hold", id_)
        time.sleep(2)
        self.bench.slurm("scontrol", "release", id_)

    def restart_controller(self) -> None:
        self.cluster.stop_controller()
        time.sleep(self.rng.uniform(0, 3))
        self.cluster.start_controller()

    def cut_power(self) -> None:
        node = self.rng.choice(NODES)
        self.cluster.stop_node(node)
        self.cluster.start_node(node)

    def restart_slurmd(self) -> None:
        """Only the daemon ends: its jobs run on."""
        node = self.rng.choice(NODES)
        pid = (self.cluster.state / "pids" / node).read_text().split()[0]
        os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.5)
        self.cluster.start_node(node)

    def kill_launcher(self) -> None:
        run = self.rng.choice(list(self.pending.values()))
        os.killpg(run.pid, signal.SIGKILL)

    def _any(self, *states: str) -> str:
        return self.rng.choice([id_ for id_, state in self.live().items() if state in states])

    # The whole

    def run(self, minutes: float) -> dict[str, int]:
        """Do harm for some minutes, then let everything come to its end. Return what went wrong, as counts."""
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            self.serve(MOST_AT_ONCE)
            self.note_false_ends()
            if self.rng.random() < 0.6:
                self.strike()
            time.sleep(1)
        self._finish()
        return self.audit()

    def note_false_ends(self) -> None:
        """Note the experiments that call themselves done and are not."""
        for number in range(self.experiments):
            if self.is_done(number) and not self.is_as_undisturbed(number):
                self.false_ends.add(number)

    def _finish(self) -> None:
        """Serve users, without harm, until all is done or nothing gets on."""
        for _ in range(ROUNDS_AT_THE_END * self.experiments):
            if all(self.is_done(number) for number in range(self.experiments)) and not self.live():
                return
            self.serve(MOST_AT_ONCE)
            self.note_false_ends()
            time.sleep(3)

    def audit(self) -> dict[str, int]:
        numbers = range(self.experiments)
        return {
            "lost": sum(not self.is_done(number) for number in numbers),
            "running double": len(list(double_runs(self.cluster.state / "log/jobs.log"))),
            "incomplete called complete": len(self.false_ends),
            "results that differ": sum(not self.is_as_undisturbed(number) for number in numbers),
        }


def double_runs(book: Path) -> Iterator[str]:
    """Yield the jobs that two allocations ran at the same time, by slurmctld's own record of every one that ended."""
    ends: dict[str, datetime] = {}
    line = re.compile(r"Name=(\S+) JobState=\S+ .*?StartTime=(\S+) EndTime=(\S+)")
    runs = [match.groups() for match in map(line.search, book.read_text(errors="replace").splitlines()) if match]
    for name, start, end in sorted((run for run in runs if "Unknown" not in run), key=lambda run: run[1]):
        began, ended = datetime.fromisoformat(start), datetime.fromisoformat(end)
        if name in ends and began < ends[name]:
            yield name
        ends[name] = max(ended, ends.get(name, ended))


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def soak(folder: Path, experiments: int, minutes: float, seed: int) -> dict[str, int]:
    """Soak on a cluster in `folder`, which stays up where something went wrong."""
    cluster = DevCluster(folder / "cluster")
    cluster.call("up")
    run = Soak(cluster, folder, experiments, random.Random(seed))
    counts = run.run(minutes)
    sys.stdout.write(f"{experiments} experiments, faults: {dict(run.faults)}\n{counts}\n")
    if not any(counts.values()):
        cluster.call("down")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    return int(any(soak(options.folder.resolve(), options.experiments, options.minutes, options.seed).values()))


if __name__ == "__main__":
    sys.exit(main())
