"""The documents are true: their commands run, their links lead somewhere, their tables name what exists."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from anml.config.evaluation import EvalConfig
from anml.config.load import load_train_config
from anml.config.training import TrainConfig

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def shell_lines(text: str) -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", text.replace("\\\n", " "), flags=re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


def test_launch_commands_of_the_readme_are_accepted(run: Callable, experiments: Path) -> None:
    launches = [line for line in shell_lines(README) if line[:2] == ["python", "launch_train.py"]]
    refused = {" ".join(line): done.stderr for line in launches if (done := run(*line[1:], "--dry-run")).returncode}
    assert launches
    assert not refused, "\n".join(refused.values())


@pytest.mark.omniglot
def test_evaluation_command_of_the_readme_works_on_the_shipped_model(run: Callable, omniglot_path: str) -> None:
    (line,) = [line for line in shell_lines(README) if line[:2] == ["python", "eval_anml.py"]]
    done = run(*line[1:], ANML_DATA=omniglot_path)
    assert done.returncode == 0, done.stderr
    (accuracy,) = re.findall(r"test (\d+\.\d)%", done.stdout)
    assert float(accuracy) > 85


def test_module_commands_of_the_readme_exist(run: Callable) -> None:
    commands = {line[3] for line in shell_lines(README) if line[1:3] == ["-m", "anml"]}
    assert commands
    assert [command for command in sorted(commands) if run("-m", "anml", command, "--help").returncode] == []


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = {line[1] for document in DOCUMENTS for line in shell_lines(document.read_text()) if line[0] == "make"}
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


def test_the_environment_is_activated_before_the_first_python_of_the_readme() -> None:
    lines = [line for line in shell_lines(README) if line[0] in ("source", "python")]
    assert lines[0] == ["source", ".venv/bin/activate"]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as a user would, also where make itself runs this test."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "VENV"))}
    return subprocess.run(["make", *arguments], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)


def test_make_demo_ends_with_how_to_activate_the_environment() -> None:
    done = make("-n", "demo")
    assert "source .venv/bin/activate" in done.stdout.splitlines()[-1]


def test_make_setup_refuses_an_old_python_and_names_it(tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text(
        "#!/bin/sh\n"
        f"exec {shlex.quote(sys.executable)} -c 'import sys; "
        'sys.version_info, sys.version = (3, 8, 18), "3.8.18 (default)"; exec(sys.argv[1])\' "$2"\n'
    )
    old.chmod(0o755)
    done = make("setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert all(text in done.stderr for text in (str(old), "3.8.18", "3.11", "PYTHON="))
    assert not (tmp_path / "venv").exists()


def test_links_lead_somewhere() -> None:
    links = [
        (document, link)
        for document in DOCUMENTS
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
        if not link.startswith("http")
    ]
    assert [f"{document.name}: {link}" for document, link in links if not (document.parent / link).exists()] == []


def test_every_key_is_documented() -> None:
    text = (REPOSITORY / "docs" / "configs.md").read_text(encoding="utf-8")
    keys = (set(TrainConfig.model_fields) | set(EvalConfig.model_fields)) - {"project", "entity", "group", "cluster"}
    assert sorted(key for key in keys if f"`{key}`" not in text) == []


def load_example(place: int, folder: Path) -> TrainConfig:
    """Load one of the configs that docs/configs.md shows."""
    text = (REPOSITORY / "docs" / "configs.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert len(examples) == 4
    path = folder / "example.yml"
    path.write_text(examples[place].replace("!include ", f"!include {REPOSITORY / 'configs'}/"))
    return load_train_config(path).config


def test_the_validation_of_the_documents_loads(tmp_path: Path) -> None:
    config = load_example(2, tmp_path)
    assert (list(config.eval), config.num_held_out_classes) == (["olft-validation"], 300)
    assert config.eval["olft-validation"].is_validation


def test_the_learned_rates_of_the_documents_load(tmp_path: Path) -> None:
    config = load_example(1, tmp_path)
    assert (config.inner.learns_rates, config.inner.momentum, config.inner_lr) == (True, 0.5, 0.1)


def test_the_choice_of_the_documents_loads(tmp_path: Path) -> None:
    config = load_example(3, tmp_path)
    assert set(config.eval) == {"olft", "olft-validation"}
    assert config.eval["olft"].choose


def test_the_variation_of_the_documents_loads(tmp_path: Path) -> None:
    config = load_example(0, tmp_path)
    base = load_train_config(REPOSITORY / "configs" / "train-omni-anml.yml").config
    assert list(config.eval) == [*base.eval, "olft-100"]
    assert config.eval["olft"] == base.eval["olft"].model_copy(update={"runs": 3})
    assert config.eval["olft-100"] == base.eval["olft"].model_copy(update={"classes": (100,)})
    assert config.eval["unfrozen"].lr == (0.001, 0.0001)
    assert config.model_args == {**base.model_args, "nm_chs": 64}
    assert (config.inner_lr, config.display_name) == (0.03, "anml-slow")
