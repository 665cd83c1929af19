"""What each precision costs: relative errors of meta-gradients against float64, and the time of an episode.

    PYTHONPATH=. python benchmarks/precision.py --episodes 5 [--device cuda]

Engine fast, published sizes, images of noise; each episode has weights and images of its own. float32 itself is in the
table: a near-tie that rounding decides is what it may cost. On a CPU tf32 is emulated: it rounds the factors of every
convolution and matrix product to 10 bits, as an NVIDIA card does, at no gain of time.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anml.config.training import InnerOptimizer, Precision
from anml.data.episodes import Episode
from anml.machine import clock, describe_machine, keep_float32, set_precision
from anml.meta.engine import EpisodeOutcome, autocast
from anml.meta.fast import FastEngine
from anml.models import build_model
from anml.models.meta_model import MetaModel, select_names
from benchmarks.machine import machine

MODELS: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "anml": ({}, ("rln", "fc")),
    "sanml": ({}, ("all",)),
    "oml": ({"strides": [2, 1, 2, 1, 1]}, ("pn",)),
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--width", type=int, help="channels of the encoder (default: as published)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "precision.json")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    precisions: list[Precision] = ["float32", "tf32", "bf16-mixed"]
    facts, rows = machine() | {key: value for key, value in describe_machine(device).items() if key != "host"}, []
    print(f"{'model':8}{'precision':12}{'median error':>14}{'largest':>10}{'ms/episode':>12}")
    for model in arguments.models:
        for precision in precisions:
            rows.append({"model": model, "precision": precision, **measure(model, precision, device, arguments)})
            print(
                "{model:8}{precision:12}{median_error:14.1e}{largest_error:10.1e}{median_ms:12.1f}".format(**rows[-1])
            )
    report = {"machine": facts, "arguments": vars(arguments) | {"output": arguments.output.name}, "rows": rows}
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")


class RoundedFactors(TorchDispatchMode):
    """Rounds what convolutions and matrix products multiply to TF32; sums stay in float32."""

    FIRST_FACTOR: ClassVar = {"convolution": 0, "convolution_backward": 0, "mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do one operation, with rounded factors where it is one of products."""
        name = func.overloadpacket.__name__
        if name in self.FIRST_FACTOR:
            first = self.FIRST_FACTOR[name]
            last = first + (3 if name == "convolution_backward" else 2)
            args = (*args[:first], *map(rounded, args[first:last]), *args[last:])
        return func(*args, **(kwargs or {}))


def rounded(factor: torch.Tensor) -> torch.Tensor:
    """Return float32 numbers with 10 bits after the leading one instead of 23, to nearest."""
    return ((factor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def measure(kind: str, precision: Precision, device: torch.device, arguments: argparse.Namespace) -> dict[str, float]:
    """Return errors of the whole gradient, and the time, over episodes with weights and images of their own."""
    errors, seconds = [], []
    for index in range(arguments.episodes):
        model, names, episode = make(kind, index, arguments.width, device)
        double = copy.deepcopy(model).double()
        keep_float32()
        expected = engine_of(double, names).run(episode._replace(images=episode.images.double()))
        is_emulated = precision == "tf32" and device.type == "cpu"
        set_precision(device, None if is_emulated else precision)
        engine = engine_of(model, names)
        with autocast(precision, device), RoundedFactors() if is_emulated else nullcontext():
            engine.run(episode)  # Warms up.
            started = clock(device)
            found = engine.run(episode)
            seconds.append(clock(device) - started)
        errors.append(error(found, expected))
    return {
        "median_error": statistics.median(errors),
        "largest_error": max(errors),
        "median_ms": 1e3 * statistics.median(seconds),
    }


def make(kind: str, seed: int, width: int | None, device: torch.device) -> tuple[MetaModel, list[str], Episode]:
    """Return a model, what its inner loop moves, and an episode of 20 steps with 64 images to remember."""
    args, inner = MODELS[kind]
    widths = {"num_filters" if kind == "oml" else "rln_chs": width} if width else {}
    model = build_model(kind, args | widths, (1, 28, 28), seed).to(device)
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(84, 1, 28, 28, generator=generator)
    labels = torch.cat([torch.zeros(20, dtype=torch.int64), torch.randint(1000, (64,), generator=generator)])
    episode = Episode(images.to(device), labels.to(device), torch.arange(20, device=device)[:, None], 0, (0,))
    return model, select_names(model, inner), episode


def engine_of(model: MetaModel, names: list[str]) -> FastEngine:
    return FastEngine(model, names, InnerOptimizer(0.1))


def error(found: EpisodeOutcome, expected: EpisodeOutcome) -> float:
    """Return the distance of two whole gradients, relative to the norm of the expected one."""
    differences = [(found.gradients[name].double() - gradient).norm() for name, gradient in expected.gradients.items()]
    norms = [gradient.norm() for gradient in expected.gradients.values()]
    return float(torch.stack(differences).norm() / torch.stack(norms).norm())


if __name__ == "__main__":
    main()
