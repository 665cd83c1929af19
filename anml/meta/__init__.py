"""Meta-learning: the gradient of an episode's outcome with respect to the weights it started from."""

from collections.abc import Sequence

from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.meta import adjoint, functional_episode, native
from anml.meta.adjoint import AdjointEngine
from anml.meta.engine import Engine, FirstOrderEngine
from anml.meta.fast import FastEngine
from anml.meta.functional_episode import CompiledEngine, missing_compiler
from anml.meta.lanes import LanesEngine, unsupported_lanes
from anml.meta.native import NativeEngine
from anml.models.blocks import has_batch_norm
from anml.models.meta_model import MetaModel
from anml.native import available

# Chooses the engine of a training: what the config asks for, or the fastest that this model and machine allow.

# Fastest first (docs/performance.md). A graph is of an update by one of the engines in the last line.
_ON_CPU = ("native", "sweep", "fast")
_ON_GPU = ("graph", "compiled", "fast")
_IN_A_GRAPH = ("sweep", "compiled", "fast")
_AUGMENTED = "every image is cropped by the host (augment: true)"


def choose(config: TrainConfig, model: MetaModel, inner_names: list[str]) -> tuple[str, str]:
    """Return an engine's name, and why it is this one. Raises ConfigError when the engine asked for cannot do it."""
    if config.engine == "auto":
        names = _ON_GPU if next(model.parameters()).device.type == "cuda" else _ON_CPU
        return _first_possible(names, config, model, inner_names)
    # Without a compiler `compiled` is slower, not wrong: it falls back, and says so.
    obstacle = functional_episode.unsupported(model) if config.engine == "compiled" else None
    obstacle = _obstacle(config.engine, config, model, inner_names) if obstacle is None else obstacle
    if obstacle:
        message = f"engine: {config.engine} cannot train this: {obstacle}. Use engine: auto."
        raise ConfigError(message)
    return config.engine, "asked for"


def make_engine(config: TrainConfig, model: MetaModel, inner_names: list[str]) -> tuple[Engine, str]:
    """Return an engine, for `graph` the one that the graph is made of, and why. Raises ConfigError."""
    if config.train_method in ("meta-first-order", "sequential_episodic"):
        return _first_order(config, model, inner_names), config.train_method
    name, why = choose(config, model, inner_names)
    if name == "graph":
        name = _first_possible(_IN_A_GRAPH, config, model, inner_names)[0]
        why = f"of which one graph is made per update ({why})"
    return _make(name, model, inner_names, config.inner_lr), why


def make_lanes(
    config: TrainConfig, models: Sequence[MetaModel], inner_names: list[str], inner_lrs: Sequence[float]
) -> tuple[LanesEngine, str]:
    """Return the engine that trains several models together, and what it is. Raises ConfigError."""
    on_gpu = next(models[0].parameters()).device.type == "cuda"
    obstacle = unsupported_lanes(models[0]) or (_AUGMENTED if config.augment else "")
    obstacle = obstacle or (_obstacle("graph", config, models[0], inner_names) if config.engine == "graph" else "")
    if obstacle:
        message = f"train_together: {obstacle}. Set train_together: false: a job of its own for each training."
        raise ConfigError(message)
    compiled = config.engine == "compiled"
    slow = "" if on_gpu else "; on a CPU that is slower than one after another: train_together is meant for GPUs"
    why = f"{len(models)} trainings at once{slow}"
    return LanesEngine(models, inner_names, inner_lrs, compiled), why


def uses_graph(config: TrainConfig, model: MetaModel) -> bool:
    """Say whether updates are captured as a graph."""
    is_meta, on_gpu = config.train_method == "meta", next(model.parameters()).device.type == "cuda"
    return is_meta and on_gpu and config.engine in ("auto", "graph") and not config.augment


def _first_possible(
    names: Sequence[str], config: TrainConfig, model: MetaModel, inner_names: list[str]
) -> tuple[str, str]:
    """Return the first engine that nothing keeps from training a model, and what kept those before it."""
    obstacles: list[str] = []
    for name in names:
        obstacle = _obstacle(name, config, model, inner_names)
        if not obstacle:
            return name, "; ".join(obstacles) or "the fastest"
        obstacles.append(f"not {name}: {obstacle}")
    raise AssertionError(obstacles)  # The fast engine trains every model.


def _first_order(config: TrainConfig, model: MetaModel, inner_names: list[str]) -> FirstOrderEngine:
    keep, native = config.train_method == "sequential_episodic", config.engine in ("auto", "native")
    engine = FirstOrderEngine(model, inner_names, config.inner_lr, keep, native)
    if config.engine == "native" and not engine.is_native:
        reason = engine.note or "it has no convolution blocks on a CPU that the kernels can run"
        message = f"engine: native cannot train this: {reason}. Use engine: auto."
        raise ConfigError(message)
    return engine


def _make(name: str, model: MetaModel, inner_names: list[str], rate: float) -> Engine:
    if name == "reference":
        from anml.meta.engine import ReferenceEngine  # Only here: `higher` is not needed by the others.

        return ReferenceEngine(model, inner_names, rate)
    engines = {"fast": FastEngine, "sweep": AdjointEngine, "native": NativeEngine, "compiled": CompiledEngine}
    return engines[name](model, inner_names, rate)


def _obstacle(engine: str, config: TrainConfig, model: MetaModel, inner_names: list[str]) -> str:
    """Say what keeps an engine from training a model here, or return an empty string."""
    device = next(model.parameters()).device
    if engine == "reference":
        return "it never updates the running statistics of a BatchNorm" if has_batch_norm(model) else ""
    if engine == "graph" and config.augment:
        return _AUGMENTED
    if engine == "graph":
        return "" if device.type == "cuda" else "graphs need a GPU (CUDA or ROCm), and this trains on a CPU"
    if engine == "compiled":
        return functional_episode.unsupported(model) or missing_compiler(device)
    if engine == "sweep":
        return adjoint.unsupported(model, inner_names)
    if engine == "native":
        # In this order: a kernel is only built for a model that can use it.
        return native.unsupported(model, inner_names) or available("train").reason
    return ""
