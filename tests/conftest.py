"""Fixtures that many tests share: folders that nothing else writes to, data, and the command lines as processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Tests run side by side, and small tensors gain nothing from threads. Set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As users have it, Python keeps what it compiles: every job would compile the frozen code anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A shell lets what runs in the background ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
SLOW_FOLDERS = {"cli", "commands", "evaluate", "meta", "train"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-quick` leaves out: tests of learning, and those that run commands."""
    for item in items:
        folder = item.path.relative_to(REPOSITORY / "tests").parts[0]
        if folder in SLOW_FOLDERS or "run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted arrays, made once per test session unless ANML_TEST_CACHE names a folder to keep them in."""
    folder = Path(os.environ.get("ANML_TEST_CACHE") or tmp_path_factory.mktemp("cache"))
    os.environ["ANML_CACHE"] = str(folder)
    return folder


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for experiments, also for processes that a test starts."""
    folder = tmp_path / "experiments"
    monkeypatch.setenv("ANML_EXPERIMENTS", str(folder))
    return folder


@pytest.fixture(scope="session")
def omniglot_path() -> str:
    """Where the real Omniglot is; tests that need it are skipped without it, and `.ci/run` fails then."""
    path = os.environ.get("ANML_DATA")
    if not path:
        pytest.skip("Omniglot tests left out: set ANML_DATA to a folder with images_background.zip to run them")
    return path


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Path]:
    """Write folders of images as data sets of photographs have them: {folder: number of images}, JPEGs if not said."""

    def make(folder: Path, classes: Mapping[str, int], size: int = 84, suffix: str = ".jpg", mode: str = "RGB") -> Path:
        for name, count in classes.items():
            rng = np.random.default_rng(sum(name.encode()))
            base = rng.integers(256, size=3)  # A colour per class, and noise that a JPEG keeps.
            (folder / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                coarse = np.clip(base + rng.integers(-60, 60, (6, 6, 3)), 0, 255).astype(np.uint8)
                image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).convert(mode)
                image.save(folder / name / f"{name.rpartition('/')[2]}{number:08d}{suffix}", quality=90)
        return folder

    return make


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run() -> Run:
    """Run `python SCRIPT ARGUMENTS...` in the repository as a user would and return what it printed."""

    def run_script(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=REPOSITORY, env=os.environ | environment,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    return run_script


@pytest.fixture
def without(tmp_path: Path) -> Callable[[str], str]:
    """Return a PYTHONPATH under which a package is missing, also for the processes that a command starts."""

    def block(package: str) -> str:
        (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
        return str(tmp_path)

    return block
