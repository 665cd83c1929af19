"""conda, pip and uv install the same: versions are pinned in one place, everything else refers to it."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
CONDA_FILES = ["environment.yml", "environment-rocm.yml"]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
INDEX = re.compile(r"https://download\.pytorch\.org/whl/[\w.]+")
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "docs" / "install.md"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str) -> dict[str, str]:
    """Return the lines of a requirements file, comments apart, by package."""
    lines = [line.partition("#")[0].strip() for line in (REPOSITORY / name).read_text(encoding="utf-8").splitlines()]
    return {normal(line.partition("==")[0]): line for line in lines if line}


def test_every_version_is_pinned() -> None:
    lines = [line for name in ("requirements.txt", "requirements-dev.txt") for line in pins(name).values()]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_no_package_is_pinned_twice() -> None:
    assert not set(pins("requirements.txt")) & set(pins("requirements-dev.txt"))


def test_conda_environments_refer_to_the_pins() -> None:
    for name in CONDA_FILES:
        dependencies = yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))["dependencies"]
        (from_pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
        pinned = [line for line in from_pip if not line.startswith("--extra-index-url ")]
        others = [entry.partition("=")[0] for entry in dependencies if isinstance(entry, str)]
        assert (pinned, others) == (["-r requirements.txt"], ["python", "pip"]), name


def test_conda_environments_have_one_python_which_the_package_takes() -> None:
    files = [yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8")) for name in CONDA_FILES]
    versions = {entry for file in files for entry in file["dependencies"] if str(entry).startswith("python=")}
    least = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert versions == {f"python={least}"}
    assert len({file["name"] for file in files}) == len(files)


def test_the_package_takes_its_requirements_from_the_pins() -> None:
    dynamic = PROJECT["tool"]["setuptools"]["dynamic"]
    assert dynamic["dependencies"] == {"file": ["requirements.txt"]}
    assert dynamic["optional-dependencies"] == {"dev": {"file": ["requirements-dev.txt"]}}
    assert set(PROJECT["project"]["dynamic"]) == {"dependencies", "optional-dependencies"}


def test_documents_name_the_indexes_of_the_environments() -> None:
    (rocm,) = set(INDEX.findall((REPOSITORY / "environment-rocm.yml").read_text(encoding="utf-8")))
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert set(INDEX.findall(text)) == {rocm, "https://download.pytorch.org/whl/cpu"}, document.name
        assert {f"rocm{version}" for version in re.findall(r"backend rocm(\S+)", text)} <= {rocm.rpartition("/")[2]}


def test_what_the_package_imports_is_pinned() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (REPOSITORY / "anml").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    used = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"anml"}
    distributions = packages_distributions()
    needed = {normal(distributions[name][0]) for name in used if name in distributions}
    # pydantic pins its own core to the release, and torch its own Triton where there is a GPU.
    assert needed - {"pydantic-core", "triton"} <= set(pins("requirements.txt"))
    assert used <= set(distributions)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that `pip install .` makes, of a copy: building leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("anml", "configs", "slurm"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(REPOSITORY / name, folder)
    for script in REPOSITORY.glob("*_*.py"):
        shutil.copy(script, folder)
    build = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
    (folder / "dist").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    (file,) = (folder / "dist").glob("anml-*.whl")
    return zipfile.ZipFile(file)


def test_the_package_has_its_data_files(wheel: zipfile.ZipFile) -> None:
    paths = [path for path in (REPOSITORY / "anml").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    installed = {name for name in wheel.namelist() if name.startswith("anml/")}
    shipped = [*(REPOSITORY / "configs").rglob("*.yml"), *(REPOSITORY / "slurm").glob("*.yml")]
    assert installed == {str(path.relative_to(REPOSITORY)) for path in paths} | {
        f"anml/{path.relative_to(REPOSITORY)}" for path in shipped
    }
    assert {Path(name).suffix for name in installed} >= {".py", ".cpp", ".h", ".html", ".css"}


def test_the_package_says_what_it_needs(wheel: zipfile.ZipFile) -> None:
    (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    lines = wheel.read(metadata).decode().splitlines()
    required = {line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist")}
    assert required == {*pins("requirements.txt").values()} | {
        f'{line}; extra == "dev"' for line in pins("requirements-dev.txt").values()
    }


@pytest.fixture
def installed(wheel: zipfile.ZipFile, tmp_path: Path):
    """Run a Python command line in an empty folder, with the package as the wheel installs it."""
    wheel.extractall(tmp_path / "site")
    folder = tmp_path / "anywhere"
    folder.mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        environment.pop("ANML_EXPERIMENTS", None)
        return subprocess.run(
            [sys.executable, "-P", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_an_installed_package_launches_its_configs_from_any_folder(installed, tmp_path: Path) -> None:
    launch = ("-m", "anml", "launch", "--project", "demo", "--cluster", "local", "--dry-run", "-c")
    plain, in_folder = installed(*launch, "quickstart.yml"), installed(*launch, "configs/quickstart.yml")
    assert (plain.returncode, plain.stderr, plain.stdout) == (0, in_folder.stderr, in_folder.stdout)
    assert f"{tmp_path / 'anywhere' / 'experiments' / 'demo'}/" in plain.stdout.splitlines()[0]


def test_an_installed_package_freezes_its_scripts(installed, tmp_path: Path) -> None:
    freeze = "from pathlib import Path; from anml.jobs.launch import copy_code; copy_code(Path('code'))"
    assert installed("-c", freeze).stderr == ""
    code = tmp_path / "anywhere" / "code"
    for name in ("launch_train.py", "train_anml.py", "eval_anml.py"):
        done = subprocess.run(
            [sys.executable, name, "--version"], cwd=code, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.split()[0]) == (0, "anml"), done.stderr


def test_the_installed_command_is_called_anml(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    assert "anml = anml.__main__:console" in wheel.read(entry_points).decode()
