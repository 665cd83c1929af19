"""docs/features.md is true: what it names exists, and every config has a row."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs"
TEXT = (REPOSITORY / "docs" / "features.md").read_text(encoding="utf-8")


def rows() -> Iterator[list[str]]:
    """Yield the cells of every row of every table: what, config or file, test, remark."""
    for line in TEXT.splitlines():
        if line.startswith("| ") and not line.startswith(("| ---", "| what")):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


ROWS = list(rows())


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    if not path.exists():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_the_tables_hold_rows_of_four_cells() -> None:
    assert len(ROWS) > 60
    assert [row for row in ROWS if len(row) != 4] == []


def test_every_row_names_tests_that_exist() -> None:
    missing = []
    for what, _, tests, _ in ROWS:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", tests)
        wrong = [f"{file}::{name}" for file, name in named if name not in names_of_tests(REPOSITORY / "tests" / file)]
        missing += [f"{what}: {wrong or 'names no test'}"] if wrong or not named else []
    assert not missing, "\n".join(missing)


def test_every_row_names_configs_that_exist() -> None:
    missing = []
    for what, configs, _, _ in ROWS:
        named = re.findall(r"`([\w./-]+\.(?:yml|txt|toml|md))`", configs)
        wrong = [name for name in named if not any((root / name).is_file() for root in (CONFIGS, REPOSITORY))]
        if wrong or not (named or configs in ("all", "any", "any, `--set`")):
            missing.append(f"{what}: {wrong or configs}")
    assert not missing, "\n".join(missing)


def test_every_config_has_a_row() -> None:
    names = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yml")}
    assert sorted(name for name in names if not any(f"`{name}`" in row[1] for row in ROWS)) == []
