"""Configs written by a test, read as a user's would be."""

from collections.abc import Callable
from pathlib import Path

import pytest

from anml.config.load import LoadedTrain, load_eval_configs, load_train_config
from anml.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder (so that messages read `train.yml:3`), and no data path from outside."""
    monkeypatch.delenv("ANML_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(here: Path) -> Callable[[str, str], Path]:
    """Write a file into the current folder; returns its relative path."""

    def write_file(name: str, text: str) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def load(write: Callable[[str, str], Path]) -> Callable[..., LoadedTrain]:
    """Load a training config from its text and --set overrides."""
    return lambda text, *overrides: load_train_config(write("train.yml", text), overrides)


@pytest.fixture
def problems(load: Callable[..., LoadedTrain]) -> Callable[..., list[str]]:
    """Return what is wrong with a training config."""

    def find(text: str, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return list(caught.value.problems)

    return find


@pytest.fixture
def eval_problems(write: Callable[[str, str], Path]) -> Callable[..., list[str]]:
    """Return what is wrong with an evaluation config."""

    def find(text: str, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_eval_configs(write("eval.yml", text), overrides)
        return list(caught.value.problems)

    return find
