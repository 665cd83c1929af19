"""The short form of the soak: `make soak` runs the long one."""

import tempfile
from pathlib import Path

import pytest

from tests.slurm.soak import double_runs, soak

pytestmark = pytest.mark.slurm


def test_ten_experiments_survive_two_minutes_of_faults(dev_cluster) -> None:
    """dev_cluster: the test is left out where there is no Slurm. The soak has a cluster of its own."""
    with tempfile.TemporaryDirectory(prefix="anml-soak-") as folder:
        wrong = soak(Path(folder), experiments=10, minutes=2, seed=1)
    assert not any(wrong.values()), wrong


def test_two_allocations_of_one_job_at_the_same_time_are_seen(tmp_path: Path) -> None:
    book = tmp_path / "jobs.log"
    line = (
        "JobId={} UserId=a(1) GroupId=a(1) Name={} JobState=COMPLETED Partition=p TimeLimit=2 StartTime={} EndTime={}\n"
    )
    times = [f"2026-01-01T00:00:{second:02d}" for second in range(60)]
    book.write_text(
        line.format(1, "a.x", times[0], times[9])
        + line.format(2, "a.x", times[9], times[20])
        + line.format(3, "b.x", times[0], times[30])
        + line.format(4, "b.x", times[5], times[6])
        + line.format(5, "c.x", "Unknown", times[6])
        + line.format(6, "d.x", times[0], times[9])
        + line.format(6, "d.x", times[0], times[8])
    )
    assert list(double_runs(book)) == ["b.x"]
