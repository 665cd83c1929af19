"""A job is its ids: whatever squeue hides, forgets or says too late, no job is lost, doubled or another's."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anml.config.profile import PROFILES, load_profile
from anml.config.training import TrainConfig
from anml.errors import SubmissionError
from anml.experiment import Experiment
from anml.jobs.launch import Launch, create_experiment, read_plan_file
from anml.jobs.plan import Job, Plan
from anml.jobs.schedulers import controller, slurm
from anml.jobs.schedulers.slurm import SlurmScheduler
from anml.jobs.status import read_jobs
from anml.jobs.submission import run_launch
from tests.slurm.bench import REPOSITORY

pytestmark = pytest.mark.slurm

# A job that runs until it is let go, or asked to end.
WORK = """
import os, sys, time
from pathlib import Path
from anml.experiment import Experiment
from anml.jobs.job import array_task, run_job

root, name = (sys.argv[sys.argv.index(option) + 1] for option in ("--run-dir", "--job"))

def work(context):
    while not Path(root, "go").exists() and not context.stop():
        with Path(root, "order").open("a") as order:
            print(os.getpid(), file=order)
        time.sleep(0.05)
    time.sleep(3 * Path(root, "slow to end").exists())
    return not context.stop()

sys.exit(run_job(Experiment(Path(root)), name, array_task(), work))
"""
TRAIN = Job("train", "train", ("-c", WORK))
SWEEP = Job("sweep", "evaluate", ("-c", WORK), ("train",), tasks=3)
REPORT = Job("report", "report", ("-c", WORK), ("train", "sweep"), after_any=True)


class Cluster:
    """Launches a plan of light jobs in this process, and watches them; commands may be replaced by wrappers."""

    def __init__(self, env: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.env, self.folder, self.monkeypatch = env, folder, monkeypatch
        self.experiment = Experiment(folder / "experiments" / "p" / "g")
        self.profile = load_profile(str(REPOSITORY / "slurm/dev-cluster/dggpu.yml"), PROFILES)

    def launch(self, *jobs: Job) -> dict[str, str]:
        """Launch, or launch again; returns the ids of what was submitted."""
        config = TrainConfig(dataset="glyphs", model="anml", project="p", group="g")
        decided = Launch(config, self.experiment, self.profile, "disabled", Plan(jobs))
        create_experiment(decided, self.folder / "experiments")
        submitted: dict[str, str] = {}
        run_launch(decided, submitted.update)
        return submitted

    @property
    def scheduler(self) -> SlurmScheduler:
        return SlurmScheduler(self.experiment, self.profile, "disabled")

    def states(self) -> dict[str, str]:
        return {outcome.label: outcome.state for outcome in read_jobs(self.experiment, self.scheduler)}

    def slurm(self, *command: str) -> str:
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=True).stdout

    def ids(self) -> list[str]:
        """Return the ids of the experiment's jobs, as Slurm lists them."""
        rows = self.slurm("squeue", "--all", "--states=all", "--noheader", "--format=%F|%j").split()
        ours = {id_ for id_, name in (row.split("|") for row in rows) if name.endswith(self.scheduler.mark)}
        return sorted(ours, key=int)

    def let_go(self) -> None:
        (self.experiment.root / "go").touch()

    def wait(self, condition: Callable[[], object], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.slurm("squeue", "--all", "--states=all")
            time.sleep(0.2)

    def wait_for(self, name: str, state: str) -> None:
        self.wait(lambda: self.status(name).get("state") == state)

    def status(self, name: str) -> dict:
        file = self.experiment.job(name).status
        return json.loads(file.read_text()) if file.exists() else {}

    def wrap(self, command: str, *lines: str) -> None:
        """Put a script in the place of a command; $REAL is the command itself."""
        script = self.folder / "bin" / command
        script.parent.mkdir(exist_ok=True)
        real = f"REAL={shutil.which(command, path=self.env['PATH'])}"
        script.write_text("\n".join(["#!/bin/bash", real, *lines, ""]))
        script.chmod(0o755)
        self.monkeypatch.setenv("PATH", f"{script.parent}:{self.env['PATH']}")


@pytest.fixture
def cluster(dev_cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("SLURM_CONF", dev_cluster.env["SLURM_CONF"])
    cluster = Cluster(dev_cluster.env, tmp_path, monkeypatch)
    yield cluster
    if ids := cluster.ids():
        subprocess.run(["scancel", *ids], env=cluster.env, check=False)


def test_jobs_are_known_by_their_ids_in_a_moved_folder_and_not_by_a_strangers_id(cluster: Cluster) -> None:
    ids = cluster.launch(TRAIN, SWEEP)
    moved = cluster.experiment.root.rename(cluster.experiment.root.with_name("moved"))
    cluster.experiment = Experiment(moved)
    assert {name: next(iter(tasks.values())).id for name, tasks in cluster.scheduler.states().items()} == ids
    stranger = cluster.slurm("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true").strip()
    plan = read_plan_file(cluster.experiment)
    plan["submitted"]["train"]["id"] = stranger
    cluster.experiment.plan_file.write_text(json.dumps(plan))
    assert "train" not in cluster.scheduler.states()
    cluster.slurm("scancel", stranger, *ids.values())


def test_a_queue_that_is_minutes_old_doubles_nothing(cluster: Cluster) -> None:
    cluster.wrap("squeue", "exit 0")
    ids = cluster.launch(TRAIN, SWEEP, REPORT)
    assert cluster.launch(TRAIN, SWEEP, REPORT) == {}
    assert set(cluster.scheduler.states()["sweep"]) == {0, 1, 2}
    assert set(cluster.states().values()) <= {"pending", "running"}
    assert sorted(ids.values(), key=int) == cluster.ids()


def test_a_queue_that_prints_bytes_of_other_codes_and_lines_of_a_site_is_read(cluster: Cluster) -> None:
    cluster.launch(TRAIN)
    cluster.wrap("squeue", r"printf 'Welcome to the cluster \xff\n1|N/A|me|RUNNING|None|\xe9t\xe9\n'", '$REAL "$@"')
    assert cluster.scheduler.states()["train"][None].is_live


def test_a_command_that_hangs_is_given_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.launch(TRAIN)
    monkeypatch.setattr(controller, "COMMAND_SECONDS", 0.5)
    monkeypatch.setattr(controller, "PATIENCE_SECONDS", 1.0)
    cluster.wrap("squeue", "exec sleep 60")
    with pytest.raises(SubmissionError, match="squeue hangs"):
        cluster.scheduler.states()


@pytest.mark.parametrize("ended", [False, True], ids=["accepted later", "accepted and ended"])
def test_a_submission_that_seems_to_time_out_is_found(cluster: Cluster, ended: bool) -> None:
    later = '$REAL "$@" > /dev/null' if ended else 'setsid bash -c \'sleep 4; "$0" "$@"\' $REAL "$@" > /dev/null 2>&1 &'
    refuse = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'
    cluster.wrap("sbatch", later, "sleep 1" if ended else "", refuse)
    work = Job("train", "train", ("--version",)) if ended else TRAIN
    submitted = cluster.launch(work)
    assert list(submitted.values()) == cluster.ids()


def test_a_submission_that_seems_to_time_out_is_found_where_the_queue_is_minutes_old(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "SETTLE_SECONDS", 1.0)
    cluster.wrap("squeue", "exit 0")
    cluster.wrap("sbatch", '$REAL "$@" > /dev/null', 'echo "sbatch: error: Socket timed out" >&2; exit 1')
    assert list(cluster.launch(TRAIN).values()) == cluster.ids()


@pytest.mark.parametrize(
    "words", ["$(date)\\n$id\\nYour balance: 17 hours", "Submitted batch job $id on cluster c", "$id;c\\n"],
    ids=["more lines", "not parsable", "a cluster"],
)  # fmt: skip
def test_the_id_is_read_out_of_what_a_site_lets_sbatch_print(cluster: Cluster, words: str) -> None:
    cluster.wrap("sbatch", 'id=$($REAL "$@")', f'printf "{words}\\n"')
    assert list(cluster.launch(TRAIN).values()) == cluster.ids()


def test_a_job_whose_id_sbatch_does_not_print_is_taken_back_and_all_it_prints_is_shown(cluster: Cluster) -> None:
    cluster.wrap("sbatch", '$REAL "$@" > /dev/null', 'echo "thank you"; echo "for your job"; echo warning >&2')
    with pytest.raises(SubmissionError, match="warning thank you\nfor your job"):
        cluster.launch(TRAIN)
    cluster.wait(lambda: not any(state.is_live for state in cluster.scheduler.states().get("train", {}).values()))
    assert len(cluster.ids()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_launch_that_is_ended_amid_sbatch_is_taken_back_whole(cluster: Cluster, number: signal.Signals) -> None:
    begun = cluster.folder / "begun"
    cluster.wrap("sbatch", f'[[ "$*" != *sweep* ]] || {{ touch "{begun}"; sleep 1; }}', 'exec $REAL "$@"')

    def end() -> None:
        cluster.wait(begun.exists)
        os.kill(os.getpid(), number)

    threading.Thread(target=end).start()
    with pytest.raises(KeyboardInterrupt):
        cluster.launch(TRAIN, SWEEP, REPORT)
    assert len(cluster.ids()) == 2
    cluster.wait(lambda: not cluster.scheduler.live_ids())
    assert read_plan_file(cluster.experiment)["submitted"] == {}


def test_settings_of_slurm_in_the_environment_reach_no_command(cluster: Cluster) -> None:
    settings = {
        "SBATCH_JOB_NAME": "other", "SBATCH_WAIT": "1", "SBATCH_PARTITION": "bdgpu", "SBATCH_TIMELIMIT": "1",
        "SBATCH_MEM_PER_NODE": "1", "SBATCH_NO_REQUEUE": "1", "SQUEUE_PARTITION": "bdgpu", "SQUEUE_STATES": "FAILED",
        "SQUEUE_FORMAT": "%i", "SCANCEL_PARTITION": "bdgpu", "SALLOC_PARTITION": "bdgpu",
    }  # fmt: skip
    for name, value in settings.items():
        cluster.monkeypatch.setenv(name, value)
    id_ = cluster.launch(TRAIN)["train"]
    assert cluster.launch(TRAIN) == {}
    shown = cluster.slurm("scontrol", "show", "job", "--oneliner", id_)
    expected = (
        "TimeLimit=00:20:00",
        "Partition=dggpu",
        "MinMemoryNode=2G",
        "Requeue=1",
        f"JobName=train.{cluster.scheduler.mark}",
    )
    assert [text for text in expected if text not in shown] == []
    cluster.scheduler.cancel([id_])
    cluster.wait(lambda: not cluster.scheduler.states()["train"][None].is_live)


def test_a_stopped_job_is_live(cluster: Cluster) -> None:
    id_ = cluster.launch(TRAIN)["train"]
    cluster.wait_for("train", "running")
    cluster.slurm("scancel", "--batch", "--signal=STOP", id_)
    assert cluster.launch(TRAIN) == {}
    cluster.slurm("scancel", "--batch", "--signal=CONT", id_)
    cluster.let_go()
    cluster.wait_for("train", "done")


def test_a_retry_waits_for_a_cancelled_job_that_has_not_ended_yet(cluster: Cluster, capfd) -> None:
    cluster.launch(TRAIN)
    cluster.wait_for("train", "running")
    (cluster.experiment.root / "slow to end").touch()
    cluster.scheduler.cancel(cluster.scheduler.live_ids()["train"])
    assert cluster.launch(TRAIN)
    assert "waiting for the end of train" in capfd.readouterr().err
    cluster.wait(lambda: cluster.status("train").get("attempt") == 2)


def test_a_retry_waits_for_a_report_that_runs_and_another_comes_after_it(cluster: Cluster, capfd) -> None:
    report = Job("report", "report", ("-c", WORK), ("train",), after_any=True)
    train = Job("train", "train", ("-c", "raise SystemExit(1)"))
    cluster.launch(train, report)
    cluster.wait_for("report", "running")
    threading.Timer(2, cluster.let_go).start()
    assert list(cluster.launch(train, report)) == ["train", "report"]
    assert "waiting for the end of report" in capfd.readouterr().err
    cluster.wait(lambda: cluster.status("report").get("attempt") == 2)


def test_of_two_copies_with_one_name_one_starts(cluster: Cluster) -> None:
    """As a submission that comes through hours after it seemed lost."""
    cluster.launch(TRAIN)
    cluster.wait_for("train", "running")
    command = cluster.scheduler.command(TRAIN, (), (None,))
    copy = cluster.slurm(*command).strip()
    assert "Dependency" in cluster.slurm("squeue", "--noheader", f"--jobs={copy}", "--format=%r")


def test_when_slurmd_alone_dies_the_next_attempt_waits_until_the_process_has_left(
    cluster: Cluster, dev_cluster
) -> None:
    id_ = cluster.launch(TRAIN)["train"]
    cluster.wait_for("train", "running")
    first = cluster.status("train")["pid"]
    node = cluster.slurm("squeue", "--noheader", f"--jobs={id_}", "--format=%N").strip()
    os.kill(int((dev_cluster.state / "pids" / node).read_text().split()[0]), signal.SIGKILL)
    try:
        # Else Slurm would notice in its own time.
        cluster.slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=no slurmd")
        cluster.wait(lambda: cluster.status("train")["attempt"] == 2)
        assert Path(f"/proc/{first}").exists()
        cluster.wait(lambda: len(set((cluster.experiment.root / "order").read_text().split())) == 2)
        cluster.let_go()
        cluster.wait_for("train", "done")
    finally:
        dev_cluster.start_node(node)
    order = [int(pid) for pid in (cluster.experiment.root / "order").read_text().split()]
    second = cluster.status("train")["pid"]
    assert order == [first] * order.count(first) + [second] * order.count(second)


# A colleague. The folder of experiments belongs to a group.


@pytest.fixture
def colleague(cluster: Cluster, dev_cluster) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Return what runs a command as another user of the group."""
    if os.getuid() != 0:
        pytest.skip("only root can act as two users")
    user = pwd.getpwnam("nobody")
    # pytest's folders are closed to others, however many there are below the machine's own.
    opened = [dev_cluster.state, cluster.folder, *cluster.folder.parents]
    before = {folder: folder.stat().st_mode for folder in opened if folder.stat().st_mode & 0o005 != 0o005}
    for folder in before:
        folder.chmod(0o755)
    experiments = cluster.folder / "experiments"
    experiments.mkdir()
    os.chown(experiments, 0, user.pw_gid)
    experiments.chmod(0o2775)
    umask = os.umask(0o002)

    # This user may read all files, as those of the tests' Python, and write what the group may.
    rights = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--bounding-set=-all,+dac_read_search")
    become = ("setpriv", "--reuid=nobody", f"--regid={user.pw_gid}", "--clear-groups", *rights)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*become, sys.executable, "-m", "anml", *command, "p/g"], umask=0o002, cwd=REPOSITORY,
            env=cluster.env | {"HOME": "/tmp", "ANML_EXPERIMENTS": str(experiments)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    yield run
    os.umask(umask)
    for folder, mode in before.items():
        folder.chmod(mode)


def test_a_colleague_sees_the_same_jobs_and_cancels_only_his_own(cluster: Cluster, colleague) -> None:
    cluster.slurm("scontrol", "update", "PartitionName=dggpu", "Hidden=YES")
    try:
        cluster.launch(TRAIN, REPORT)
        cluster.wait_for("train", "running")
        shown = colleague("status")
        assert (shown.returncode, "train" in shown.stdout, "running" in shown.stdout) == (0, True, True), shown.stderr
        assert "Nothing to submit" in colleague("retry").stdout
        refused = colleague("cancel")
        assert (refused.returncode, "is root's" in refused.stderr) == (1, True), refused.stderr
    finally:
        cluster.slurm("scontrol", "update", "PartitionName=dggpu", "Hidden=NO")
    assert len(cluster.ids()) == 2


def test_a_colleague_retries_what_another_has_begun(cluster: Cluster, colleague) -> None:
    cluster.profile = cluster.profile.model_copy(update={"python": "/usr/bin/python3"})
    cluster.launch(Job("train", "train", ("-c", "import os; raise SystemExit(os.getuid() == 0)")))
    cluster.wait(lambda: not cluster.scheduler.live_ids())
    retried = colleague("retry")
    assert retried.returncode == 0, retried.stderr
    cluster.wait(lambda: not cluster.scheduler.live_ids())
    shown = cluster.slurm("squeue", "--states=all", "--noheader", f"--jobs={','.join(cluster.ids())}", "--format=%u %T")
    assert sorted(shown.splitlines()) == ["nobody COMPLETED", "root FAILED"]
