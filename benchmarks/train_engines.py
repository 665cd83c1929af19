r"""Times an episode of meta-training by every engine, alternating them (A B A B ...), and compares medians.

    PYTHONPATH=. python benchmarks/train_engines.py --models anml sanml oml --rounds 5

Real sizes by default (RLN 256, NM 112, 1000 classes, 20 steps, 64 images to remember), without optimizer and
sampling. It prints a table and writes benchmarks/results/train-engines.json with the facts of the machine.

On a GPU, with whole updates by graphs too, alone and as branches of one graph (rows "graph of ..."):

    PYTHONPATH=. python benchmarks/train_engines.py --device cuda --models anml sanml \
        --engines reference fast sweep triton --graphs sweep triton --branches 1 4 8 --output train-engines-gpu.json
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

from anml.config.training import InnerOptimizer, TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import Episode
from anml.meta.adjoint import AdjointEngine, NativeEngine, TritonEngine, missing_triton
from anml.meta.engine import Engine, FirstOrderEngine, ReferenceEngine
from anml.meta.fast import FastEngine
from anml.meta.functional_episode import CompiledEngine
from anml.meta.outer_step import OuterStep
from anml.meta.static_update import StaticUpdate, UpdateGraph
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
    "triton": TritonEngine,
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
    if arguments.device == "cuda":  # As a job trains (anml/machine.py): float32 throughout, the same bits each time.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        facts = machine()
    rows = [row for model in arguments.models for row in measure(model, arguments)]
    rows += [row for model in arguments.models for row in measure_graphs(model, arguments)]
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
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--graphs", nargs="*", default=[], choices=list(ENGINES), help="engines to capture as graphs")
    parser.add_argument("--branches", nargs="+", type=int, default=[1], help="trainings in one graph")
    parser.add_argument("--updates", type=int, default=100, help="replays of a graph in each round")
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
    model, episode = model.to(arguments.device), make_episode(arguments)
    engines = dict(make_engines(model, inner, arguments.engines))
    for engine in engines.values():
        engine.run(episode)  # Allocations, builds and the library's own warming up.
        if engine.note:
            print(f"{name}, {engine.name}: {engine.note}")
    seconds: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(arguments.rounds):
        for engine, runner in engines.items():
            begin = now(arguments.device)
            runner.run(episode)
            end = now(arguments.device)
            seconds[engine].append(end - begin)
    medians = {engine: statistics.median(times) for engine, times in seconds.items()}
    slowest = medians.get("reference")
    return [
        {"model": name, "engine": e, "median_s": m, "seconds": seconds[e], "ratio": slowest / m if slowest else None}
        for e, m in medians.items()
    ]


def now(device: str) -> float:
    """Return the time when the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# Updates after which a graph has chosen how many branches it takes at once.
TRIALS = 40


def measure_graphs(name: str, arguments: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """Time whole updates, captured as branches of graphs; the alternatives take turns."""
    wanted = [(engine, branches) for engine in arguments.graphs for branches in arguments.branches]
    graphs, peaks = {}, {}
    for engine, branches in wanted:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        graph = UpdateGraph([make_update(name, engine, i, arguments) for i in range(branches)])
        graphs[engine, branches] = graph
        for index in range(TRIALS):
            graph.step(index)
        peaks[engine, branches] = (torch.cuda.max_memory_allocated() - before) / 2**30
        note = graph.note or "captured"
        print(f"{name}, graph of {engine}, {branches} branches: {note}, {peaks[engine, branches]:.2f} GiB")
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in wanted}
    for turn in range(arguments.rounds):
        for key in wanted:
            begin = now("cuda")
            for index in range(arguments.updates):
                graphs[key].step(TRIALS + turn * arguments.updates + index)
            seconds[key].append((now("cuda") - begin) / arguments.updates)
    for (engine, branches), times in seconds.items():
        median = statistics.median(times)
        row = {"model": name, "engine": f"graph of {engine}, {branches}", "median_s": median, "seconds": times}
        peak = peaks[engine, branches]
        yield row | {"ratio": None, "updates_per_s": branches / median, "peak_gib": peak}


def make_update(name: str, engine: str, seed: int, arguments: argparse.Namespace) -> StaticUpdate:
    """Return the updates of one training on the GPU, on images of noise."""
    model, inner = make_model(name, arguments)
    model = model.to("cuda")
    config = TrainConfig(
        dataset="omniglot", model=name, num_batches=arguments.steps, remember_size=arguments.remember, log_freq=50
    )
    noise = torch.randint(256, (20, 20, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    outer = OuterStep(config, model, seed)
    return StaticUpdate(
        config, outer, ENGINES[engine](model, inner, InnerOptimizer(0.1)).run, ClassImages(noise.cuda(), "noise")
    )


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
    device = torch.device(arguments.device)
    index = torch.arange(steps, device=device)[:, None]
    return Episode(images.to(device), labels.to(device), index, 0, (0,))


def make_engines(model: MetaModel, inner: list[str], wanted: list[str]) -> Iterable[tuple[str, Engine]]:
    """Yield the wanted engines that can train the model; say which cannot."""
    device = next(model.parameters()).device
    missing = {"triton": missing_triton(device), "native": "it needs a CPU" if device.type == "cuda" else ""}
    if device.type == "cpu" and "native" in wanted:
        missing["native"] = available("train").reason
    for name in wanted:
        reason = AdjointEngine.unsupported(model, inner) if name in ("sweep", "native", "triton") else ""
        reason = reason or missing.get(name, "")
        if reason:
            print(f"{type(model).__name__}, {name}: left out: {reason}")
        else:
            yield name, (ENGINES | FIRST_ORDER)[name](model, inner, InnerOptimizer(0.1))


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print one line for each model and engine."""
    print(f"{'model':8}{'engine':24}{'ms/episode':>12}{'times the reference':>22}")
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        print(f"{row['model']:8}{row['engine']:24}{row['median_s'] * 1e3:12.1f}{ratio:>22}")


if __name__ == "__main__":
    main()
