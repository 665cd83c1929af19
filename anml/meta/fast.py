"""The fast engine: exact second-order gradients, at a fraction of the reference's cost, for every model.

It differentiates only what the inner loop moves step by step (the reference asks for gradients of everything, at a cost
that grows with the square of the steps), computes what does not depend on the fast weights (the gate, or a whole frozen
encoder) once for all images of the episode, and lets Linear layers learn in dual form (`DualLinear`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from anml.config.methods import InnerOptimizer
from anml.data.episodes import Episode
from anml.meta.engine import EpisodeOutcome, differentiate
from anml.meta.inner_steps import InnerSteps, Weights
from anml.models.blocks import has_batch_norm
from anml.models.meta_model import MetaModel, belongs_to


class DualLinear:
    """The fast weights of one Linear layer, applied through a forward hook; no step copies the weight matrix.

    After steps s < t with learning rate a, inputs x_s and output gradients d_s, the layer's output for an input x is
    W0 x + b0 - a * sum_s d_s (x_s . x + 1), because SGD on W adds -a d_s x_s^T and SGD on b adds -a d_s. So the fast
    weights of a 1000 x 2304 layer are 20 pairs of vectors instead of 20 matrices.

    With momentum m, step s has moved the weights by -a d_s x_s^T once for each step since, each time m as far: its part
    of the sum counts 1 + m + ... + m^(t-s-1) times (`counts`). With learned rates, weights and bias have an a each.
    """

    def __init__(self, inner: InnerSteps, name: str, has_bias: bool) -> None:
        self.inner, self.has_bias = inner, has_bias
        self.lr, self.weight_lr, self.bias_lr = inner.lr, None, 1
        if inner.rates:  # Then these are the rates, instead of a common one for the whole sum.
            self.lr, self.weight_lr, self.bias_lr = 1, inner.rate(f"{name}.weight"), inner.rate(f"{name}.bias")
        self.counts: torch.Tensor | None = None
        self.inputs: list[torch.Tensor] = []
        self.deltas: list[torch.Tensor] = []
        self.last_input: torch.Tensor | None = None
        self.last_output: torch.Tensor | None = None

    def hook(self, _: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        """Add to the slow weights' output [n, out] what the steps so far contribute."""
        x = args[0]
        if self.inputs:
            similarity = x @ torch.cat(self.inputs).T
            if self.weight_lr is not None:
                similarity = self.weight_lr * similarity
            if self.has_bias:
                similarity = similarity + self.bias_lr
            if self.counts is not None:
                similarity = similarity * self.counts
            output = output - self.lr * (similarity @ torch.cat(self.deltas))
        self.last_input, self.last_output = x, output
        return output

    def step(self, delta: torch.Tensor) -> None:
        """Take one SGD step, given the loss's gradient [n, out] with respect to the last output."""
        assert self.last_input is not None
        self.inputs.append(self.last_input)
        self.deltas.append(delta)
        if self.inner.momentum:
            latest = delta.new_ones(len(delta))
            self.counts = latest if self.counts is None else torch.cat([1 + self.inner.momentum * self.counts, latest])


@contextmanager
def dual_linears(layers: dict[str, nn.Linear], inner: InnerSteps) -> Iterator[list[DualLinear]]:
    """Let Linear layers learn in dual form for the length of an episode."""
    duals = [DualLinear(inner, name, layer.bias is not None) for name, layer in layers.items()]
    handles = [layer.register_forward_hook(dual.hook) for layer, dual in zip(layers.values(), duals, strict=True)]
    try:
        yield duals
    finally:
        for handle in handles:
            handle.remove()


def fast_linears(model: MetaModel, inner_names: set[str]) -> dict[str, nn.Linear]:
    """Return the Linear layers all of whose parameters the inner loop moves."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and {f"{name}.{part}" for part, _ in module.named_parameters()} <= inner_names
    }


def moves_linears_alone(model: MetaModel, inner_names: list[str]) -> bool:
    """Say whether the inner loop moves whole Linear layers and nothing else, as that of OML does."""
    linears = fast_linears(model, set(inner_names))
    return set(inner_names) == {f"{n}.{part}" for n, layer in linears.items() for part, _ in layer.named_parameters()}


class FastEngine:
    name = "fast"
    note = ""

    def __init__(self, model: MetaModel, inner_names: list[str], inner: InnerOptimizer) -> None:
        self.model, self.inner = model, InnerSteps(model, inner_names, inner)
        self.linears = fast_linears(model, set(inner_names))
        in_dual_form = {f"{name}.{part}" for name in self.linears for part in ("weight", "bias")}
        self.fast_names = [name for name in inner_names if name not in in_dual_form]
        # A BatchNorm makes an image's features depend on the images beside it: nothing can be computed beforehand.
        moves_head_alone = all(belongs_to(name, model.head_prefix) for name in inner_names)
        self.encoder_is_fixed = moves_head_alone and not has_batch_norm(model)
        self.gate_is_fixed = not any(belongs_to(name, model.gate_prefix) for name in inner_names)

    def run(self, episode: Episode) -> EpisodeOutcome:
        slow: Weights = dict(self.model.named_parameters())
        fast: Weights = {name: slow[name] for name in self.fast_names}
        velocity: Weights = {}
        images, options = self._prepare(episode.images)
        with dual_linears(self.linears, self.inner) as duals:
            for index in episode.support_index:
                logits = self._call(fast, images[index], _rows(options, index))
                fast = self._step(fast, velocity, duals, cross_entropy(logits, episode.labels[index]))
            query = slice(episode.query_start, None)
            logits, labels = self._call(fast, images[query], _rows(options, query)), episode.labels[query]
        return differentiate(logits, labels, slow | self.inner.rates)

    def _prepare(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        """Compute once what the inner loop does not change: the features [M, d], or else the gate [M, d]."""
        if self.encoder_is_fixed:
            return self.model(images, part="encode"), {"part": "classify"}
        return images, {"gate": self.model(images, part="modulate") if self.gate_is_fixed else None}

    def _call(self, fast: Weights, inputs: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        return functional_call(self.model, fast, (inputs,), options)

    def _step(self, fast: Weights, velocity: Weights, duals: list[DualLinear], loss: torch.Tensor) -> Weights:
        """Take one differentiable SGD step; return the weights after it, and change `velocity`."""
        outputs = [dual.last_output for dual in duals if dual.last_output is not None]
        gradients = torch.autograd.grad(loss, [*fast.values(), *outputs], create_graph=True)
        for dual, delta in zip(duals, gradients[len(fast) :], strict=True):
            dual.step(delta)
        return {
            name: fast[name] - self.inner.rate(name) * self.inner.direction(velocity, name, gradient)
            for name, gradient in zip(fast, gradients, strict=False)
        }


def _rows(options: dict[str, Any], index: torch.Tensor | slice) -> dict[str, Any]:
    return {key: value[index] if isinstance(value, torch.Tensor) else value for key, value in options.items()}
