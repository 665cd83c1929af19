"""docs/extending.md is true: the files that it shows are launched as they stand there."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TEXT = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
# By name, which is the first line of a block.
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yml))\n(.*?)```", TEXT, re.DOTALL))


def test_every_block_names_its_file() -> None:
    assert len(FILES) == len(re.findall(r"```(?:python|yaml)\n", TEXT)) > 0


def test_examples_are_short() -> None:
    lines = {name: len([line for line in content.splitlines() if line.strip()]) for name, content in FILES.items()}
    assert {name: count for name, count in lines.items() if count >= 25} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".yml")])
def test_an_example_is_trained_evaluated_and_reported(name: str, run: Callable, experiments: Path) -> None:
    folder = experiments.parent / "configs"
    folder.mkdir()
    for file, content in FILES.items():
        (folder / file).write_text(content.replace("!include ", f"!include {REPOSITORY / 'configs'}/"))
    is_profile = "scheduler:" in FILES[name]
    config, cluster = (REPOSITORY / "configs/quickstart.yml", folder / name) if is_profile else (folder / name, "local")
    launch = ("launch_train.py", "-c", config, "--project", "p", "--group", "g", "--cluster", cluster)
    done = run(*launch, "--smoke-test", "--wandb", "disabled")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (experiments / "p" / "g" / "report" / "index.html").is_file()
    status = run("-m", "anml", "status", experiments / "p" / "g")
    assert status.returncode == 0, status.stdout + status.stderr
