"""Command lines as a user types them, run inside the test's own process: quick, and every bit as real."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from anml.cli.main import main, run_command


class Outcome(NamedTuple):
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], experiments: Path
) -> Callable[..., Outcome]:
    """Run a command by its name with arguments, errors worded and exit code included."""
    monkeypatch.delenv("ANML_DATA", raising=False)

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        try:
            code = run_command(main)
        except SystemExit as end:  # argparse's own way out.
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run
