"""The package does not grow unnoticed: files, lines, loose modules, functions.

Lower these numbers when the package shrinks. A new capability may raise them, knowingly.
"""

import ast
from pathlib import Path
from statistics import median

PACKAGE = Path(__file__).resolve().parent.parent / "anml"
MOST_FILES = 145
MOST_LOOSE_MODULES = 10
MOST_FILES_UNDER_40_LINES = 8
MOST_LINES_OF_A_FILE = 400
MOST_LINES = 24_736
MEDIAN_LINES_OF_A_FUNCTION = 8


def lines_of_functions(path: Path) -> list[int]:
    """Count from `def` to the last line, as a reader does: docstring and comments too, decorators apart."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]


def test_the_package_keeps_its_sizes() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sorted(PACKAGE.rglob("*.py"))}
    loose = [path.name for path in lines if path.parent == PACKAGE and not path.name.startswith("__")]
    short = [path.name for path, count in lines.items() if count < 40 and path.name != "__init__.py"]
    long = [f"{path.relative_to(PACKAGE)}: {count}" for path, count in lines.items() if count > MOST_LINES_OF_A_FILE]
    typical = median(count for path in lines for count in lines_of_functions(path))
    problems = {
        f"{len(lines)} files, at most {MOST_FILES}": len(lines) > MOST_FILES,
        f"{sum(lines.values())} lines, at most {MOST_LINES}": sum(lines.values()) > MOST_LINES,
        f"{len(loose)} loose modules {loose}, at most {MOST_LOOSE_MODULES}": len(loose) > MOST_LOOSE_MODULES,
        f"{len(short)} files under 40 lines {short}": len(short) > MOST_FILES_UNDER_40_LINES,
        f"files over {MOST_LINES_OF_A_FILE} lines {long}": bool(long),
        f"median function {typical} lines": typical > MEDIAN_LINES_OF_A_FUNCTION,
    }
    exceeded = [problem for problem, is_one in problems.items() if is_one]
    assert not exceeded, "\n".join(exceeded)
