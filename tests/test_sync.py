"""W&B runs recorded offline by several jobs are one run at the service: real wandb, a small service on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anml.tracking.offline import _read_records, _write_records, merge, recorded_files
from tests.wandb_server import Service, serving

pytestmark = pytest.mark.slow

# A job: its first step, the one behind its last, a value that tells it from others, and whether it is killed.
JOB = """
import os, signal, sys, time
from pathlib import Path
from anml.config.training import TrainConfig
from anml.experiment import Experiment
from anml.tracking import Tracker
root, first, end, value, fate = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
tracker = Tracker(Experiment(root), TrainConfig(dataset="glyphs", model="anml"), "train", "train", "offline")
tracker.catch_up({"step": step, "loss": value} for step in range(first))
for step in range(first, end):
    tracker.log({"loss": value, "note": "x" * 20_000}, step=step)
if fate == "killed":
    time.sleep(2)  # Until wandb has written it.
    os.kill(0, signal.SIGKILL)
tracker.finish()
"""
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}


def job(root: Path, first: int, end: int, value: int, fate: str = "ends") -> None:
    command = [sys.executable, "-c", JOB, str(root), *map(str, (first, end, value)), fate]
    subprocess.run(command, env=ENVIRONMENT, start_new_session=True, capture_output=True, check=False)


def sync(root: Path, service: Service) -> str:
    environment = ENVIRONMENT | service.environment
    command = [sys.executable, "-m", "anml", "sync", str(root)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_what_jobs_record_of_one_run_arrives_once_and_in_order(tmp_path: Path) -> None:
    root = tmp_path / "p/g"
    root.mkdir(parents=True)
    (root / "config.yml").touch()
    (root / "environment.json").write_text(json.dumps({"launch_id": "f00d"}))
    job(root, 0, 4, value=1)
    job(root, 4, 9, value=2, fate="killed")  # Its last checkpoint is that of step 8.
    with serving() as service:
        assert "its job has not ended" in sync(root, service)
        [history] = service.history.values()
        assert [line["_step"] for line in history] == list(range(7))  # wandb keeps the latest lines in memory.
        job(root, 9, 11, value=3)
        assert "not ended" not in sync(root, service)
        assert [line["_step"] for line in history] == list(range(11))
        assert [line["loss"] for line in history] == [2] * 7 + [3] * 4
        before = service.requests
        assert "was sent before" in sync(root, service)
        assert service.requests == before
    files = recorded_files(root / "wandb/wandb").popitem()[1]
    files[-1].write_bytes(files[-1].read_bytes()[:-9])
    half = merge(files)
    assert (half.last_step, half.has_ended) == (10, False)


@pytest.mark.parametrize("sizes", [[10], [32768 - 7 - 7 - 5, 3], [100_000], [32768 - 7 - 7 - 7, 70_000, 1]])
def test_records_are_cut_into_blocks_and_put_together_again(sizes: list[int]) -> None:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    records = [Record(uuid="x" * size, num=number) for number, size in enumerate(sizes)]
    content = b":W&B..." + _write_records(record.SerializeToString() for record in records)
    assert list(_read_records(content)) == records
