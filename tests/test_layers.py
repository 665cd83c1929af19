"""Imports point down only. The order below is the architecture: a module may import what stands above it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "anml"

# From the bottom up. A name covers the module or package of that name; modules of a package may import each other.
LAYERS = [
    "errors",
    "atomic",
    "config",
    "machine",
    "rng",
    "data",
    "models",
    "native",
    "checkpoint",
    "import_pth",
    "torch_by_name",
    "lr_schedule",
    "meta",
    "train_iid",
    "weight_average",
    "training_run",
    "train",
    "train_together",
    "results",
    "evaluate",
    "experiment",
    "plan",
    "job_status",
    "disk",
    "tracking",
    "report",
    "export",
    "schedulers",
    "snapshot",
    "launch",
    "submission",
    "dry_run",
    "status",
    "cluster_check",
    "job",
    "train_job",
    "evaluate_job",
    "evaluate_by_hand",
    "commands",
    "__main__",
]

# Who alone may import a package.
SOLE_IMPORTERS = {
    "higher": {"anml/meta/reference.py"},
    "wandb": {"anml/tracking.py"},
    "simple_slurm": {"anml/schedulers/slurm.py"},
    "matplotlib": {"anml/report"},
    "pandas": {"anml/report"},
}

# Never imported at the top of these: they answer on login nodes in well under a second.
WITHOUT_TORCH = (
    "config",
    "plan",
    "experiment",
    "launch",
    "dry_run",
    "schedulers",
    "status",
    "commands",
    "report",
    "job",
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "anml" else {node.module}
    return names


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    layer = layer_of(path)
    if layer == "__init__":
        return
    allowed = set(LAYERS[: LAYERS.index(layer) + 1]) | {"__version__"}
    used = {name.split(".")[1] for name in imported(path) if name.startswith("anml.")}
    assert used <= allowed, f"{path.name} (layer {layer}) imports {sorted(used - allowed)}"


@pytest.mark.parametrize("package", SOLE_IMPORTERS)
def test_package_has_one_importer(package: str) -> None:
    users = {str(p.relative_to(PACKAGE.parent)) for p in modules() if package in {n.split(".")[0] for n in imported(p)}}
    allowed = SOLE_IMPORTERS[package]
    assert all(any(user.startswith(place) for place in allowed) for user in users), users


@pytest.mark.parametrize("path", [p for p in modules() if layer_of(p) in WITHOUT_TORCH], ids=lambda p: p.stem)
def test_upper_half_imports_no_torch(path: Path) -> None:
    heavy = {
        "data",
        "models",
        "torch_by_name",
        "lr_schedule",
        "meta",
        "weight_average",
        "train",
        "training_run",
        "train_together",
        "evaluate",
        "checkpoint",
        "import_pth",
        "machine",
        "train_job",
        "evaluate_job",
        "evaluate_by_hand",
        "rng",
    }
    found = {name.split(".")[0] for name in imported(path, top_level_only=True)} & {"torch", "wandb", "higher"}
    found |= {n for n in imported(path, top_level_only=True) if n.startswith("anml.") and n.split(".")[1] in heavy}
    assert not found


def test_evaluation_knows_nothing_of_training() -> None:
    users = [
        p.name
        for p in (PACKAGE / "evaluate").glob("*.py")
        for n in imported(p)
        if n.startswith(("anml.meta", "anml.train"))
    ]
    assert not users


def test_every_module_has_its_layer() -> None:
    assert {layer_of(path) for path in modules()} - {"__init__"} == set(LAYERS)
