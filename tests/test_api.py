"""`import anml` in Python: cheap, the same as the commands, its own errors; and the notebooks that show it."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import anml
from anml.errors import CheckpointError, ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.slow


def test_import_is_cheap_and_evaluate_is_a_function_whatever_was_imported() -> None:
    code = """
import sys, anml
assert not {"torch", "pandas", "pydantic", "anml.api"} & set(sys.modules), "import anml is slow"
anml.load
assert "torch" not in sys.modules, "anml.load needs no torch"
import anml.evaluate
assert callable(anml.evaluate)
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def run_notebook(path: Path) -> dict[str, object]:
    """Run the cells of a notebook in one namespace, as a kernel does, which costs no packages; return the namespace."""
    names: dict[str, object] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], f"{path.name}: save it without outputs"
            lines = [line for line in cell["source"] if not line.startswith("%")]  # `%matplotlib inline`
            exec(compile("".join(lines), f"{path.name}, {cell['id']}", "exec"), names)
    return names


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """The namespaces that the notebooks leave, run in the order of their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANML_EXPERIMENTS", str(tmp_path_factory.mktemp("experiments")))
        return {path.stem: run_notebook(path) for path in NOTEBOOKS}


def test_notebooks_run_and_a_launch_returns_a_finished_experiment(notebooks: dict[str, dict]) -> None:
    assert list(notebooks) == ["1-launch", "2-load", "3-evaluate"]
    experiment = notebooks["1-launch"]["experiment"]
    assert experiment.state == "done"
    assert len(experiment.checkpoints) == 2
    assert (experiment.folder.report / "index.html").is_file()


def test_the_report_has_the_same_table_as_parquet(notebooks: dict[str, dict]) -> None:
    experiment = notebooks["2-load"]["experiment"]
    pd.testing.assert_frame_equal(pd.read_parquet(experiment.folder.report / "results.parquet"), experiment.results)


def test_results_have_typed_columns_with_what_varies(notebooks: dict[str, dict]) -> None:
    results = notebooks["2-load"]["results"]
    kinds = {name: str(results.dtypes[name]) for name in ("flavor", "lr", "run", "kept_bytes", "outer_lr")}
    assert kinds == {"flavor": "str", "lr": "float64", "run": "int64", "kept_bytes": "Int64", "outer_lr": "Float64"}
    assert results.groupby("outer_lr").size().to_dict() == {0.001: len(results) / 2, 0.003: len(results) / 2}


def test_evaluation_in_python_gives_what_the_job_gave(notebooks: dict[str, dict]) -> None:
    experiment = notebooks["2-load"]["experiment"]
    job = experiment.results.query("outer_lr == 0.003")
    model = experiment.model(training="outer-lr-0.003")
    mine = anml.evaluate(model, experiment.config.eval["olft"].model_dump(exclude_none=True))
    columns = ["lr", "run", "step", "train_acc", "test_acc"]
    pd.testing.assert_frame_equal(pd.DataFrame(mine[columns]), pd.DataFrame(job[columns]).reset_index(drop=True))


def test_mistakes_raise_the_packages_own_errors(notebooks: dict[str, dict], tmp_path: Path) -> None:
    experiment = notebooks["1-launch"]["experiment"]
    with pytest.raises(ConfigError, match="first"):
        anml.load("notebooks/fist", experiments_dir=str(experiment.folder.root.parent.parent))
    with pytest.raises(CheckpointError, match="step-000099"):
        experiment.model(step=99, training="outer-lr-0.001")
    with pytest.raises(ConfigError, match=r"outer-lr-0\.001"):
        experiment.model()
    with pytest.raises(ConfigError, match="accuracy-vs-lr"):
        experiment.figure("accuracy")
    with pytest.raises(ConfigError) as caught:
        anml.launch({"dataset": "glyphs", "modle": "anml"}, project="p", experiments_dir=str(tmp_path), epochs=object())
    assert "epochs" in str(caught.value)
    assert not list(tmp_path.iterdir())
