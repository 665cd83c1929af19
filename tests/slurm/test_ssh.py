"""A laptop: a real sshd leads to the dev cluster, and nothing of Slurm is at hand."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from anml.config.profile import ClusterProfile
from anml.jobs.ssh import logged_in
from tests.slurm.bench import REPOSITORY, TINY, Bench
from tests.slurm.login_node import HOST, SSHD, LoginNode, login_node

needs_ssh = pytest.mark.skipif(
    not (Path(SSHD).exists() and shutil.which("rsync")), reason="no sshd or rsync (packages openssh-server, rsync)"
)
pytestmark = [pytest.mark.slurm, needs_ssh]


class Laptop:
    """Commands with a profile that leads to a login node, whose folder is `there`."""

    def __init__(self, folder: Path, node: LoginNode, setup: list[str]) -> None:
        self.folder, self.node, self.there = folder, node, folder / "there"
        self.env = {"HOME": str(folder), "PATH": f"{node.bin}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        self.env["ANML_EXPERIMENTS"] = str(folder / "here")
        (folder / "mine").mkdir()
        (folder / "base.yml").write_text(yaml.safe_dump(TINY | {"epochs": 2, "eval_steps": [2]}))
        (folder / "mine" / "config.yml").write_text("<<: !include ../base.yml\nmodel: ./net.py:Net\n")
        (folder / "mine" / "net.py").write_text("from anml.models.anml import Sanml\n\n\nclass Net(Sanml):\n    pass\n")
        self.setup = setup
        self.profile()

    def profile(self, **changes: object) -> None:
        keys = yaml.safe_load((REPOSITORY / "slurm/dev-cluster/dggpu.yml").read_text())
        keys |= {"ssh": "lab", "ssh_folder": str(self.there), "python": sys.executable, "setup": self.setup}
        (self.folder / "lab.yml").write_text(yaml.safe_dump(keys | changes))

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *words], cwd=REPOSITORY, env=self.env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=400)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def anml(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "anml", *words)

    @property
    def launch_words(self) -> list[str]:
        words = ["launch_train.py", "-c", str(self.folder / "mine" / "config.yml"), "--project", "p", "--group", "g"]
        return [*words, "--cluster", str(self.folder / "lab.yml"), "--wandb", "disabled"]


@pytest.fixture
def laptop(bench: Bench, tmp_path: Path) -> Iterator[Laptop]:
    with login_node(tmp_path / "node") as node:
        yield Laptop(tmp_path, node, [f"export SLURM_CONF={bench.env['SLURM_CONF']}"])


def test_an_experiment_on_a_cluster_is_launched_watched_cancelled_retried_and_reported_from_here(
    laptop: Laptop, bench: Bench
) -> None:
    wrong = laptop.run(*laptop.launch_words, "--set", "inner_lrr=3")
    assert (wrong.returncode, "inner_lrr" in wrong.stderr) == (2, True)
    assert not (laptop.folder / "here").joinpath("p", "g").exists()
    launched = laptop.run(*laptop.launch_words)
    assert launched.returncode == 0, launched.stderr
    assert "Submitted 3 jobs" in launched.stdout
    here, there = (laptop.folder / name / "p" / "g" for name in ("here", "there/experiments"))
    assert json.loads((here / "environment.json").read_text())["git_commit"] is not None
    assert not (laptop.there / "launches" / "p" / "g").exists()
    assert "pending" in laptop.anml("status", "p/g").stdout
    assert "Cancelled" in laptop.anml("cancel", "p/g").stdout
    bench.wait_for_queue()
    retried = laptop.anml("retry", "p/g", "--time=15")
    assert (retried.returncode, "report" in retried.stdout) == (0, True), retried.stderr
    watched = laptop.anml("status", "p/g", "--watch")
    assert (watched.returncode, "3 done" in watched.stdout) == (0, True), watched.stdout
    assert "engine" in laptop.anml("logs", "p/g", "train-step-000002").stdout
    shutil.rmtree(here / "report", ignore_errors=True)
    reported = laptop.anml("report", "p/g")
    assert (reported.returncode, (here / "report" / "index.html").is_file()) == (0, True), reported.stderr
    assert (there / "checkpoints").is_dir()
    assert not (here / "checkpoints").exists()
    exported = laptop.anml("export", "p/g", str(laptop.folder / "model"))
    assert exported.returncode == 0, exported.stderr


def begin_launch(laptop: Laptop, bench: Bench, words: list[str]) -> subprocess.Popen[str]:
    """Launch, and return when the first job is submitted and the others are not."""
    slow = laptop.folder / "slow"
    slow.mkdir(exist_ok=True)
    (slow / "sbatch").write_text(f'#!/bin/sh\nsleep 2\nexec {shutil.which("sbatch")} "$@"\n')
    (slow / "sbatch").chmod(0o755)
    laptop.profile(setup=[*laptop.setup, f"export PATH={slow}:$PATH"])
    launching = laptop.start(*words)
    bench.wait(lambda: bench.slurm("squeue", "--noheader").strip(), "a first job")
    return launching


def test_a_launch_that_loses_its_connection_is_taken_back_and_can_be_completed(laptop: Laptop, bench: Bench) -> None:
    launching = begin_launch(laptop, bench, laptop.launch_words)
    laptop.node.cut()
    errors = launching.communicate(timeout=60)[1]
    assert (launching.returncode, "the connection to lab was lost" in errors) == (1, True), errors
    assert "status p/g" in errors
    plan = laptop.there / "experiments" / "p" / "g" / "plan.json"
    bench.wait(lambda: not json.loads(plan.read_text())["submitted"], "nothing submitted")
    bench.wait_for_queue()
    assert "never submitted" in laptop.anml("status", "p/g").stdout
    launching = begin_launch(laptop, bench, ["-m", "anml", "retry", "p/g"])
    launching.send_signal(signal.SIGINT)
    errors = launching.communicate(timeout=60)[1]
    assert (launching.returncode, "taken back: train-step-000002" in errors) == (1, True), errors
    bench.wait_for_queue()
    laptop.profile()
    completed = laptop.run(*laptop.launch_words)
    assert "Submitted 3 jobs" in completed.stdout, completed.stderr


def test_what_is_wrong_with_a_login_node_is_told(laptop: Laptop, tmp_path: Path) -> None:
    laptop.profile(ssh_folder="/proc/anml")
    told(laptop, "/proc/anml", "lab")
    laptop.profile(python="/nowhere/python")
    told(laptop, "/nowhere/python", "No such file")
    (tmp_path / "old").write_text('#!/bin/sh\necho "Python 3.9" >&2; exit 1\n')
    (tmp_path / "old").chmod(0o755)
    laptop.profile(python=str(tmp_path / "old"))
    told(laptop, "Python 3.9")
    laptop.profile()
    laptop.node.stop()
    told(laptop, "cannot log in to lab", "Connection refused")
    laptop.node.start()
    (laptop.node.folder / "authorized_keys").unlink()
    told(laptop, "Permission denied", "without a question")
    with login_node(tmp_path / "bare", f"SetEnv PATH={tmp_path}/nothing") as bare:
        (tmp_path / "nothing").mkdir()
        (tmp_path / "nothing" / "bash").symlink_to("/bin/bash")
        (tmp_path / "nothing" / "base64").symlink_to("/usr/bin/base64")
        laptop.env["PATH"] = f"{bare.bin}:/usr/bin:/bin"
        told(laptop, "rsync", "must be installed on both machines")
        laptop.env["PATH"] = str(bare.bin)
        bare.put("git", "exit 1")
        told(laptop, "there is no rsync on this machine")


def test_a_connection_that_the_user_keeps_open_is_used_and_stays_open(tmp_path: Path, monkeypatch) -> None:
    """As where a login needs a second factor: ssh alone would ask for it again."""
    with login_node(tmp_path / "node") as node, tempfile.TemporaryDirectory() as folder:  # A socket's path is short.
        monkeypatch.setenv("PATH", f"{node.bin}:{os.environ['PATH']}")
        with (node.folder / "ssh_config").open("a") as settings:
            settings.write(f"    ControlMaster auto\n    ControlPath {folder}/%C\n    ControlPersist 60\n")
        subprocess.run(["ssh", HOST, "true"], check=True, stderr=subprocess.DEVNULL)
        (node.folder / "authorized_keys").unlink()
        with logged_in(ClusterProfile(name="lab", scheduler="slurm", ssh=HOST, python=sys.executable)) as login:
            login.prepare(f"{tmp_path}/there")
        assert (tmp_path / "there").is_dir()
        subprocess.run(["ssh", "-O", "exit", HOST], check=True, stderr=subprocess.DEVNULL)


def told(laptop: Laptop, *words: str) -> None:
    began = time.monotonic()
    done = laptop.run(*laptop.launch_words)
    assert (done.returncode, [word for word in words if word not in done.stderr]) == (1, []), done.stderr
    assert "Traceback (most recent call last)" not in done.stderr
    assert not (laptop.folder / "here" / "p" / "g").exists()
    assert time.monotonic() - began < 60
