"""Measures how cost grows with each size of an experiment, and draws it on double-logarithmic axes.

    PYTHONPATH=. python benchmarks/scaling.py

Training: an episode of ANML by the fastest engine, against inner steps, channels and the remember set. Evaluation: a
sweep of the output layer alone, against classes, learning rates and runs. Medians of alternating rounds. It writes
benchmarks/results/scaling.json and docs/images/scaling.png.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from anml.checkpoints import ModelCard
from anml.config.evaluation import EvalConfig
from anml.config.training import InnerOptimizer
from anml.data.class_images import ClassImages
from anml.data.episodes import Episode
from anml.evaluate.sweep import LoadedModel, run_sweep, sweep_trajectories
from anml.meta.adjoint import NativeEngine
from anml.models import build_model
from anml.models.meta_model import belongs_to
from benchmarks.evaluate_engines import alternate
from benchmarks.machine import machine

mpl.use("Agg")

REPOSITORY = Path(__file__).resolve().parent.parent
EPISODE = {"inner steps": 20, "channels": 256, "remember set": 64}
SWEEP = {"classes": 100, "rates": 2, "runs": 2}
TRIED = {
    "inner steps": [5, 10, 20, 40],
    "channels": [32, 64, 128, 256],
    "remember set": [16, 64, 256],
    "classes": [25, 50, 100, 200],
    "rates": [1, 2, 4],
    "runs": [1, 2, 4],
}


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks/results/scaling.json")
    arguments = parser.parse_args()
    parts = {(name, size): prepare(name, size) for name, sizes in TRIED.items() for size in sizes}
    medians = alternate({f"{name} {size}": part for (name, size), part in parts.items()}, arguments.rounds)
    rows = [
        {"what": name, "sizes": sizes, "seconds": [medians[f"{name} {size}"] for size in sizes]}
        for name, sizes in TRIED.items()
    ]
    for row in rows:
        row["exponent"] = slope(row["sizes"], row["seconds"])
        print(f"{row['what']:<14}{row['exponent']:>6.2f}  {[round(s, 4) for s in row['seconds']]}")
    arguments.output.write_text(
        json.dumps({"machine": machine(), "fixed": EPISODE | SWEEP, "rows": rows}, indent=1) + "\n"
    )
    draw(rows, REPOSITORY / "docs/images/scaling.png")


def prepare(name: str, size: int) -> Callable[[], float]:
    """Return what times one episode, or one sweep, with one of its sizes changed."""
    work = episode(EPISODE | {name: size}) if name in EPISODE else sweep(SWEEP | {name: size})

    def timed() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return timed


def episode(sizes: dict[str, int]) -> Callable[[], Any]:
    """Return one meta-gradient of an ANML on random images."""
    channels, steps, remember = sizes["channels"], sizes["inner steps"], sizes["remember set"]
    model = build_model("anml", {"rln_chs": channels, "nm_chs": channels * 112 // 256}, (1, 28, 28), seed=1)
    engine = NativeEngine(
        model, [n for n, _ in model.named_parameters() if not belongs_to(n, "nm")], InnerOptimizer(0.1)
    )
    images = torch.rand(steps + remember, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(steps + remember) % 1000
    return lambda: engine.run(Episode(images, labels, torch.arange(steps)[:, None], 0, (0,)))


def sweep(sizes: dict[str, int]) -> Callable[[], Any]:
    """Return one sweep of the output layer of an ANML on random images; encoding them is part of it."""
    model = build_model("anml", {"rln_chs": 64, "nm_chs": 28}, (1, 28, 28), seed=1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (sizes["classes"], 20, 1, 28, 28), dtype=torch.uint8, generator=generator)
    rates = tuple(0.001 / (1 + i) for i in range(sizes["rates"]))
    config = EvalConfig(
        dataset="omniglot", classes=(sizes["classes"],), lr=rates, runs=sizes["runs"], engine="native", eval_freq=0
    )
    card = ModelCard("anml", {}, (1, 28, 28), "ANML", "omniglot", "meta", step=1, seed=1)
    data = ClassImages(images, "random")
    return lambda: list(run_sweep(LoadedModel(model, card, data, config), "olft", sweep_trajectories(config)))


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Return the exponent between the two largest sizes: 1 is proportional."""
    return math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw training on the left, evaluation on the right, each relative to its smallest size."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    for row in rows:
        panel = panels[int(row["what"] in SWEEP)]
        relative = [size / row["sizes"][0] for size in row["sizes"]]
        label = f"{row['what']} (from {row['sizes'][0]})"
        panel.loglog(relative, [s / row["seconds"][0] for s in row["seconds"]], "o-", label=label)
    for panel, title in zip(panels, ("an episode of training", "a sweep of evaluation"), strict=True):
        panel.loglog([1, 16], [1, 16], color="0.7", linestyle=":", label="proportional")
        panel.set(title=title, xlabel="size, relative to the smallest")
        panel.legend(frameon=False)
    panels[0].set_ylabel("time, relative")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
