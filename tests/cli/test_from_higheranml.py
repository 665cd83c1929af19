"""docs/from-higheranml.md is true: its commands are understood, its keys exist."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from anml.cli.main import COMMANDS, make_parser
from anml.config.evaluation import EvalConfig
from anml.config.higheranml import EVAL_KEYS, IGNORED_EVAL_KEYS, TRAIN_KEYS
from anml.config.load import load_train_config
from anml.config.training import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = (REPOSITORY / "docs" / "from-higheranml.md").read_text(encoding="utf-8")
SCRIPTS = {"launch_train.py", "train_anml.py", "eval_anml.py"}


def table(heading: str) -> list[tuple[str, str]]:
    """Return the rows of the table under a heading: what there was, what there is."""
    section = DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [(old, new) for old, new in rows[2:]]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


COMMAND_LINES = [shlex.split(c) for _, new in table("Commands") for c in code(new) if c.startswith("python ")]


def lines_of(script: str) -> list[list[str]]:
    lines = [line[2:] for line in COMMAND_LINES if line[1] == script]
    assert lines
    return lines


@pytest.mark.parametrize("line", lines_of("launch_train.py"), ids=" ".join)
def test_launches_are_accepted(command: Callable, line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    shown = command("launch", *line, "--dry-run")
    assert shown.code == 0, shown.err


@pytest.mark.parametrize("line", lines_of("train_anml.py"), ids=" ".join)
def test_trainings_are_understood(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    options = make_parser("train").parse_args(line)
    assert load_train_config(options.config, options.overrides).config.total_steps in (1000, 25000)


@pytest.mark.parametrize("line", lines_of("eval_anml.py"), ids=" ".join)
def test_evaluations_are_understood_up_to_the_checkpoint(
    command: Callable, line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    shown = command("evaluate", *line)
    assert shown.code == 2
    problems = [line for line in shown.err.splitlines() if line != "2 problems:"]
    assert all("no checkpoint here" in problem or "no such file" in problem for problem in problems)


def test_every_other_command_exists() -> None:
    others = [line for line in COMMAND_LINES if line[1] not in SCRIPTS]
    assert {tuple(line[1:3]) for line in others} == {("-m", "anml")}
    assert {line[3] for line in others} <= set(COMMANDS)


def test_every_key_that_is_renamed_or_ignored_is_listed() -> None:
    listed = {old for row in table("Keys of a config") for old in code(row[0])}
    assert {*TRAIN_KEYS, *EVAL_KEYS, *IGNORED_EVAL_KEYS} <= listed


def test_every_new_key_exists() -> None:
    known = {*TrainConfig.model_fields, *EvalConfig.model_fields, "eval_anml.py -c CONFIG"}
    named = {key.partition(":")[0] for row in table("Keys of a config") for key in code(row[1])}
    assert named <= known


def test_omniimage_may_be_normalised_as_there(tmp_path: Path) -> None:
    code_block = DOCUMENT.split("```python\n")[1].split("```")[0]
    (tmp_path / "omniimage.py").write_text(code_block.replace("\n  ", "\n").strip())
    (tmp_path / "train.yml").write_text("dataset: ./omniimage.py:OMNIIMAGE20\nmodel: sanml\n")
    facts = load_train_config(tmp_path / "train.yml").config.facts
    assert (facts.examples_per_class, facts.mean_std) == (20, ((0.48751324, 0.46667117, 0.41095525),
                                                               (0.26073888, 0.2528451, 0.2677635)))  # fmt: skip
