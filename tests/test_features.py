"""docs/features.md is true: what it names exists, and every config has a row."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TEXT = (REPOSITORY / "docs" / "features.md").read_text(encoding="utf-8")


def rows() -> Iterator[list[str]]:
    """Yield the cells of every row of every table: what, config or file, test, remark."""
    for line in TEXT.splitlines():
        if line.startswith("| ") and not line.startswith(("| ---", "| what")):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


ROWS = list(rows())


def names_of_tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_the_tables_hold_rows_of_four_cells() -> None:
    assert len(ROWS) > 60
    assert [row for row in ROWS if len(row) != 4] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_row_names_tests_that_exist(row: list[str]) -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row[2])
    assert named
    assert [name for file, name in named if name not in names_of_tests(REPOSITORY / "tests" / file)] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_row_names_configs_that_exist(row: list[str]) -> None:
    named = re.findall(r"`([\w./-]+\.(?:yml|txt|toml|md))`", row[1])
    assert named or row[1] in ("all", "any", "any, `--set`")
    places = (REPOSITORY / "configs", REPOSITORY)
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []


def test_every_config_has_a_row() -> None:
    configs = REPOSITORY / "configs"
    names = {path.relative_to(configs).as_posix() for path in configs.rglob("*.yml")}
    assert sorted(name for name in names if not any(f"`{name}`" in row[1] for row in ROWS)) == []
