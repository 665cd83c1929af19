"""A job is its ids: whatever squeue hides, forgets or says too late, no job is lost, doubled or another's."""

import json
import os
import pwd
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anml.cli.main import main
from anml.config.profile import Escalation
from anml.errors import SubmissionError
from anml.experiment import Experiment
from anml.jobs.launch import read_plan_file
from anml.jobs.plan import Job
from anml.jobs.schedulers import controller, slurm
from tests.slurm.bench import REPOSITORY
from tests.slurm.cluster import ACCOUNTING
from tests.slurm.light import REPORT, SWEEP, TRAIN, WORK, Cluster

pytestmark = pytest.mark.slurm


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


def test_a_cancel_amid_a_launch_waits_for_it_and_leaves_no_job(cluster: Cluster) -> None:
    begun = cluster.folder / "begun"
    cluster.wrap("sbatch", f'touch "{begun}"; sleep 1', 'exec $REAL "$@"')
    cluster.monkeypatch.setenv("ANML_EXPERIMENTS", str(cluster.folder / "experiments"))

    def cancel() -> None:
        cluster.wait(begun.exists)
        main(["cancel", "p/g"])

    canceller = threading.Thread(target=cancel)
    canceller.start()
    assert len(cluster.launch(TRAIN, SWEEP, REPORT)) == 3
    canceller.join()
    cluster.wait(lambda: not cluster.scheduler.live_ids())


@pytest.mark.parametrize(
    "words", ["Slurm backup controller in standby mode", "Job violates accounting/QOS policy (job submit limit, ...)"]
)
def test_a_controller_that_is_away_or_full_is_waited_for_with_its_words(cluster: Cluster, words: str, capfd) -> None:
    refused = cluster.folder / "refused"
    refuse = f'touch "{refused}"; echo "sbatch: error: Batch job submission failed: {words}" >&2; exit 1'
    cluster.wrap("sbatch", f'[ -e "{refused}" ] || {{ {refuse}; }}', 'exec $REAL "$@"')
    assert list(cluster.launch(TRAIN).values()) == cluster.ids()
    assert words in capfd.readouterr().err


def test_while_sbatch_itself_waits_its_words_are_passed_on(cluster: Cluster, capfd) -> None:
    """As it does for minutes where Slurm has as many jobs as it takes (MaxJobCount)."""
    cluster.monkeypatch.setattr(controller, "SAY_SECONDS", 0.5)
    words = "Slurm job queue full, sleeping and retrying"
    cluster.wrap("sbatch", f'echo "sbatch: error: {words}" >&2; sleep 2', 'exec $REAL "$@"')
    assert list(cluster.launch(TRAIN).values()) == cluster.ids()
    assert capfd.readouterr().err.count(words) >= 2


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


def test_a_held_job_is_told_with_what_lets_it_go_and_is_not_submitted_again(cluster: Cluster) -> None:
    """As after `launch failed requeued held`, where a node could not start the job."""
    id_ = cluster.launch(TRAIN)["train"]
    cluster.wait_for("train", "running")
    cluster.slurm("scontrol", "requeuehold", id_)
    cluster.wait(lambda: f"`scontrol release {id_}`" in cluster.scheduler.states()["train"][None].words)
    assert cluster.launch(TRAIN) == {}
    assert cluster.states() == {"train": "pending"}
    cluster.slurm("scontrol", "release", id_)
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


def forget(cluster: Cluster) -> None:
    """Let Slurm know none of its jobs, as some minutes after their end."""
    cluster.wrap("squeue", "exit 0")
    cluster.wrap("scontrol", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')


def test_a_job_that_writes_its_status_runs_whatever_slurm_has_forgotten(cluster: Cluster) -> None:
    cluster.launch(TRAIN)
    cluster.wait_for("train", "running")
    forget(cluster)
    assert cluster.states() == {"train": "running"}
    with pytest.raises(SubmissionError, match="still writes its status"):
        cluster.launch(TRAIN)
    assert len(cluster.ids()) == 1


def test_an_interrupted_job_stays_so_when_slurm_has_forgotten_it(cluster: Cluster, capfd) -> None:
    id_ = cluster.launch(TRAIN)["train"]
    cluster.wait_for("train", "running")
    cluster.slurm("scancel", id_)
    cluster.wait_for("train", "interrupted")
    cluster.monkeypatch.setenv("ANML_EXPERIMENTS", str(cluster.folder / "experiments"))
    cluster.monkeypatch.setenv("COLUMNS", "200")  # Else the words may be cut into lines.
    assert main(["status", "p/g"]) == 1
    forget(cluster)
    assert main(["status", "p/g"]) == 1
    assert capfd.readouterr().out.count("stopped by SIGTERM") == 2


def test_a_job_that_gets_no_further_in_its_time_is_requeued_with_more(cluster: Cluster) -> None:
    cluster.profile = cluster.profile.model_copy(update={"escalate": Escalation(time=("00:40:00",))})
    id_ = cluster.launch(TRAIN, REPORT)["train"]
    cluster.wait_for("train", "running")
    cluster.slurm("scancel", "--batch", "--signal=USR1", id_)
    cluster.wait(lambda: cluster.status("train")["attempt"] == 2)
    assert "TimeLimit=00:40:00" in cluster.slurm("scontrol", "show", "job", id_)
    cluster.let_go()
    cluster.wait_for("report", "done")


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
    if ACCOUNTING:  # An account that he has already is no reason to fail.
        account = ["sacctmgr", "--immediate", "add", "user", "nobody", "account=anml"]
        subprocess.run(account, env=cluster.env, capture_output=True, check=False)
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


def test_files_that_a_server_shows_as_anothers_change_nothing(cluster: Cluster) -> None:
    """A server that squashes root shows root's files as nobody's."""
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    ids = cluster.launch(TRAIN, REPORT)
    cluster.wait_for("train", "running")
    nobody = pwd.getpwnam("nobody")
    for path in (cluster.experiment.root, *cluster.experiment.root.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    cluster.monkeypatch.setenv("ANML_EXPERIMENTS", str(cluster.folder / "experiments"))
    assert cluster.launch(TRAIN, REPORT) == {}
    assert main(["status", "p/g"]) == 0
    main(["cancel", "p/g"])
    cluster.wait(lambda: not cluster.scheduler.live_ids())
    assert cluster.ids() == sorted(ids.values(), key=int)
