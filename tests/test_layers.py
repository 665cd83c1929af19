"""Imports point down only. The order below is the architecture: a module may import what stands above it."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "anml"

# From the bottom up. A name covers the module or package of that name; modules of a package may import each other.
LAYERS = [
    "errors",
    "atomic",
    "plugins",
    "config",
    "results",
    "experiment",
    "tracking",
    "jobs",
    "report",
    # From here on torch may be imported.
    "rng",
    "data",
    "models",
    "native",
    "checkpoints",
    "machine",
    "optim",
    "evaluate",
    "meta",
    "train",
    "selftest",
    # Command lines import what needs torch only when they run it.
    "cli",
    "api",
    "__main__",
]
HEAVY = LAYERS[LAYERS.index("rng") : LAYERS.index("cli")]

# Who alone may import a package; the Python interface names their types (under TYPE_CHECKING, tests/test_api.py).
SOLE_IMPORTERS = {
    "higher": "anml/meta/engine.py",
    "wandb": "anml/tracking",
    "simple_slurm": "anml/jobs/schedulers/slurm_options.py",
    "matplotlib": "anml/report",
    "pandas": "anml/report",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def imported(path: Path, top_level_only: bool = False) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layers_used(path: Path, top_level_only: bool = False) -> set[str]:
    return {name.split(".")[1] for name in imported(path, top_level_only) if name.startswith("anml.")} - {"__version__"}


def test_every_module_has_its_layer() -> None:
    assert {layer_of(path) for path in modules()} - {"__init__"} == set(LAYERS)


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {sorted(upward)}"
        for path in modules()
        if layer_of(path) != "__init__"
        and (upward := layers_used(path) - set(LAYERS[: LAYERS.index(layer_of(path)) + 1]))
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Whatever its length; an import inside a function counts as well."""
    names = {name_of(path) for path in modules()}
    uses = {name_of(path): {module_of(name, names) for name in imported(path)} & names for path in modules()}
    assert circle(uses) == []


def test_a_circle_of_three_is_found() -> None:
    assert sorted(set(circle({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}))) == ["a", "b", "c"]


def circle(uses: dict[str, set[str]]) -> list[str]:
    """Return the modules of a circle, the first again at the end, or nothing."""
    try:
        TopologicalSorter(uses).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def name_of(path: Path) -> str:
    return ".".join(("anml", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def module_of(name: str, modules: set[str]) -> str:
    """Return the module that an import means: `from anml.report import labels` is one of `anml.report.labels`."""
    return name if name in modules else name.rpartition(".")[0]


def test_packages_have_one_importer_each() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE.parent)} imports {package}"
        for package, place in SOLE_IMPORTERS.items()
        for path in modules()
        if path.name != "api.py"
        and package in {name.split(".")[0] for name in imported(path)}
        and not str(path.relative_to(PACKAGE.parent)).startswith(place)
    ]
    assert not wrong


def test_upper_half_imports_no_torch() -> None:
    """Login nodes: --help, --dry-run and status answer in well under a second."""
    light = [path for path in modules() if layer_of(path) not in HEAVY]
    wrong = []
    for path in light:
        top = imported(path, top_level_only=True)
        heavy = {name.split(".")[0] for name in top} & {"torch", "wandb", "higher"}
        heavy |= layers_used(path, top_level_only=True) & set(HEAVY)
        wrong += [f"{path.relative_to(PACKAGE)} imports {sorted(heavy)} at its top"] if heavy else []
    assert not wrong


def test_evaluation_knows_nothing_of_training() -> None:
    wrong = [path.name for path in (PACKAGE / "evaluate").glob("*.py") if layers_used(path) & {"meta", "train"}]
    assert not wrong
