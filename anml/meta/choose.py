"""Chooses the engine of a training: what the config asks for, or the fastest that this model and machine allow."""

from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.meta import conv_sweep, native
from anml.meta.conv_sweep import SweepEngine
from anml.meta.engine import Engine
from anml.meta.fast import FastEngine
from anml.meta.first_order import FirstOrderEngine
from anml.meta.native import NativeEngine
from anml.models.blocks import has_batch_norm
from anml.models.meta_model import MetaModel
from anml.native.build import available


def make_engine(config: TrainConfig, model: MetaModel, inner_names: list[str]) -> tuple[Engine, str]:
    """Return an engine, and why it is this one. Raises ConfigError when the engine asked for cannot do it."""
    rate = config.inner_lr
    if config.train_method in ("meta-first-order", "sequential_episodic"):
        keep = config.train_method == "sequential_episodic"
        return FirstOrderEngine(model, inner_names, rate, keep_fast_weights=keep), config.train_method
    if config.engine == "auto":
        return _fastest(model, inner_names, rate)
    if config.engine == "reference":
        if has_batch_norm(model):
            message = "engine: reference never updates the running statistics of a BatchNorm; use engine: fast"
            raise ConfigError(message)
        from anml.meta.reference import ReferenceEngine  # Only here: `higher` is not needed by the others.

        return ReferenceEngine(model, inner_names, rate), "asked for"
    if config.engine == "fast":
        return FastEngine(model, inner_names, rate), "asked for"
    obstacle = _obstacle(config.engine, model, inner_names)
    if obstacle:
        message = f"engine: {config.engine} cannot train this: {obstacle}. Use engine: auto."
        raise ConfigError(message)
    return (NativeEngine if config.engine == "native" else SweepEngine)(model, inner_names, rate), "asked for"


def _fastest(model: MetaModel, inner_names: list[str], rate: float) -> tuple[Engine, str]:
    """Return the fastest engine: native, else the sweep, else the general one (docs/performance.md has the ratios)."""
    why_not_native = _obstacle("native", model, inner_names)
    if not why_not_native:
        return NativeEngine(model, inner_names, rate), "the fastest"
    if not _obstacle("sweep", model, inner_names):
        return SweepEngine(model, inner_names, rate), f"not native: {why_not_native}"
    return FastEngine(model, inner_names, rate), f"not native: {why_not_native}"


def _obstacle(engine: str, model: MetaModel, inner_names: list[str]) -> str:
    """Say what keeps an engine from training a model here, or return an empty string."""
    if engine == "sweep":
        return conv_sweep.unsupported(model, inner_names)
    # In this order: a kernel is only built for a model that can use it.
    return native.unsupported(model, inner_names) or available("train").reason
