"""`python -m anml usage`: what jobs asked for, what they used."""

from pathlib import Path

from anml.config.profile import ClusterProfile, JobOptions
from anml.jobs.job_status import JobStatus, StatusFile, read_status, write_status
from anml.jobs.launch import Launch, record
from anml.jobs.plan import Job, Plan
from tests.report.conftest import SMALL, start_experiment


def test_asked_used_and_enough_are_shown(command, experiments: Path) -> None:
    builder = start_experiment(experiments / "p" / "g", SMALL)
    plan = Plan((Job("a", "train", ()), Job("b", "train", ()), Job("c", "evaluate", ()), Job("d", "report", ())))
    sbatch = JobOptions(
        train={"mem": "16G", "time": "2-00:00:00", "gres": "gpu:1"}, evaluate={"mem-per-cpu": "4G", "gres": "gpu:1"}
    )
    profile = ClusterProfile(name="x", scheduler="slurm", device="cuda", sbatch=sbatch)
    record(Launch(builder.config, builder.experiment, profile, "disabled", plan), {})
    for name, gb, gpu, seconds in (("a", 3.0, 5.25, 3600), ("b", 2.0, 1.0, 7200), ("c", 0.5, 0.0, 90)):
        status = JobStatus("done", attempt=1, busy_seconds=seconds, memory_gb=gb, gpu_memory_gb=gpu)
        write_status(builder.experiment.job(name).status, status)
    rows = [" ".join(line.split()) for line in command("usage", "p/g").out.splitlines()]
    assert rows[1:] == [
        "2 train memory 16G 3.0 GB --mem=4G",
        "time 48 h 00 min 2 h 00 min --time=0-02:30:00",
        "GPU memory 1 GPU 5.2 GB",
        "1 evaluate memory 4G per CPU 0.5 GB --mem=1G",
        "time default 1 min 30 s --time=0-00:02:00",
        "GPU memory 1 GPU 0.0 GB no GPU",
    ]


def test_a_job_measures_its_memory_over_all_attempts(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    StatusFile(path).end("interrupted")
    used = read_status(path).memory_gb
    assert 0.01 < used < 100
    write_status(path, JobStatus("interrupted", memory_gb=200.0))
    StatusFile(path).end("done")
    assert read_status(path).memory_gb == 200.0
