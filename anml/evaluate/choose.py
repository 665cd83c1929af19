"""Chooses the engine of an evaluation: what the config asks for, or the fastest that model, machine and sweep allow."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from anml.config.evaluation import EvalConfig
from anml.errors import ConfigError
from anml.evaluate import native
from anml.evaluate.lanes import LaneLearner, lanes_that_fit
from anml.evaluate.native import native_learner
from anml.evaluate.reference import ReferenceLearner
from anml.evaluate.trial import Trial

# On a CPU lanes gain nothing; this is for trying them.
_LANES_ON_CPU = 16


class Engine(NamedTuple):
    """A way to learn: its name, why it was chosen, how many trajectories it takes at once, and what makes a learner."""

    name: str
    why: str
    lanes: int
    make: Callable[[Sequence[Trial], Sequence[float]], Any]


def choose_engine(config: EvalConfig, trial: Trial, trajectories: int) -> Engine:
    """Return the engine for a sweep of so many trajectories, given its first trial. Raises ConfigError."""
    if config.engine == "lanes":
        return _lanes(trial, "asked for")
    if config.engine == "native":
        reason = native.unsupported(trial)
        if reason:
            message = f"engine: native cannot evaluate this: {reason}. Use engine: auto."
            raise ConfigError(message)
        return _native("asked for")
    if config.engine == "reference":
        return _reference("asked for")
    if trial.train_inputs.is_cuda:
        return _lanes(trial, "on a GPU")
    if config.eval_method != "sequential":
        return _reference("in batches")
    if not native.pays(trial, trajectories):
        return _reference("a small sweep")
    reason = native.unsupported(trial)
    return _reference(f"not native: {reason}") if reason else _native("the fastest")


def _lanes(trial: Trial, why: str) -> Engine:
    lanes = lanes_that_fit(trial) if trial.train_inputs.is_cuda else _LANES_ON_CPU
    return Engine("lanes", f"{why}, up to {lanes} trajectories at once", lanes, LaneLearner)


def _native(why: str) -> Engine:
    return Engine("native", why, 1, lambda trials, rates: native_learner(trials[0], rates[0]))


def _reference(why: str) -> Engine:
    return Engine("reference", why, 1, lambda trials, rates: ReferenceLearner(trials[0], rates[0]))
