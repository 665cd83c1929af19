"""A command that cannot start says why in one line: this Python is too old, or lacks a package."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from anml import __version__
from anml.cli.main import run_command
from anml.errors import missing_package

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = ["launch_train.py", "train_anml.py", "eval_anml.py"]
READ_BY_OLD_PYTHONS = [*SCRIPTS, "anml/__init__.py", "anml/__main__.py"]

# Starts a script, or a package's __main__, as an older Python would.
AS_PYTHON_3_8 = """
import runpy, sys
sys.version_info, sys.version = (3, 8, 18, "final", 0), "3.8.18 (default)"
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

COMMANDS = [
    ["launch_train.py", "-c", "configs/quickstart.yml", "--project", "p", "-n"],
    ["train_anml.py", "-c", "configs/quickstart.yml"],
    ["eval_anml.py", "-c", "configs/eval-omni-anml.yml", "-m", "trained_anmls/omniglot-anml"],
    ["-m", "anml", "status", "p/g"],
]


@pytest.mark.parametrize("file", READ_BY_OLD_PYTHONS)
def test_old_pythons_can_read(file: str) -> None:
    ast.parse((REPOSITORY / file).read_text(encoding="ascii"), feature_version=(3, 6))


@pytest.mark.parametrize("file", [*SCRIPTS, "anml/__main__.py"])
def test_an_old_python_is_told_first(run: Callable, file: str) -> None:
    done = run("-c", AS_PYTHON_3_8, file, "--no-such-option")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert all(text in done.stderr for text in ("3.11", "3.8.18", sys.executable, "docs/install.md"))


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments[:3]))
def test_a_missing_package_is_told_in_one_line(run: Callable, arguments: list[str]) -> None:
    done = run("-S", *arguments)  # Without site-packages.
    assert (done.returncode, done.stdout) == (1, "")
    *notes, line = done.stderr.splitlines()
    assert all(note.startswith("note: ") for note in notes)
    assert line.startswith("error: the package ")
    assert all(text in line for text in (sys.executable, ".venv/bin/activate", "docs/install.md"))


@pytest.mark.parametrize(
    "arguments", [[*COMMANDS[0][:-1], "--cluster", "local"], COMMANDS[2]], ids=lambda arguments: arguments[0]
)
def test_a_package_that_only_the_work_needs_is_told_in_one_line(
    run: Callable, without: Callable, experiments: Path, arguments: list[str]
) -> None:
    done = run(*arguments, PYTHONPATH=without("torch"))
    assert done.returncode == 1
    assert [line.count("the package torch ") for line in done.stderr.splitlines() if line[:6] != "note: "] == [1]


@pytest.mark.parametrize("module", ["anml.cli.no_such_module", "no_such_plug_in"])
def test_a_missing_module_that_is_no_package_of_ours_keeps_its_traceback(module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=module):
        run_command(lambda _: import_module(module).main)


def test_what_a_plug_in_lacks_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plug_in_without_its_package.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError) as caught:
        import_module("plug_in_without_its_package")
    assert missing_package(caught.value) == ""


@pytest.mark.parametrize("command", [["-m", "anml"], *([script] for script in SCRIPTS)], ids=" ".join)
def test_every_command_has_a_version(run: Callable, command: list[str]) -> None:
    done = run(*command, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"anml {__version__}\n", "")
