"""The harms of the soak. Each is done on what runs at that moment, and says whether it was done."""

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.slurm.bench import Bench
from tests.slurm.cluster import DevCluster

# How often each comes, in proportion.
HARMS = {
    "kill": 2, "requeue": 2, "cancel": 2, "warn": 2, "stop_and_continue": 2, "hold_and_release": 2, "kill_launcher": 2,
    "restart_controller": 1, "restart_slurmd": 1, "lose_slurmd": 1, "cut_power": 1,
}  # fmt: skip

# What stands in front of Slurm's own commands: slow, and not always true. The site's words come from bug reports.
SBATCH = """#!/bin/bash
lie() {{ echo "sbatch: $1" >> "{cache}/lies"; }}
case $((RANDOM % 12)) in
  0) lie slow; sleep 3 ;;
  1) {real} "$@" > /dev/null; lie "accepted and denied"
     echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1 ;;
  2) lie away; echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1 ;;
  3) {real} "$@" || exit; lie "more lines"; echo "Your quota is 80% used."; exit 0 ;;
esac
exec {real} "$@"
"""
SQUEUE = """#!/bin/bash
lie() {{ echo "squeue: $1" >> "{cache}/lies"; }}
copy="{cache}/$(echo "$*" | cksum | tr -d ' ')"
case $((RANDOM % 8)) in
  0) lie slow; sleep 2 ;;
  1) [ -e "$copy" ] && lie "old copy" && cat "$copy" && exit 0 ;;
  2) lie away; echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2; exit 1 ;;
esac
{real} "$@" > "$copy.$$" || exit
mv "$copy.$$" "$copy"; cat "$copy"
"""


T = TypeVar("T")


class NothingToHarmError(Exception):
    """What the harm needs, such as a job that runs, is not there just now."""


@dataclass
class Faults:
    """Faults for the jobs in one folder. tried, done: how often each harm was begun, and seen to have its effect."""

    cluster: DevCluster
    bench: Bench
    rng: random.Random
    launchers: Sequence[subprocess.Popen[bytes]] = ()
    tried: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)

    def wrappers(self) -> Path:
        """Write the commands that lie. Return the folder to put in front of PATH."""
        folder, cache = self.bench.folder / "bin", self.bench.folder / "cache"
        folder.mkdir(parents=True, exist_ok=True)
        cache.mkdir(exist_ok=True)
        for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
            (folder / name).write_text(text.format(real=f"/usr/bin/{name}", cache=cache))
            (folder / name).chmod(0o755)
        return folder

    def lies(self) -> Counter[str]:
        """Return how often a wrapper lied or was slow, by what it did."""
        with suppress(FileNotFoundError):
            return Counter((self.bench.folder / "cache/lies").read_text().splitlines())
        return Counter()

    def strike(self, launchers: Sequence[subprocess.Popen[bytes]]) -> None:
        """Do one of the harms that were done least so far, by their proportions; the first that has its effect."""
        self.launchers = launchers
        rounds = {harm: self.done[harm] // times for harm, times in HARMS.items()}
        due = [harm for harm in HARMS if rounds[harm] <= min(rounds.values()) + 1]
        for harm in sorted(due, key=lambda harm: (rounds[harm], self.rng.random())):
            with suppress(NothingToHarmError, subprocess.SubprocessError, OSError):
                if getattr(self, harm)():
                    self.done[harm] += 1
                    return

    def repair(self) -> None:
        """Do what a site's people do: they resume nodes that Slurm has drained, and release jobs that it holds.

        It does so where it starts a job beside what a lost slurmd has left of it ("Duplicate jobid"); `status` says
        which command lets the job go. Raises CalledProcessError while the controller is away.
        """
        for node in set(self.bench.slurm("sinfo", "--noheader", "--Node", "--states=drained", "--format=%N").split()):
            self.bench.slurm("scontrol", "update", f"nodename={node}", "state=resume")
        lines = self.bench.slurm("squeue", "--noheader", "--states=PENDING", "--format=%i %r").splitlines()
        for id_ in [line.split()[0] for line in lines if line.endswith(" launch failed requeued held")]:
            self.bench.slurm("scontrol", "release", id_)

    def live(self) -> dict[str, str]:
        """Return the states of what waits or runs, by id. Raises CalledProcessError while the controller is away."""
        lines = self.bench.slurm("squeue", "--noheader", "--format=%A %T").splitlines()
        return dict(map(str.split, lines))

    # To processes

    def kill(self) -> bool:
        job = self._process("kill")
        os.kill(job["pid"], signal.SIGKILL)
        return soon(lambda: process_state(job["pid"]) in ("", "Z"))

    def kill_launcher(self) -> bool:
        run = self._one("kill_launcher", [run for run in self.launchers if run.poll() is None])
        time.sleep(self.rng.uniform(0, 3))  # Else most would die before their first submission.
        os.killpg(run.pid, signal.SIGKILL)
        return run.wait() == -signal.SIGKILL

    def warn(self) -> bool:
        """Do as Slurm does before the time limit."""
        job = self._process("warn", "train", "olft")
        self.bench.slurm("scancel", "--batch", "--signal=USR1", job["job_id"])
        return soon(lambda: "SIGUSR1" in read(job["file"]).get("message", ""))

    def stop_and_continue(self) -> bool:
        job = self._process("stop_and_continue")
        self.bench.slurm("scancel", "--signal=STOP", "--full", job["job_id"])
        was_stopped = soon(lambda: process_state(job["pid"]) == "T")
        time.sleep(self.rng.uniform(1, 8))
        self.bench.slurm("scancel", "--signal=CONT", "--full", job["job_id"])
        return was_stopped and soon(lambda: process_state(job["pid"]) != "T")

    # To jobs

    def requeue(self) -> bool:
        id_ = self._job("requeue", "RUNNING")
        self.bench.slurm("scontrol", "requeue", id_)
        return self.live().get(id_) != "RUNNING"

    def cancel(self) -> bool:
        id_ = self._job("cancel", "RUNNING", "PENDING")
        self.bench.slurm("scancel", id_)
        return self.live().get(id_) not in ("RUNNING", "PENDING")

    def hold_and_release(self) -> bool:
        id_ = self._job("hold_and_release", "PENDING")
        self.bench.slurm("scontrol", "hold", id_)
        was_held = "Priority=0 " in self.bench.slurm("scontrol", "show", "job", "--oneliner", id_)
        time.sleep(2)
        self.bench.slurm("scontrol", "release", id_)
        return was_held

    # To daemons and nodes

    def restart_controller(self) -> bool:
        self.tried["restart_controller"] += 1
        self.cluster.stop_controller()
        time.sleep(self.rng.uniform(0, 3))
        self.cluster.start_controller()
        return True

    def restart_slurmd(self) -> bool:
        """Kill the daemon alone: its jobs run on, and Slurm does not notice."""
        node, ids = self._busy_node("restart_slurmd")
        self._kill_slurmd(node)
        self.cluster.start_node(node, "--keep-jobs")
        return any(self.live().get(id_) == "RUNNING" for id_ in ids)

    def lose_slurmd(self) -> bool:
        """Kill the daemon alone; Slurm takes its jobs for lost, and starts them again while their processes live."""
        node, ids = self._busy_node("lose_slurmd")
        self._kill_slurmd(node)
        self.cluster.start_node(node)
        return any(self.live().get(id_) != "RUNNING" for id_ in ids)

    def cut_power(self) -> bool:
        node, ids = self._busy_node("cut_power")
        self.cluster.stop_node(node)
        self.cluster.start_node(node)
        return any(self.live().get(id_) != "RUNNING" for id_ in ids)

    def _kill_slurmd(self, node: str) -> None:
        pid = (self.cluster.state / "pids" / node).read_text().split()[0]
        os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.5)

    # What there is to harm

    def _one(self, harm: str, candidates: Sequence[T]) -> T:
        """Return one at random, and count the attempt. Raises NothingToHarmError."""
        if not candidates:
            raise NothingToHarmError
        self.tried[harm] += 1
        return self.rng.choice(candidates)

    def _job(self, harm: str, *states: str) -> str:
        return self._one(harm, [id_ for id_, state in self.live().items() if state in states])

    def _busy_node(self, harm: str) -> tuple[str, list[str]]:
        """Return a node that runs jobs, and their ids."""
        rows = self.bench.slurm("squeue", "--noheader", "--states=running", "--format=%A %N").splitlines()
        node = self._one(harm, sorted({row.split()[1] for row in rows}))
        return node, [row.split()[0] for row in rows if row.split()[1] == node]

    def _process(self, harm: str, *kinds: str) -> dict:
        """Return the status of a job whose process runs, with its file."""
        files = self.bench.folder.glob("experiments/soak/*/jobs/**/status.json")
        ours = [file for file in files if str(file).split("/jobs/")[1].startswith(kinds or "")]
        jobs: list[dict[str, Any]] = [read(file) | {"file": file} for file in ours]
        return self._one(harm, [job for job in jobs if job.get("state") == "running" and self._runs(job["pid"])])

    def _runs(self, pid: int) -> bool:
        """Say whether a process is one of ours: an id may by now be of another one."""
        with suppress(OSError):
            return str(self.bench.folder) in Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        return False


def process_state(pid: int) -> str:
    """Return the letter by which the kernel calls a process's state; "" where there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return ""


def soon(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Say whether a condition comes true within some seconds."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return holds


def read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
