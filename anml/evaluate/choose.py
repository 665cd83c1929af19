"""Chooses the engine of an evaluation: what the config asks for, or the fastest that model, machine and sweep allow."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from anml.config.evaluation import EvalConfig
from anml.errors import ConfigError
from anml.evaluate.lanes import LaneLearner, lanes_that_fit
from anml.evaluate.native import NativeBatchLearner, native_learner, unsupported
from anml.evaluate.reference import ReferenceLearner
from anml.evaluate.trial import Trial, TrialMaker
from anml.evaluate.workload import pays

# Runs whose least squares a GPU solves as one batch; on a CPU lanes gain nothing and are for trying them.
_SOLVED_TOGETHER, _LANES_ON_CPU = 16, 16


class Engine(NamedTuple):
    """A way to learn: its name, why it was chosen, how many trajectories it takes at once, and what makes a learner."""

    name: str
    why: str
    lanes: int
    make: Callable[[Sequence[Trial], Sequence[float]], Any]


def choose_engine(config: EvalConfig, maker: TrialMaker, runs: int, trajectories: int) -> Engine:
    """Return the engine for a sweep of so many runs and trajectories. Raises ConfigError."""
    device = maker.data.images.device
    if config.engine == "reference":
        return _reference("asked for")
    if config.engine == "lanes" or (config.engine == "auto" and device.type == "cuda"):
        return _lanes(maker, "asked for" if config.engine == "lanes" else "on a GPU")
    if config.engine == "auto" and not pays(maker, config, runs, trajectories):
        return _reference("a small sweep")
    reason = unsupported(device, maker.dtype)
    if not reason:
        return _native(config, "asked for" if config.engine == "native" else "the fastest")
    if config.engine == "native":
        message = f"engine: native cannot evaluate this: {reason}. Use engine: auto."
        raise ConfigError(message)
    return _reference(f"not native: {reason}")


def _lanes(maker: TrialMaker, why: str) -> Engine:
    lanes = _LANES_ON_CPU
    if maker.data.images.is_cuda:
        lanes = lanes_that_fit(maker) if maker.learns else _SOLVED_TOGETHER
    return Engine("lanes", f"{why}, up to {lanes} trajectories at once", lanes, LaneLearner)


def _native(config: EvalConfig, why: str) -> Engine:
    kind = NativeBatchLearner if config.eval_method == "iid" else native_learner
    return Engine("native", why, 1, lambda trials, rates: kind(trials[0], rates[0]))


def _reference(why: str) -> Engine:
    return Engine("reference", why, 1, lambda trials, rates: ReferenceLearner(trials[0], rates[0]))
