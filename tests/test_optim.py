"""Our Adam is torch's, and cheaper to start."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anml.optim import Adam

LIFE = """
import sys, torch
from pathlib import Path
from anml.cli.check_config import find_problems
from anml.config.load import load_train_config
from anml.optim import Adam
assert not find_problems(load_train_config(Path("configs/quickstart.yml")).config)
weights = torch.nn.Parameter(torch.ones(3))
optimizer = Adam([weights], fused=True)
weights.grad = torch.ones(3)
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_neither_it_nor_the_check_of_a_config_imports_torchs_compiler() -> None:
    command = [sys.executable, "-c", LIFE]
    repository = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_its_steps_are_those_of_torch_also_after_a_resume() -> None:
    generator = torch.Generator().manual_seed(1)
    starts, gradients = torch.randn(2, 5, generator=generator), torch.randn(4, 2, 5, generator=generator)
    ends = []
    for kind in (Adam, torch.optim.Adam):
        weights = [torch.nn.Parameter(start.clone()) for start in starts]
        optimizer = kind(weights, lr=0.1, fused=True)
        for step, gradient in enumerate(gradients):
            if step == 2:
                saved, optimizer = optimizer.state_dict(), kind(weights, lr=0.5, fused=True)
                optimizer.load_state_dict(saved)
            for weight, part in zip(weights, gradient, strict=True):
                weight.grad = part.clone()
            optimizer.step()
        ends.append(torch.stack([weight.detach() for weight in weights]))
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], starts)
