"""Reading what other machines write: a file may be stale or late, and one that cannot be read is not absent."""

import errno
import threading
from pathlib import Path

import pytest

from anml import atomic
from anml.atomic import LATENCY_VARIABLE, read_json, wait_until, write_json


def test_a_stale_file_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only NFS answers so: here its first two answers are played."""
    file = tmp_path / "status.json"
    write_json(file, {"state": "done"})
    answers = [errno.ESTALE, errno.ESTALE]
    really = Path.read_text

    def answer(path: Path, **options: str) -> str:
        if answers:
            raise OSError(answers.pop(), "stale file handle", str(path))
        return really(path, **options)

    monkeypatch.setattr(Path, "read_text", answer)
    monkeypatch.setattr(atomic, "_PAUSE_SECONDS", 0.0)
    assert read_json(file) == {"state": "done"}


def test_a_stale_folder_is_waited_for_like_a_late_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [OSError(errno.ESTALE, "stale file handle"), True]

    def look() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(atomic, "_PAUSE_SECONDS", 0.0)
    assert wait_until(look, tmp_path, 20)


def test_what_cannot_be_read_is_not_absent(tmp_path: Path) -> None:
    (tmp_path / "status.json").mkdir()
    with pytest.raises(OSError, match=r"status.json"):
        read_json(tmp_path / "status.json")
    assert read_json(tmp_path / "absent.json") == {}


@pytest.mark.parametrize(("seconds", "came"), [("20", True), ("0", False)])
def test_a_late_file_is_waited_for_as_long_as_the_script_of_a_job_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: str, came: bool
) -> None:
    monkeypatch.setenv(LATENCY_VARIABLE, seconds)
    late = threading.Timer(0.3, write_json, [tmp_path / "late.json", {}])
    late.start()
    assert wait_until((tmp_path / "late.json").exists, tmp_path) is came
    late.join()
