"""The Triton engine: on a GPU, or in Triton's interpreter; and what of it needs neither."""

import sys
from pathlib import Path

import pytest
import torch

from anml.errors import ConfigError
from anml.meta import make_engine
from anml.meta.adjoint import missing_triton
from anml.models.meta_model import select_names
from benchmarks.launches import count_launches
from tests.conftest import Run
from tests.meta.cases import PUBLISHED_INNER, make_config, make_model

CASES = Path(__file__).parent / "triton_cases.py"
EVERY_KERNEL = ["normalise", "vjp", "jvp", "vjp_tangent", "_learn", "_carry_adjoint"]


def compile_all() -> None:
    """Compile every kernel for an NVIDIA and an AMD GPU, in float32 and float64; run in a process of its own."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from anml.meta import triton_head, triton_kernels

    sizes = {"HEIGHT": 6, "WIDTH": 6, "POOL": 2, "KERNEL": 3, "STRIDE": 1, "PAD": 1, "IS_LAST": False, "BLOCK": 64}
    sizes |= {"WINDOWS": 16, "ROWS": 4, "EPS": 1e-5, "FACTOR": -0.1, "IS_ADDED": True}
    sizes |= {"LR": 0.1, "CLASSES": 60, "TILE": 4}
    for target, number in ((GPUTarget("cuda", 90, 32), "fp32"), (GPUTarget("hip", "gfx942", 64), "fp64")):
        types = {"picks": "*i32", "labels": "*i64", "channels": "i32", "images": "i32", "before": "i32"}
        for name in EVERY_KERNEL:
            kernel = getattr(triton_kernels, name, None) or getattr(triton_head, name)
            constants = {argument: sizes[argument] for argument in kernel.arg_names if argument in sizes}
            signature = {argument: types.get(argument, f"*{number}") for argument in kernel.arg_names}
            source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
            assembly = triton.compile(source, target=target).asm["ptx" if target.backend == "cuda" else "amdgcn"]
            # Additions in the order of threads would not repeat to the bit.
            assert "atom" not in assembly, (name, target)


@pytest.fixture
def _triton() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.usefixtures("_triton")
def test_the_engine_agrees_with_the_sweep(run: Run) -> None:
    interpreted = "0" if torch.cuda.is_available() else "1"
    child = run("-m", "pytest", "-q", "-p", "no:cacheprovider", CASES, TRITON_INTERPRET=interpreted)
    assert child.returncode == 0, child.stdout
    assert " passed" in child.stdout


@pytest.mark.usefixtures("_triton")
def test_every_kernel_compiles_for_nvidia_and_amd_without_atomics(run: Run, tmp_path: Path) -> None:
    source = "from tests.meta.test_triton import compile_all; compile_all()"
    child = run("-c", source, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert child.returncode == 0, child.stderr


def test_a_cpu_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    config = make_config(model="anml", inner_params=PUBLISHED_INNER["anml"], engine="triton")
    model = make_model("anml")
    with pytest.raises(ConfigError, match="engine: triton cannot train this: Triton"):
        make_engine(config, model, select_names(model, config.inner_params))


def test_without_triton_the_engine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "not installed" in missing_triton(torch.device("cuda"))


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("kind", ["anml", "sanml"])
def test_an_update_takes_at_most_1500_launches(kind: str) -> None:
    widths = {"rln_chs": 64, "num_classes": 9} | ({"nm_chs": 64} if kind == "anml" else {})
    assert 0 < count_launches(kind, widths, "triton").total() <= 1500
