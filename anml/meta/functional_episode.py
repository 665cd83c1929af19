"""An episode as a function of tensors of fixed shapes: the engine `compiled`, which a graph may capture.

A step takes its own gradient (torch.func.grad): with respect to the fast weights, and to a zero "probe" added to the
output of every Linear layer that learns, which is that layer's delta. It returns the next fast weights, and for Linear
layers two buffers with a row for every example of the inner loop (DualLayer), zero for steps to come. So every step has
the same shapes, one compiled function serves them all, and nothing is read back to the host. A plain loop chains the
steps, and ordinary autograd differentiates once through them.
"""

import copy
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, linear, pad

from anml.config.methods import InnerOptimizer
from anml.data.episodes import Episode
from anml.meta.engine import CheckedEpisodes, EpisodeOutcome, accuracy
from anml.meta.fast import FastEngine, fast_linears
from anml.models.meta_model import MetaModel, belongs_to

Weights = dict[str, torch.Tensor]


class DualLayer(nn.Module):
    """A Linear layer in dual form (fast.py): the steps so far are rows of two buffers, zero for steps to come.

    Buffers, given to every call: learning_rate [], inputs [R, in], deltas [R, out]; probe, zeros of the output's shape,
    whose gradient is the delta of this call.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        for name in ("learning_rate", "inputs", "deltas", "probe"):
            self.register_buffer(name, torch.zeros(()))
        self.learning_rate: torch.Tensor
        self.inputs: torch.Tensor
        self.deltas: torch.Tensor
        self.probe: torch.Tensor
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        similarity = x @ self.inputs.T
        if self.bias is not None:
            similarity = similarity + 1
        change = self.learning_rate * (similarity @ self.deltas)
        return linear(x, self.weight, self.bias) - change + self.probe

    def take_seen(self) -> torch.Tensor:
        """Return the input of the last call, and keep it no longer: it would outlive the function being compiled."""
        seen, self.seen = self.seen, None
        assert seen is not None
        return seen


class PlainMaxPool(nn.Module):
    """MaxPool2d as a selection among shifted images: the first of equal values, as in PyTorch's own."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = (_pair(v) for v in (pool.kernel_size, pool.stride, pool.padding))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = self.padding
        x = pad(x, (columns, columns, rows, rows), value=-torch.inf) if rows or columns else x
        down, across = (self._positions(size, axis) for axis, size in enumerate(x.shape[2:]))
        result, *others = (x[:, :, i, j] for i in down for j in across)
        for other in others:
            result = torch.where((other > result) | other.isnan(), other, result)
        return result

    def _positions(self, size: int, axis: int) -> list[slice]:
        """Return, for every offset in the window, where the windows have it."""
        kernel, stride = self.kernel[axis], self.stride[axis]
        reach = (size - kernel) // stride * stride + 1
        return [slice(offset, offset + reach, stride) for offset in range(kernel)]


class FunctionalEpisode:
    """The meta-gradient of an episode. Holds no weights of its own.

    compiled: torch.compile the functions that the loop is made of.
    """

    def __init__(self, model: MetaModel, inner_names: list[str], inner: InnerOptimizer, compiled: bool = False) -> None:
        self.lr = inner.lr
        self.linears = fast_linears(model, set(inner_names))
        self.sizes = {name: (layer.in_features, layer.out_features) for name, layer in self.linears.items()}
        in_dual_form = {f"{name}.{part}" for name in self.linears for part in ("weight", "bias")}
        self.fast_names = [name for name in inner_names if name not in in_dual_form]
        self.encoder_is_fixed = all(belongs_to(name, model.head_prefix) for name in inner_names)
        self.gate_is_fixed = not any(belongs_to(name, model.gate_prefix) for name in inner_names)
        self.net = skeleton(model, self.linears, plain_pools=compiled)
        self.prepare, self.step, self.query = self._prepare, self._step, self._query
        if compiled:
            self.prepare, self.step, self.query = map(_compile, (self.prepare, self.step, self.query))

    def run(self, slow: Weights, episode: Episode) -> EpisodeOutcome:
        """Return loss, accuracy and gradients at the slow weights (that require them)."""
        images, labels, support_index, query_start, _ = episode
        inputs, extra = self.prepare(slow, images)
        lr = images.new_full((), self.lr)  # Made by filling: a graph may hold no copies.
        fast, rows = {name: slow[name] for name in self.fast_names}, self._empty_rows(images, support_index.numel())
        positions = torch.arange(support_index.numel(), device=images.device).view_as(support_index)
        for position, index in zip(positions, support_index, strict=True):
            batch = [self._select(part, index) for part in (inputs, extra, labels)]
            fast, rows = self.step(slow, fast, rows, lr, position, *batch)
        query = torch.arange(query_start, len(labels), device=images.device)
        batch = [self._select(part, query) for part in (inputs, extra, labels)]
        loss, right = self.query({**slow, **fast, **rows}, lr, *batch)
        gradients = torch.autograd.grad(loss, list(slow.values()))
        return EpisodeOutcome(loss.detach(), right, dict(zip(slow, gradients, strict=True)))

    def _empty_rows(self, like: torch.Tensor, count: int) -> Weights:
        return {
            f"{name}.{part}": like.new_zeros(count, width)
            for name, sizes in self.sizes.items()
            for part, width in zip(("inputs", "deltas"), sizes, strict=True)
        }

    def _select(self, part: Any, index: torch.Tensor) -> Any:
        if isinstance(part, dict):
            return {key: self._select(value, index) for key, value in part.items()}
        return part.index_select(0, index)

    # The functions below are compiled: no annotations on nested functions, no state left behind.

    def _prepare(self, slow: Weights, images: torch.Tensor) -> tuple[torch.Tensor, Weights]:
        """Compute once what the inner loop does not change: the features [M, d] in place of images, or the gate."""
        if self.encoder_is_fixed:
            return functional_call(self.net, slow, (images,), {"part": "encode"}), {}
        gate = functional_call(self.net, slow, (images,), {"part": "modulate"}) if self.gate_is_fixed else None
        return images, {} if gate is None else {"gate": gate}

    def _step(
        self,
        slow: Weights,
        fast: Weights,
        rows: Weights,
        lr: torch.Tensor,
        position: torch.Tensor,
        inputs: torch.Tensor,
        extra: Weights,
        labels: torch.Tensor,
    ) -> tuple[Weights, Weights]:
        """Take an SGD step on inputs [B, ...], labels [B]; return the fast weights and rows after it.

        lr: zero-dimensional. position: int64 [B], the rows of this step.
        """
        probes = {f"{name}.probe": inputs.new_zeros(inputs.shape[0], size[1]) for name, size in self.sizes.items()}
        gradient = torch.func.grad(self._loss, has_aux=True)
        fixed = {**slow, **rows, **self._lr_of_layers(lr)}
        gradients, seen = gradient({**fast, **probes}, fixed, inputs, extra, labels)
        fast = {name: fast[name] - lr * gradients[name] for name in fast}
        for name in self.sizes:
            rows = rows | {
                f"{name}.inputs": rows[f"{name}.inputs"].index_copy(0, position, seen[name]),
                f"{name}.deltas": rows[f"{name}.deltas"].index_copy(0, position, gradients[f"{name}.probe"]),
            }
        return fast, rows

    def _loss(
        self, moving: Weights, fixed: Weights, inputs: torch.Tensor, extra: Weights, labels: torch.Tensor
    ) -> tuple[torch.Tensor, Weights]:
        logits, seen = self._call({**fixed, **moving}, inputs, extra)
        return cross_entropy(logits, labels), seen

    def _query(
        self, weights: Weights, lr: torch.Tensor, inputs: torch.Tensor, extra: Weights, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the meta loss and its accuracy."""
        probes = {f"{name}.probe": inputs.new_zeros(()) for name in self.sizes}
        logits, _ = self._call({**weights, **probes, **self._lr_of_layers(lr)}, inputs, extra)
        return cross_entropy(logits, labels), accuracy(logits, labels)

    def _lr_of_layers(self, lr: torch.Tensor) -> Weights:
        return {f"{name}.learning_rate": lr for name in self.sizes}

    def _call(self, weights: Weights, inputs: torch.Tensor, extra: Weights) -> tuple[torch.Tensor, Weights]:
        """Return the logits, and the inputs of the layers in dual form."""
        options = {"part": "classify"} if self.encoder_is_fixed else {"gate": extra.get("gate")}
        logits = functional_call(self.net, weights, (inputs,), options)
        return logits, {name: self._dual(name).take_seen() for name in self.sizes}

    def _dual(self, name: str) -> DualLayer:
        layer = self.net.get_submodule(name)
        assert isinstance(layer, DualLayer)
        return layer


def unsupported(model: MetaModel) -> str:
    """Say why an episode of this model is no function of its weights alone, or return an empty string."""
    name = next((name for name, _ in model.named_buffers()), None)
    return f"it has state that an episode would change ({name})" if name else ""


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)


def skeleton(model: MetaModel, linears: Iterable[str], plain_pools: bool) -> MetaModel:
    """Return a copy of a model without its weights, the named Linear layers in dual form.

    plain_pools: write max-pooling out. Under torch.compile on a CPU, PyTorch gets its gradient in front of a flattening
    wrong (torch 2.13; tests/meta/test_functional_episode.py has the case).
    """
    net = copy.deepcopy(model)
    for name in linears:
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        net.set_submodule(name, DualLayer(layer))
    for name, layer in list(net.named_modules()) if plain_pools else ():
        if isinstance(layer, nn.MaxPool2d) and not layer.ceil_mode and _pair(layer.dilation) == (1, 1):
            net.set_submodule(name, PlainMaxPool(layer))
    return net.to("meta")


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class CompiledEngine(CheckedEpisodes):
    """Compiles at its first episode, which takes a minute; what it then gets wrong, the fast engine goes on with."""

    name = "compiled"

    def __init__(self, model: MetaModel, inner_names: list[str], inner: InnerOptimizer) -> None:
        if reason := unsupported(model):
            message = f"the compiled engine cannot run this model: {reason}; use the fast engine"
            raise ValueError(message)
        fast = FastEngine(model, inner_names, inner)
        compiled = FunctionalEpisode(model, inner_names, inner, compiled=True)
        super().__init__(lambda episode: compiled.run(dict(model.named_parameters()), episode), fast.run)


def missing_compiler() -> str:
    """Say what torch.compile would miss on a GPU, or return an empty string."""
    return "" if importlib.util.find_spec("triton") else "triton is not installed"
