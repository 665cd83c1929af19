"""Whether a recorded process still runs: by host, boot, id and start, never by the id alone."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from anml.jobs import process
from anml.jobs.process import Process, recorded_process, this_process


@pytest.fixture(params=["proc", "ps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Ask /proc, and `ps` as on systems that have no /proc."""
    if request.param == "ps":
        monkeypatch.setattr(process, "_PROC", tmp_path / "nowhere")
    return request.param


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


def old_record(pid: int) -> dict:
    """Return what versions before this check wrote down."""
    return {"host": socket.gethostname(), "pid": pid}


@pytest.mark.usefixtures("way")
def test_a_process_is_alive_until_it_ends_even_when_nobody_waits_for_it(tmp_path: Path, sleeper) -> None:
    record = tmp_path / "record.json"
    record.touch()
    known = recorded_process(old_record(sleeper.pid), record)
    assert (known.presence, known.pid_started > 0) == ("alive", True)
    sleeper.kill()
    deadline = time.monotonic() + 20
    while known.presence == "alive" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert known.presence == "gone"  # As a zombie.
    sleeper.wait()
    assert known.presence == "gone"


@pytest.mark.usefixtures("way")
def test_a_record_survives_json(tmp_path: Path) -> None:
    assert recorded_process(json.loads(json.dumps(asdict(this_process()))), tmp_path) == this_process()


@pytest.mark.usefixtures("way")
def test_a_later_process_with_the_same_id_is_another() -> None:
    assert this_process().presence == "alive"
    assert replace(this_process(), pid_started=this_process().pid_started + 1).presence == "gone"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("changes", "presence"),
    [
        ({"host": "elsewhere"}, "unknown"),
        ({"host": "elsewhere", "boot": "another"}, "unknown"),
        ({"boot": "another"}, "gone"),
        ({"pid_space": "pid:[1]"}, "unknown"),
        ({"pid": 0}, "unknown"),
    ],
)
def test_where_and_when_a_process_ran_decide_what_can_be_told(changes: dict, presence: str) -> None:
    assert replace(this_process(), **changes).presence == presence


@pytest.mark.usefixtures("way")
def test_of_a_record_without_a_start_the_age_of_its_file_tells_the_process_from_a_stranger(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.touch()
    assert recorded_process(old_record(os.getpid()), record).presence == "alive"
    os.utime(record, (1e9, 1e9))
    assert recorded_process(old_record(os.getpid()), record).presence == "gone"


@pytest.mark.usefixtures("way")
def test_the_command_line_of_a_process(sleeper) -> None:
    deadline = time.monotonic() + 20
    while (line := Process(pid=sleeper.pid).command_line) != "sleep 60" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert line == "sleep 60"
    sleeper.kill()
    sleeper.wait()
    assert Process(pid=sleeper.pid).command_line == ""
