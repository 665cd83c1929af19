"""Meta-learning: the gradient of an episode's outcome with respect to the weights it started from.

This file chooses the engine of a training: what the config asks for, or the fastest for this model and machine.
"""

from collections.abc import Sequence

from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.meta import functional_episode
from anml.meta.adjoint import AdjointEngine, NativeEngine, TritonEngine, missing_triton
from anml.meta.engine import Engine, FirstOrderEngine, ReferenceEngine
from anml.meta.fast import FastEngine, moves_linears_alone
from anml.meta.functional_episode import CompiledEngine, missing_compiler
from anml.models.blocks import has_batch_norm
from anml.models.meta_model import MetaModel
from anml.native import available

ENGINES = {
    "reference": ReferenceEngine,
    "fast": FastEngine,
    "sweep": AdjointEngine,
    "native": NativeEngine,
    "triton": TritonEngine,
    "compiled": CompiledEngine,
}
# Fastest first, as measured (docs/performance.md): `triton` is in no list, because no card has run it yet. `graph`
# captures an update by an engine of the last line.
_ON_CPU = ("native", "sweep", "fast")
_IN_A_GRAPH = ("sweep", "compiled", "fast")
_ON_GPU = ("graph", *_IN_A_GRAPH)


def choose(config: TrainConfig, model: MetaModel, inner_names: list[str]) -> tuple[str, str]:
    """Return an engine's name, and why it is this one. Raises ConfigError when the engine asked for cannot do it."""
    if config.engine == "auto":
        names = _ON_GPU if next(model.parameters()).device.type == "cuda" else _ON_CPU
        return _first_possible(names, config, model, inner_names)
    obstacle = _obstacle(config.engine, config, model, inner_names)
    if obstacle:
        message = f"engine: {config.engine} cannot train this: {obstacle}. Use engine: auto."
        raise ConfigError(message)
    return config.engine, "asked for"


def make_engine(config: TrainConfig, model: MetaModel, inner_names: list[str]) -> tuple[Engine, str]:
    """Return an engine, for `graph` the one that the graph is made of, and why. Raises ConfigError."""
    if not config.method.is_second_order:
        return _first_order(config, model, inner_names), config.train_method
    name, why = choose(config, model, inner_names)
    if name == "graph":
        name = _first_possible(_IN_A_GRAPH, config, model, inner_names)[0]
    if uses_graph(config, model):
        why = f"of which one graph is made per update ({why})"
    return ENGINES[name](model, inner_names, config.inner), why


def uses_graph(config: TrainConfig, model: MetaModel) -> bool:
    """Say whether updates are captured as a graph. `triton` alone would wait for the host at each of its launches."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    is_captured = config.engine in ("auto", "graph", "triton")
    return config.method.is_second_order and on_gpu and is_captured and not config.augment


def _first_possible(
    names: Sequence[str], config: TrainConfig, model: MetaModel, inner_names: list[str]
) -> tuple[str, str]:
    """Return the first engine that can train a model, and the obstacles of those before it."""
    obstacles: list[str] = []
    for name in names:
        obstacle = _obstacle(name, config, model, inner_names)
        if name == "compiled" and not moves_linears_alone(model, inner_names):
            obstacle = obstacle or "not measured to pay where the inner loop moves more than Linear layers"
        if not obstacle:
            return name, "; ".join(obstacles) or "the fastest"
        obstacles.append(f"not {name}: {obstacle}")
    raise AssertionError(obstacles)  # The fast engine trains every model.


def _first_order(config: TrainConfig, model: MetaModel, inner_names: list[str]) -> FirstOrderEngine:
    keep = config.method.keeps_fast_weights
    use_kernels = config.engine in ("auto", "native") and config.precision != "bf16-mixed"
    moves = config.method.moves_to_fast_weights
    engine = FirstOrderEngine(model, inner_names, config.inner, keep, use_kernels, moves)
    if config.engine == "native" and not engine.is_native:
        reason = engine.note or "it has no convolution blocks on a CPU that the kernels can run"
        message = f"engine: native cannot train this: {reason}. Use engine: auto."
        raise ConfigError(message)
    return engine


def _obstacle(engine: str, config: TrainConfig, model: MetaModel, inner_names: list[str]) -> str:
    """Say why an engine cannot train a model on this machine, or return an empty string."""
    device = next(model.parameters()).device
    if config.precision == "bf16-mixed" and engine not in ("graph", "fast", "reference"):
        return "it computes in float32 alone (precision: bf16-mixed)"
    if not config.inner.is_plain and engine not in ("graph", "fast", "reference"):
        return "it takes plain SGD steps alone (inner_optimizer, inner_momentum)"
    if engine == "reference":
        return "it never updates the running statistics of a BatchNorm" if has_batch_norm(model) else ""
    if engine == "graph" and config.augment:
        return "every image is cropped by the host (augment: true)"
    if engine == "graph":
        return "" if device.type == "cuda" else "graphs need a GPU (CUDA or ROCm), and this trains on a CPU"
    if engine == "compiled" and device.type != "cuda":
        return "it pays on a GPU alone (CUDA or ROCm), and this trains on a CPU"
    if engine == "compiled":
        return functional_episode.unsupported(model) or missing_compiler()
    if engine == "sweep":
        return AdjointEngine.unsupported(model, inner_names)
    if engine == "native":
        # In this order: a kernel is only built for a model that can use it.
        return NativeEngine.unsupported(model, inner_names) or available("train").reason
    if engine == "triton":
        return TritonEngine.unsupported(model, inner_names) or missing_triton(device)
    return ""
