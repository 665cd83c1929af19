"""The soak: experiments on the development cluster under random faults, then an audit.

What ran double is counted in slurmctld's book of all that ended; what is lost or incomplete, by what experiments hold.

    make soak                                          # 200 experiments, 20 minutes of faults
    python -m tests.slurm.soak --folder F --experiments 10 --minutes 2

A run that was stopped goes on with the same --folder. The faults are drawn from one seed; what they meet is not.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.slurm.bench import REPOSITORY, TINY, Bench
from tests.slurm.cluster import ACCOUNTING, DevCluster
from tests.slurm.faults import HARMS, Faults, read

JOBS_AT_ONCE = 36
LAUNCHES_AT_ONCE = 4
SEEDS = 2  # So many different trainings there are; each is run once without faults.
CONFIG = TINY | {"epochs": 40, "eval_steps": [40], "save_freq": 5, "num_batches": 3, "engine": "fast", "reuse": False}
ARRAYS_EVERY = 4  # The evaluation of each so many experiments is an array.
ROUNDS_AT_THE_END = 12
# Nothing is compiled here, and torch's compiler would be half of the time of every job: its optimizers import it.
NO_COMPILER = """import sys, types
compiler = sys.modules["torch._dynamo"] = types.ModuleType("torch._dynamo")
compiler.disable, compiler.graph_break = lambda function, *_, **__: function, lambda: None
"""


@dataclass
class Soak:
    """One soak in one folder. pending: commands of users that run now; sound: experiments that are done, and right."""

    cluster: DevCluster
    folder: Path
    experiments: int
    rng: random.Random
    pending: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    false_ends: set[int] = field(default_factory=set)
    sound: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.bench = Bench(self.cluster.env, self.folder)
        (self.folder / "python").mkdir(exist_ok=True)
        (self.folder / "python/sitecustomize.py").write_text(NO_COMPILER)
        self.bench.env["PYTHONPATH"] = str(self.folder / "python")
        # As in tests/conftest.py, which a soak by itself does not read.
        self.bench.env.pop("PYTHONDONTWRITEBYTECODE", None)
        self.faults = Faults(self.cluster, self.bench, self.rng)
        self.user_env = self.bench.env | {"PATH": f"{self.faults.wrappers()}:{os.environ['PATH']}"}
        same = {"python": sys.executable, "signal_seconds": 30, "latency_wait": 2}
        self.profiles = [self.bench.profile("one", **same), self.bench.profile("arrays", points_per_job=2, **same)]
        self.reference = {seed: self._undisturbed(seed) for seed in range(SEEDS)}

    # Experiments

    def root(self, number: int) -> Path:
        return self.bench.root(f"e{number:03d}", "soak")

    def command(self, number: int) -> list[str]:
        """Return what a user types for an experiment: the launch, which also completes a broken one, else `retry`."""
        if (self.root(number) / "plan.json").exists() and self.rng.random() < 0.7:
            return ["-m", "anml", "retry", f"soak/e{number:03d}"]
        profile = self.profiles[number % ARRAYS_EVERY == 0]
        options = ["--project", "soak", "--group", f"e{number:03d}", "--wandb", "disabled", "--cluster", profile]
        return ["launch_train.py", "-c", str(self._config(number % SEEDS)), *options]

    def is_done(self, number: int) -> bool:
        """Say whether every job, and every task of an array, says that it is done."""
        jobs = self.root(number) / "jobs"
        files = [
            jobs / job["name"] / (f"task-{task:04d}" if job["tasks"] else "") / "status.json"
            for job in read(self.root(number) / "plan.json").get("jobs", [])
            for task in range(job["tasks"] or 1)
        ]
        return bool(files) and all(read(file).get("state") == "done" for file in files)

    def is_as_undisturbed(self, number: int) -> bool:
        return self.outcome(self.root(number)) == self.reference[number % SEEDS]

    def outcome(self, root: Path) -> list[str]:
        """Return the trained model, all results without what evaluating cost, and the table of the report."""
        model = root / f"checkpoints/step-{CONFIG['epochs']:06d}/model.safetensors"
        table, page = root / "report/accuracy.txt", root / "report/index.html"
        if not (model.is_file() and table.is_file() and page.is_file()):
            return []
        lines = [line for file in (root / "results").glob("*.csv") for line in file.read_text().splitlines()]
        rows = {",".join(line.split(",")[:18]) for line in lines}
        accuracies = table.read_text().partition("Test accuracy")[2]
        return [hashlib.sha256(model.read_bytes()).hexdigest(), *sorted(rows), accuracies]

    def _config(self, seed: int) -> Path:
        path = self.folder / f"seed-{seed}.yml"
        path.write_text(yaml.safe_dump(CONFIG | {"seed": seed}))
        return path

    def _undisturbed(self, seed: int) -> list[str]:
        root = self.bench.root(f"seed-{seed}", "undisturbed")
        if not (root / "report/index.html").exists():
            options = ["--project", "undisturbed", "--group", f"seed-{seed}", "--wandb", "disabled"]
            words = ["launch_train.py", "-c", str(self._config(seed)), *options, "--cluster", "local"]
            done = self.bench.python(*words, OMP_NUM_THREADS="1")
            assert done.returncode == 0, done.stderr
        return self.outcome(root)

    # Users

    def serve(self, live: dict[str, str]) -> None:
        """Start what users would: launches of new experiments, and of those that ended without being done.

        live: what waits or runs, by id.
        """
        self.pending = {number: run for number, run in self.pending.items() if run.poll() is None}
        for number in range(self.experiments):
            if len(self.pending) >= LAUNCHES_AT_ONCE or len(live) >= JOBS_AT_ONCE:
                return
            if number not in self.pending and number not in self.sound and not self._is_live(number, live):
                run = subprocess.Popen(
                    [sys.executable, *self.command(number)], cwd=REPOSITORY, env=self.user_env,
                    stdout=self._log(), stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
                self.pending[number] = run

    def _is_live(self, number: int, live: dict[str, str]) -> bool:
        submitted = read(self.root(number) / "plan.json").get("submitted", {})
        return any(job["id"] in live for job in submitted.values())

    def _log(self) -> int:
        return os.open(self.folder / "users.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    # The whole

    def run(self, minutes: float) -> dict[str, list]:
        """Do harm for some minutes, then let everything come to its end. Return what went wrong."""
        while "RUNNING" not in self._one_round().values():  # There is nothing to harm yet.
            time.sleep(1)
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            self._one_round()
            if self.rng.random() < 0.6:
                self.faults.strike(list(self.pending.values()))
            time.sleep(1)
        for _ in range(ROUNDS_AT_THE_END * self.experiments):
            live = self._one_round()
            if len(self.sound | self.false_ends) == self.experiments and not live and not self.pending:
                break
            time.sleep(3)
        return self.audit()

    def _one_round(self) -> dict[str, str]:
        """Look at what is done, and let users do what is not. Return what waits or runs, by id."""
        for number in range(self.experiments):
            self._look_at(number)
        with suppress(subprocess.SubprocessError):
            self.faults.repair()
            live = self.faults.live()
            self.serve(live)
            return live
        return {"unknown": "UNKNOWN"}

    def _look_at(self, number: int) -> None:
        if not self.is_done(number):
            self.sound.discard(number)  # Its report is written once more, after a retry, and may be harmed, too.
        elif number not in self.sound:
            # Somebody may have begun to write the report again since.
            if self.is_as_undisturbed(number):
                self.sound.add(number)
            elif self.is_done(number) and number not in self.false_ends:
                self.false_ends.add(number)
                # What `retry` may mend since, and nobody could explain then.
                with suppress(shutil.Error):  # What a job that runs has just renamed.
                    shutil.copytree(self.root(number), self.folder / f"false-ends/e{number:03d}", dirs_exist_ok=True)

    def audit(self) -> dict[str, list]:
        """Return the experiments, or the jobs, to which each harm was done that must not be."""
        numbers = range(self.experiments)
        return {
            "lost": [number for number in numbers if not self.is_done(number)],
            "running double": list(double_runs(self.cluster.state / "log/jobs.log")),
            "incomplete called complete": sorted(self.false_ends),
            "results that differ": [number for number in numbers if not self.is_as_undisturbed(number)],
        }

    def report(self, wrong: dict[str, list]) -> str:
        faults, lies = self.faults, self.faults.lies()
        lines = [f"{self.experiments} experiments; faults: {sum(faults.done.values())} (done of tried)"]
        lines += [f"  {harm}: {faults.done[harm]} of {faults.tried[harm]}" for harm in HARMS]
        lines += [f"Slurm's commands that were slow or lied: {sum(lies.values())}"]
        lines += [f"  {lie}: {count}" for lie, count in sorted(lies.items())]
        return "\n".join([*lines, *(f"{what}: {len(which)} {which or ''}" for what, which in wrong.items()), ""])


def double_runs(book: Path) -> Iterator[str]:
    """Yield the jobs, or tasks, that two allocations ran at the same time, by slurmctld's record of all that ended."""
    line = re.compile(r"JobId=(\d+) .*?Name=(\S+) JobState.*? StartTime=(\S+) EndTime=(\S+)(?:.*ArrayTaskId=(\d+))?")
    found = [match.groups("") for match in map(line.search, book.read_text(errors="replace").splitlines()) if match]
    allocations: dict[tuple[str, str, str], str] = {}
    for id_, name, start, end, task in found:
        if "Unknown" not in start + end:  # Of one that is requeued as it ends there are two lines.
            key = (start, f"{name}[{task}]" if task else name, id_)
            allocations[key] = max(end, allocations.get(key, end))
    ends: dict[str, str] = {}
    for (start, label, _), end in sorted(allocations.items()):  # Times as text sort as times.
        if start < ends.get(label, start):
            yield label
        ends[label] = max(end, ends.get(label, end))


def soak(folder: Path, experiments: int, minutes: float, seed: int) -> dict[str, list]:
    """Soak on a cluster in `folder`, which stays up where something went wrong. Return what did."""
    cluster = DevCluster(folder / "cluster")
    cluster.call("up", *ACCOUNTING)
    run = Soak(cluster, folder, experiments, random.Random(seed))
    wrong = run.run(minutes)
    sys.stdout.write(run.report(wrong))
    if not any(wrong.values()):
        cluster.call("down")
    return wrong


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
