"""Times the evaluation of an ANML (RLN 256, NM 112, 1000 outputs) by its engines against the plain way, A B A B.

    PYTHONPATH=. python benchmarks/evaluate_engines.py --rounds 5

The plain way runs the whole network for every example and every scored image, with autograd and torch.optim.Adam with
its defaults, one trajectory after the other. The script extrapolates a sweep of 12 rates x 10 runs at 600 classes
(9,000 steps and 13 scorings of 12,000 images each) from measured parts: steps, scored images and, for the engines,
encoding every image of the split once. It prints a table and writes benchmarks/results/evaluate-engines.json with the
facts of the machine.

    PYTHONPATH=. python benchmarks/evaluate_engines.py --sweeps

On a GPU this runs whole sweeps (lanes): the output layer in sequence and shuffled, zero-shot, all layers, each of 12
rates x 10 runs at 600 classes. It prints the medians beside the times to reach and the plain way (extrapolated from its
steps and scored images), and writes benchmarks/results/evaluate-sweeps.json. Some 8 minutes on an H100.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from anml.checkpoints import ModelCard
from anml.config.evaluation import EvalConfig
from anml.data.class_images import ClassImages
from anml.evaluate.native import native_learner
from anml.evaluate.prepared_run import PreparedRun, RunPreparer, Shape, advance, predict
from anml.evaluate.protocols import class_scores
from anml.evaluate.sweep import LoadedModel, run_sweep, sweep_trajectories
from anml.machine import clock, describe_machine, peak_memory, prepare_device
from anml.models import build_model
from anml.models.meta_model import MetaModel
from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results"
CLASSES, TRAIN, TEST = 600, 15, 5
RATES, RUNS, SCORINGS, SPLIT = 12, 10, 13, 659 * 20
# What a sweep changes in the config, and the seconds that it may take.
SWEEPS: dict[str, tuple[dict[str, Any], float]] = {
    "head": ({"opt_params": ("head",), "eval_freq": 50}, 22),
    "shuffled": ({"eval_method": "iid", "batch_size": 256, "eval_freq": 5}, 5),
    "zero-shot": ({"eval_method": "zero_shot"}, 5),
    "all": ({"opt_params": ("all",), "eval_freq": 50}, 240),
}
_LONG = 60.0  # A sweep of more seconds is run once.


def main() -> None:
    """Measure, print, write."""
    arguments = parse()
    model = build_model("anml", {"rln_chs": arguments.channels, "nm_chs": 112}, (1, 28, 28), seed=1)
    if arguments.sweeps is not None:
        time_sweeps(model, arguments)
    else:
        compare_parts(model, arguments)


def compare_parts(model: MetaModel, arguments: argparse.Namespace) -> None:
    """Compare the parts of sweeps on a CPU."""
    rows = [measure_head(model, arguments), measure_unfrozen(model, arguments)]
    print(f"{'sweep':<12}{'plain, h':>10}{'ours, h':>10}{'ratio':>8}")
    for row in rows:
        print(f"{row['sweep']:<12}{row['plain_h']:>10.2f}{row['ours_h']:>10.2f}{row['ratio']:>8.1f}")
        print(f"{'':<12}{ {name: round(value, 6) for name, value in row['medians_s'].items()} }")
    write(arguments, {"machine": machine(), "rows": rows}, "evaluate-engines.json")


def write(arguments: argparse.Namespace, report: dict[str, Any], name: str) -> None:
    """Write a report, and with which arguments it was made."""
    output = arguments.output or RESULTS / name
    report["arguments"] = vars(arguments) | {"output": output.name}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {output}")


def time_sweeps(model: MetaModel, arguments: argparse.Namespace) -> None:
    """Run whole sweeps as an evaluation job does, on random images."""
    device = prepare_device("auto")
    images = torch.randint(256, (SPLIT // (TRAIN + TEST), TRAIN + TEST, 1, 28, 28), dtype=torch.uint8)
    data, model = ClassImages(images, "random").to(device), model.to(device)
    report: dict[str, Any] = {"machine": machine() | describe_machine(device), "sweeps": {}}
    print(f"{describe_machine(device)['device']}: {'sweep':<12}{'median, s':>10}{'at most, s':>12}{'plain, s':>12}")
    for name in arguments.sweeps or SWEEPS:
        changes, most = SWEEPS[name]
        changes = {"classes": arguments.classes, "runs": arguments.runs, "engine": "lanes"} | changes
        changes["lr"] = [0.1 / 2**i for i in range(arguments.rates)]
        config = EvalConfig(dataset="omniglot", **changes)
        time_sweep(model, data, config.model_copy(update={"classes": (2,)}))  # Loads libraries, builds kernels.
        turns = [time_sweep(model, data, config) for _ in range(1 if most > _LONG else arguments.rounds)]
        median = statistics.median(turn["seconds"] for turn in turns)
        plain = time_plain(model, data, config, arguments) if config.protocol.in_sequence else None
        report["sweeps"][name] = {"median_s": median, "most_s": most, "plain_s": plain, "turns": turns}
        print(f"{name:<12}{median:>10.1f}{most:>12.0f}{plain or 0:>12.0f}  {turns[-1]['said']}")
    write(arguments, report, "evaluate-sweeps.json")


def time_sweep(model: MetaModel, data: ClassImages, config: EvalConfig) -> dict[str, Any]:
    """Return seconds and peak memory of a sweep, and what it says."""
    card, said = ModelCard("anml", {}, (1, 28, 28), "ANML", "omniglot", "meta", step=1, seed=1), list[str]()
    device = data.images.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin = clock(device)
    for _ in run_sweep(LoadedModel(model, card, data, config), "sweep", sweep_trajectories(config), say=said.append):
        pass
    return {"seconds": clock(device) - begin, "memory": peak_memory(device), "said": said}


def time_plain(model: MetaModel, data: ClassImages, config: EvalConfig, arguments: argparse.Namespace) -> float:
    """Extrapolate the seconds of the same sweep by the plain way."""
    whole = RunPreparer(model, config.model_copy(update={"opt_params": ("all",)}), data)
    [prepared] = whole.make(whole.largest, [0])
    plain, device = PlainLearner(prepared, config.opt_params[0]), data.images.device
    images = prepared.train_inputs[: arguments.images]
    medians = alternate(
        {
            "step": per(arguments.steps, lambda: plain.learn(arguments.steps), device),
            "scored image": per(len(images), lambda: plain.score(images), device),
        },
        arguments.rounds,
    )
    classes, train, test = whole.largest
    scored = len(config.score_points(classes)) * classes * (train + test)
    return config.count_trajectories() * (classes * train * medians["step"] + scored * medians["scored image"])


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often every part has its turn")
    parser.add_argument("--steps", type=int, default=30, help="steps a turn")
    parser.add_argument("--images", type=int, default=320, help="images a turn, where whole images are scored")
    parser.add_argument("--sweeps", nargs="*", choices=SWEEPS, help="time whole sweeps instead, all or these")
    parser.add_argument("--classes", type=int, default=CLASSES, help="of the sweeps")
    parser.add_argument("--rates", type=int, default=RATES, help="of the sweeps")
    parser.add_argument("--runs", type=int, default=RUNS, help="of the sweeps")
    parser.add_argument("--channels", type=int, default=256, help="of the model")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def measure_head(model: MetaModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare a sweep of the output layer alone."""
    whole, cached = (prepare_run(model, params) for params in ("all", "head"))
    plain, fast = PlainLearner(whole, "head"), native_learner(cached, 0.001)
    images = whole.train_inputs[: arguments.images]
    medians = alternate(
        {
            "plain step": per(arguments.steps, lambda: plain.learn(arguments.steps)),
            "native step": per(arguments.steps, lambda: fast.learn_each(0, arguments.steps)),
            "plain scored image": per(len(images), lambda: plain.score(images)),
            "native scored image": per(CLASSES * (TRAIN + TEST), lambda: score(fast, cached)),
            "encoded image": per(len(images), lambda: advance(model, images, "head")),
        },
        arguments.rounds,
    )
    trajectories, steps, scored = RATES * RUNS, CLASSES * TRAIN, SCORINGS * CLASSES * (TRAIN + TEST)
    before = trajectories * (steps * medians["plain step"] + scored * medians["plain scored image"])
    now = trajectories * (steps * medians["native step"] + scored * medians["native scored image"])
    now += SPLIT * medians["encoded image"]
    return {"sweep": "head only", "plain_h": before / 3600, "ours_h": now / 3600, "ratio": before / now,
            "medians_s": medians}  # fmt: skip


def measure_unfrozen(model: MetaModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare a sweep of all layers."""
    prepared = prepare_run(model, "all")
    plain, fast = PlainLearner(prepared, "all"), native_learner(prepared, 0.001)
    images = prepared.train_inputs[: arguments.images]
    medians = alternate(
        {
            "plain step": per(arguments.steps, lambda: plain.learn(arguments.steps)),
            "native step": per(arguments.steps, lambda: fast.learn_each(0, arguments.steps)),
            "plain scored image": per(len(images), lambda: plain.score(images)),
            "native scored image": per(len(images), lambda: predict(fast.model, images, "images")),
        },
        arguments.rounds,
    )
    steps, scored = CLASSES * TRAIN, SCORINGS * CLASSES * (TRAIN + TEST)
    before = steps * medians["plain step"] + scored * medians["plain scored image"]
    now = steps * medians["native step"] + scored * medians["native scored image"]
    hours = RATES * RUNS / 3600
    return {"sweep": "all layers", "plain_h": before * hours, "ours_h": now * hours, "ratio": before / now,
            "step_ratio": medians["plain step"] / medians["native step"], "medians_s": medians}  # fmt: skip


class PlainLearner:
    """One example at a time through the whole network."""

    def __init__(self, prepared: PreparedRun, params: str) -> None:
        self.prepared, self.model = prepared, copy.deepcopy(prepared.model)
        prefix = self.model.head_layer if params == "head" else ""
        trained = [p for name, p in self.model.named_parameters() if name.startswith(prefix)]
        self.optimizer = torch.optim.Adam([p.requires_grad_(True) for p in trained], lr=0.001)

    def learn(self, steps: int) -> None:
        """Learn the first examples."""
        for i in range(steps):
            logits = self.model(self.prepared.train_inputs[i : i + 1])
            self.optimizer.zero_grad()
            cross_entropy(logits, self.prepared.train_labels[i : i + 1]).backward()
            self.optimizer.step()

    def score(self, images: torch.Tensor) -> None:
        """Predict in batches of 256."""
        with torch.no_grad():
            for part in images.split(256):
                self.model(part).topk(5, dim=1)


def score(learner: Any, prepared: PreparedRun) -> None:
    """Score a trajectory as the protocols do."""
    for train, test in learner.logits():
        class_scores(train, prepared.train_labels, CLASSES)
        class_scores(test, prepared.test_labels, CLASSES)


def prepare_run(model: MetaModel, params: str) -> PreparedRun:
    """Return a run of real size on random images (features: on few of them, repeated)."""
    config = EvalConfig(dataset="omniglot", opt_params=(params,))
    images = torch.randint(256, (CLASSES, TRAIN + TEST, 1, 28, 28), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))  # fmt: skip
    data = ClassImages(images, "random")
    if params == "all":
        return RunPreparer(model, config, data).make(Shape(CLASSES, TRAIN, TEST), [0])[0]
    small = RunPreparer(model, config, ClassImages(images[:10], "random")).make(Shape(10, TRAIN, TEST), [0])[0]
    large = RunPreparer(model, config.model_copy(update={"opt_params": ("all",)}), data)
    labels = large.make(Shape(CLASSES, TRAIN, TEST), [0])[0]
    return PreparedRun(
        labels.shape, 0, small.model, small.trained_names, small.redrawn_names, "head",
        small.train_inputs.repeat(CLASSES // 10, 1), labels.train_labels,
        small.test_inputs.repeat(CLASSES // 10, 1), labels.test_labels,
    )  # fmt: skip


def per(count: int, work: Callable[[], Any], device: torch.device | None = None) -> Callable[[], float]:
    """Return what times a piece of work, per unit."""
    device = device or torch.device("cpu")

    def timed() -> float:
        begin = clock(device)
        work()
        return (clock(device) - begin) / count

    return timed


def alternate(parts: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Time all parts in turn, after one turn to warm up; return medians in seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(rounds + 1):
        for name, part in parts.items():
            taken = part()
            if turn:
                seconds[name].append(taken)
    return {name: statistics.median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
