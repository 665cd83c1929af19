"""Counts what a GPU has to launch for one whole update: lobotomy, images, episode, Adam, and the ring of outcomes.

    PYTHONPATH=. python benchmarks/launches.py --models anml sanml --engines sweep fast triton

It runs on a CPU, at real size, and counts PyTorch's operations without views and allocations, and the launches of
Triton kernels, which are left out (so the update's result is noise). A card launches somewhat more: some operations
are several kernels, and a library may cut a matrix product in two.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anml.config.training import InnerOptimizer, TrainConfig
from anml.data.class_images import ClassImages
from anml.meta import ENGINES
from anml.meta.outer_step import OuterStep
from anml.meta.static_update import StaticUpdate
from anml.models import build_model
from anml.models.meta_model import belongs_to, select_names

_FREE = {"empty", "new_empty", "empty_like", "empty_strided", "detach", "_unsafe_view", "lift_fresh"}
WIDTHS = {
    "anml": {"rln_chs": 256, "nm_chs": 112, "num_classes": 1000},
    "sanml": {"rln_chs": 256, "num_classes": 1000},
}


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _FREE:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _kernels_left_out(counts: Counter[str]) -> Iterator[None]:
    from triton.runtime.jit import JITFunction

    def count(kernel: Any, *_: Any, **__: Any) -> None:
        counts[f"triton {kernel.fn.__name__}"] += 1

    with patch.object(JITFunction, "run", count):
        yield


def count_launches(kind: str, widths: dict[str, int], name: str) -> Counter[str]:
    """Return the number of operations of every kind, for 20 inner steps and 64 examples to remember."""
    config = TrainConfig(dataset="omniglot", model=kind, num_batches=20, remember_size=64, log_freq=1)
    model = build_model(kind, widths, (1, 28, 28), seed=1)
    inner = [n for n in select_names(model, ["all"]) if not belongs_to(n, model.gate_prefix)]
    images = torch.randint(256, (8, 20, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    engine = ENGINES[name](model, inner, InnerOptimizer(0.1))
    update = StaticUpdate(config, OuterStep(config, model, 1), engine.run, ClassImages(images, "noise"))
    update.fill(0)
    with _Operations() as operations:
        if name == "triton":
            with _kernels_left_out(operations.counts):
                update.update()
        else:
            update.update()
    return operations.counts


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--engines", nargs="+", default=["sweep", "triton"], choices=list(ENGINES))
    arguments = parser.parse_args()
    for kind in arguments.models:
        for name in arguments.engines:
            counts = count_launches(kind, WIDTHS[kind], name)
            most = ", ".join(f"{count} {operation}" for operation, count in counts.most_common(8))
            print(f"{kind}, {name}: {counts.total()} launches: {most}")


if __name__ == "__main__":
    main()
