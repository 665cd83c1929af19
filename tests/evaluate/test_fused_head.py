"""The Triton kernel of head-only lanes: in Triton's interpreter on a CPU, as it is on a GPU."""

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from anml.evaluate.learner import ReferenceLearner
from anml.evaluate.prepared_run import RunPreparer, Shape
from anml.models import build_model


@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed, and no GPU needs it")
def test_a_kernel_for_all_lanes_learns_what_plain_learners_learn() -> None:
    command = [sys.executable, "-m", "tests.evaluate.fused_head_cases"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx({"adam": 0, "no momentum": 0, "diverged": 0}, abs=1e-12)


@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed, and no GPU needs it")
@pytest.mark.parametrize(("target", "kind"), [(("cuda", 90, 32), "fp32"), (("hip", "gfx942", 64), "fp64")])
def test_the_kernel_compiles_for_cards_of_both_makers(monkeypatch, target, kind) -> None:
    """The interpreter takes what the compiler refuses: variables that change their type, names from outside."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # Or Triton 3.9 warns that this default will change.
    triton: Any = import_module("triton")
    kernel: Any = import_module("anml.evaluate.fused_head")._adam_step
    sizes = {"OUTPUTS": 1000, "FEATURES": 2304, "ALL": 1024, "ROWS": 4, "COLUMNS": 512}
    constants = sizes | {"BETA1": 0.9, "BETA2": 0.999, "EPSILON": 1e-8}
    kinds = {name: "constexpr" if name in constants else f"*{kind}" for name in kernel.arg_names}
    kinds |= {"labels": "*i64", "position": "*i64", "k": "i32", "runs": "i32", "examples": "i32"}
    source = triton.compiler.ASTSource(kernel, kinds, constants)
    triton.compile(source, target=triton.backends.compiler.GPUTarget(*target))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: kernels run in Triton's interpreter alone")
def test_replayed_kernels_learn_what_plain_learners_learn(data, make_config) -> None:
    from anml.evaluate.fused_head import FusedHeadLearner

    model = build_model("sanml", {"rln_chs": 4, "num_classes": 30}, (1, 28, 28), seed=1)
    preparer = RunPreparer(model.cuda(), make_config(), data.to(torch.device("cuda")), torch.float64)
    [prepared] = preparer.make(Shape(12, 10, 5), [0])
    fused, again = (FusedHeadLearner([prepared], [0.01]) for _ in range(2))
    plain = ReferenceLearner(prepared, 0.01)
    for learner in (fused, again, plain):
        for first in range(0, 120, 10):
            learner.learn_each(first, first + 10)
    assert all(replay.graph for _, replay in fused.replays.values())
    assert torch.equal(fused.weight, again.weight)
    assert (fused.weight[0, 0] - plain.model.head.weight).abs().max() <= 1e-12
