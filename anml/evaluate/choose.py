"""How much there is to compute in a sweep: whether building kernels for it is worth the time."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from anml.config.evaluation import EvalConfig
from anml.errors import ConfigError
from anml.evaluate.lanes import LaneLearner, lanes_that_fit
from anml.evaluate.learner import ReferenceLearner
from anml.evaluate.native import NativeBatchLearner, native_learner, unsupported
from anml.evaluate.prepared_run import PreparedRun, RunPreparer

# What the native kernels save on a core, measured: seconds for each step of a weight, and for each multiplication of a
# convolution.
_PER_WEIGHT, _PER_MULTIPLICATION = 0.5e-9, 7e-11
# What building them takes.
_BUILD = 60.0


def pays(preparer: RunPreparer, config: EvalConfig, runs: int, trajectories: int) -> bool:
    """Say whether a sweep is large enough to build native kernels for; not whether they are built already."""
    return seconds_saved(preparer, config, runs, trajectories) >= _BUILD


def seconds_saved(preparer: RunPreparer, config: EvalConfig, runs: int, trajectories: int) -> float:
    """Estimate what native kernels save in a sweep."""
    classes, train, test = preparer.largest
    examples = classes * (train + test)
    if preparer.stage == "images":
        scorings = len(config.score_points(classes)) if config.eval_method == "sequential" else config.epochs
        passes = config.epochs if config.eval_method == "iid" else 1
        images = trajectories * (3 * classes * train * passes + scorings * examples)
    else:
        images = runs * examples
    weights = sum(preparer.model.get_parameter(name).numel() for name in preparer.trained)
    steps = trajectories * classes * train if config.eval_method == "sequential" else 0
    return steps * weights * _PER_WEIGHT + images * multiplications(preparer) * _PER_MULTIPLICATION


def multiplications(preparer: RunPreparer) -> int:
    """Count a convolution's multiplications for one image, over all convolutions."""
    count = 0

    def add(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal count
        weight = layer.get_parameter("weight")
        count += weight.numel() * output.shape[2] * output.shape[3]

    handles = [m.register_forward_hook(add) for m in preparer.model.modules() if isinstance(m, nn.Conv2d)]
    images, _ = preparer.data.batch(torch.tensor([0]), torch.tensor([0]), preparer.dtype)
    with torch.no_grad():
        preparer.model(images)
    for handle in handles:
        handle.remove()
    return count


# Chooses the engine of an evaluation: what the config asks for, or the fastest that model, machine and sweep allow.

# Runs whose least squares a GPU solves as one batch; on a CPU lanes gain nothing and are for trying them.
_SOLVED_TOGETHER, _LANES_ON_CPU = 16, 16


class Engine(NamedTuple):
    """A way to learn: its name, why it was chosen, how many trajectories it takes at once, and what makes a learner."""

    name: str
    why: str
    lanes: int
    make: Callable[[Sequence[PreparedRun], Sequence[float]], Any]


def choose_engine(config: EvalConfig, preparer: RunPreparer, runs: int, trajectories: int) -> Engine:
    """Return the engine for a sweep of so many runs and trajectories. Raises ConfigError."""
    device = preparer.data.images.device
    if config.engine == "reference":
        return _reference("asked for")
    if config.engine == "lanes" or (config.engine == "auto" and device.type == "cuda"):
        return _lanes(preparer, "asked for" if config.engine == "lanes" else "on a GPU")
    if config.engine == "auto" and not pays(preparer, config, runs, trajectories):
        return _reference("a small sweep")
    reason = unsupported(device, preparer.dtype)
    if not reason:
        return _native(config, "asked for" if config.engine == "native" else "the fastest")
    if config.engine == "native":
        message = f"engine: native cannot evaluate this: {reason}. Use engine: auto."
        raise ConfigError(message)
    return _reference(f"not native: {reason}")


def _lanes(preparer: RunPreparer, why: str) -> Engine:
    lanes = _LANES_ON_CPU
    if preparer.data.images.is_cuda:
        lanes = lanes_that_fit(preparer) if preparer.learns else _SOLVED_TOGETHER
    return Engine("lanes", f"{why}, up to {lanes} trajectories at once", lanes, LaneLearner)


def _native(config: EvalConfig, why: str) -> Engine:
    kind = NativeBatchLearner if config.eval_method == "iid" else native_learner
    return Engine("native", why, 1, lambda prepared_runs, rates: kind(prepared_runs[0], rates[0]))


def _reference(why: str) -> Engine:
    return Engine("reference", why, 1, lambda prepared_runs, rates: ReferenceLearner(prepared_runs[0], rates[0]))
