"""Times an episode of meta-training by every engine, alternating them (A B A B ...), and compares medians.

    PYTHONPATH=. python benchmarks/train_engines.py --models anml sanml oml --rounds 5

Real sizes by default (RLN 256, NM 112, 1000 classes, 20 steps, 64 images to remember), without optimizer and
sampling. It prints a table and writes benchmarks/results/train-engines.json with the facts of the machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anml.config.training import InnerOptimizer
from anml.data.episodes import Episode
from anml.meta.adjoint import AdjointEngine, NativeEngine
from anml.meta.engine import Engine, FirstOrderEngine, ReferenceEngine
from anml.meta.fast import FastEngine
from anml.meta.functional_episode import CompiledEngine
from anml.models import build_model
from anml.models.meta_model import MetaModel, belongs_to
from anml.native import available
from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results"
ENGINES = {
    "reference": ReferenceEngine,
    "fast": FastEngine,
    "compiled": CompiledEngine,
    "sweep": AdjointEngine,
    "native": NativeEngine,
}
# Of another training method: their gradients are not those of the reference, so they are only timed when asked for.
FIRST_ORDER = {
    "first-order": partial(FirstOrderEngine, keep_fast_weights=False),
    "first-order-native": partial(FirstOrderEngine, keep_fast_weights=False, native=True),
}


def main() -> None:
    """Measure, print, write."""
    arguments = parse()
    facts = machine()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = [row for model in arguments.models for row in measure(model, arguments)]
    print_table(rows)
    report = {"machine": facts, "arguments": vars(arguments) | {"output": arguments.output.name}, "rows": rows}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {arguments.output}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["anml", "sanml", "oml"], choices=["anml", "sanml", "oml"])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=[*ENGINES, *FIRST_ORDER])
    parser.add_argument("--rounds", type=int, default=5, help="how often every engine has its turn")
    parser.add_argument("--threads", type=int, help="default: as many as PyTorch chooses")
    parser.add_argument("--rln-chs", type=int, default=256)
    parser.add_argument("--nm-chs", type=int, default=112)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--remember", type=int, default=64)
    parser.add_argument("--output", type=Path, default=RESULTS / "train-engines.json")
    return parser.parse_args()


def measure(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time every engine that can train a model; return one row for each."""
    model, inner = make_model(name, arguments)
    episode = make_episode(arguments)
    engines = dict(make_engines(model, inner, arguments.engines))
    for engine in engines.values():
        engine.run(episode)  # Allocations, builds and the library's own warming up.
        if engine.note:
            print(f"{name}, {engine.name}: {engine.note}")
    seconds: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(arguments.rounds):
        for engine, runner in engines.items():
            begin = time.perf_counter()
            runner.run(episode)
            seconds[engine].append(time.perf_counter() - begin)
    medians = {engine: statistics.median(times) for engine, times in seconds.items()}
    slowest = medians.get("reference")
    return [
        {"model": name, "engine": e, "median_s": m, "seconds": seconds[e], "ratio": slowest / m if slowest else None}
        for e, m in medians.items()
    ]


def make_model(name: str, arguments: argparse.Namespace) -> tuple[MetaModel, list[str]]:
    """Return a model at the wanted size and the names that its inner loop moves."""
    args: dict[str, Any] = {"num_classes": arguments.classes}
    if name == "oml":
        args |= {"num_filters": arguments.rln_chs, "strides": [2, 1, 2, 1, 1]}
    else:
        args["rln_chs"] = arguments.rln_chs
    if name == "anml":
        args["nm_chs"] = arguments.nm_chs
    model = build_model(name, args, (1, 28, 28), seed=1)
    names = [n for n, _ in model.named_parameters()]
    if name == "oml":
        return model, [n for n in names if belongs_to(n, model.head_prefix)]
    return model, [n for n in names if not belongs_to(n, model.gate_prefix)]


def make_episode(arguments: argparse.Namespace) -> Episode:
    """Return an episode of random images: the cost does not depend on what is in them."""
    generator = torch.Generator().manual_seed(0)
    steps, count = arguments.steps, arguments.steps + arguments.remember
    images = torch.rand(count, 1, 28, 28, generator=generator)
    labels = torch.cat(
        [torch.zeros(steps, dtype=torch.int64), torch.randint(arguments.classes, (count - steps,), generator=generator)]
    )
    return Episode(images, labels, torch.arange(steps)[:, None], 0, (0,))


def make_engines(model: MetaModel, inner: list[str], wanted: list[str]) -> Iterable[tuple[str, Engine]]:
    """Yield the wanted engines that can train the model; say which cannot."""
    native = available("train")
    for name in wanted:
        reason = AdjointEngine.unsupported(model, inner) if name in ("sweep", "native") else ""
        reason = reason or (native.reason if name == "native" and not native else "")
        if reason:
            print(f"{type(model).__name__}, {name}: left out: {reason}")
        else:
            yield name, (ENGINES | FIRST_ORDER)[name](model, inner, InnerOptimizer(0.1))


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print one line for each model and engine."""
    print(f"{'model':8}{'engine':20}{'ms/episode':>12}{'times the reference':>22}")
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        print(f"{row['model']:8}{row['engine']:20}{row['median_s'] * 1e3:12.1f}{ratio:>22}")


if __name__ == "__main__":
    main()
