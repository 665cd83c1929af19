"""Times an update of every training method at real size, alternating them (A B A B ...), and compares medians.

    PYTHONPATH=. python benchmarks/train_methods.py --config configs/train-omni-sanml.yml --rounds 5

It draws from the built-in glyphs, and writes benchmarks/results/train-methods.json with the facts of the machine.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from anml.config.load import load_train_config
from anml.train.loop import make_updater
from anml.train.run import new_model, training_data
from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "train-methods.json"
METHODS: dict[str, dict[str, Any]] = {
    "meta": {},
    "meta, tasks": {"sample_method": "sequential", "tasks": 3, "num_batches": 5},
    "meta, inner_momentum": {"inner_momentum": 0.5},
    "meta, meta-sgd": {"inner_optimizer": "meta-sgd"},
    "meta-first-order": {"train_method": "meta-first-order"},
    "reptile": {"train_method": "reptile"},
    "sequential_episodic": {"train_method": "sequential_episodic"},
    "prototypes": {"train_method": "prototypes"},
    "gemcl, map": {"train_method": "gemcl", "few_shot": {"posterior": "map"}},
    "gemcl, predictive": {"train_method": "gemcl"},
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/train-omni-sanml.yml"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: as many as PyTorch chooses")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    base = load_train_config(arguments.config, ["dataset=glyphs"]).config
    updaters = {}
    for name, changes in METHODS.items():
        config = type(base).model_validate({**base.model_dump(exclude_none=True), "eval": {}, **changes})
        updaters[name] = make_updater(config, new_model(config), training_data(config, torch.device("cpu"))[0])
        updaters[name].step(0)  # Builds and allocations.
    seconds: dict[str, list[float]] = {name: [] for name in updaters}
    for index in range(1, arguments.rounds + 1):
        for name, updater in updaters.items():
            begin = time.perf_counter()
            updater.step(index)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:22} {median * 1000:6.0f} ms  {median / medians['meta']:5.2f}  {updaters[name].note}")
    report = {"machine": machine(), "config": arguments.config.name, "rounds": arguments.rounds, "seconds": seconds}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
