"""The table of commands: their help, their completion, and where a command finds a user's own modules."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from anml.cli.main import COMMANDS, GROUPS, make_parser, run_command

REPOSITORY = Path(__file__).resolve().parents[2]
SHOWN = [name for title, commands in GROUPS.items() if title for name in commands]

# What a --help must not import: each costs more than Python's own start.
SLOW = {"pydantic", "yaml", "rich", "numpy", "torch", "wandb"}
TELL_SLOW = f"""
import sys
from anml.__main__ import start
try:
    start(*sys.argv.pop(1).split("+"))
finally:
    print("imported:", *sorted({SLOW} & set(sys.modules)))
"""

FIND_MODULE = """
import sys
from anml.__main__ import start
sys.argv[1:] = ["--version"]
start("anml")
from anml.plugins import load_object
print(load_object("my_parts:NAME"))
"""


def test_a_gpu_without_memory_ends_a_command_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    def short_of_memory(_: Sequence[str]) -> int:
        raise torch.OutOfMemoryError(reason)

    reason = "CUDA out of memory. Tried to allocate 2.00 MiB.\nMore of that."
    assert run_command(short_of_memory) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "error: the GPU's memory is too small: CUDA out of memory. Tried to allocate 2.00 MiB.\nAsk"
    )


def test_help_shows_every_command_with_an_example(command) -> None:
    shown = command("--help")
    assert shown.code == 0
    missing = [name for name in SHOWN if f"\n             python -m anml {COMMANDS[name].example}" not in shown.out]
    assert not missing


def test_every_command_has_help_with_its_example(command) -> None:
    wrong = [name for name in COMMANDS if (shown := command(name, "--help")).code or f"anml {name}" not in shown.out]
    assert not wrong


def test_every_example_is_understood() -> None:
    for name in SHOWN:
        line = COMMANDS[name].example.partition("  ")[0].split()
        assert line[0] == name
        assert isinstance(make_parser(name).parse_args(line[1:]), argparse.Namespace)


@pytest.mark.parametrize("program", ["launch_train.py+launch", "train_anml.py+train", "eval_anml.py+evaluate", "anml"])
def test_help_imports_nothing_slow(run, program: str) -> None:
    done = run("-c", TELL_SLOW, program, "--help")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "imported:"), done.stderr
    assert f"usage: {program.partition('+')[0]} " in done.stdout


def test_an_unknown_command_is_told_with_the_nearest(command) -> None:
    shown = command("statsu", "p/g")
    assert (shown.code, shown.out, "'statsu'; did you mean 'status'?" in shown.err) == (2, "", True)


def test_no_command_is_answered_with_all_of_them(command) -> None:
    assert (command().code, "status" in command().out) == (2, True)


def test_only_a_launch_takes_options_of_sbatch(command) -> None:
    shown = command("status", "p/g", "--mem=3G")
    assert (shown.code, "--mem=3G" in shown.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [("co", "compare config completion"), ("launch --cl", "--cluster"), ("export --h", "--help --half")],
)
def test_a_shell_completes_commands_and_options(command, words: str, expected: str) -> None:
    script = command("completion").out
    line = f"COMP_WORDS=(anml {words}); COMP_CWORD={len(words.split())}; _anml; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected.split()


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yml", "configs/quickstart.yml"])
def test_a_shipped_config_is_found_from_any_folder(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_parser("train").parse_args(["-c", name]).config == REPOSITORY / "configs" / "quickstart.yml"


def test_a_config_that_exists_wins_over_a_shipped_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yml").touch()
    assert make_parser("train").parse_args(["-c", "quickstart.yml"]).config == Path("quickstart.yml")


def test_modules_of_the_current_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "my_parts.py").write_text("NAME = 'a part'\n")
    done = subprocess.run(
        [sys.executable, "-P", "-c", FIND_MODULE], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["a part"], done.stderr


def test_a_config_is_checked_by_this_package_whatever_the_current_folder_holds(tmp_path: Path) -> None:
    (tmp_path / "anml").mkdir()
    (tmp_path / "anml" / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    done = subprocess.run(
        [sys.executable, REPOSITORY / "launch_train.py", "-c", "quickstart", "--project", "p", "--cluster", "local",
         "--dry-run", "--check", "--smoke-test"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
