"""Linear layers under plain SGD in dual form: no step ever copies their weight matrix.

After steps s < t with learning rate a, inputs x_s and output gradients d_s, the layer's output for an input x is
W0 x + b0 - a * sum_s d_s (x_s . x + 1), because SGD on W adds -a d_s x_s^T and SGD on b adds -a d_s. So the fast
weights of a 1000 x 2304 layer are 20 pairs of vectors instead of 20 matrices, and autograd differentiates through
these few products.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from anml.models.meta_model import MetaModel


class DualLinear:
    """The fast weights of one Linear layer, applied through a forward hook."""

    def __init__(self, learning_rate: float, has_bias: bool) -> None:
        self.learning_rate = learning_rate
        self.has_bias = has_bias
        self.inputs: list[torch.Tensor] = []
        self.deltas: list[torch.Tensor] = []
        self.last_input: torch.Tensor | None = None
        self.last_output: torch.Tensor | None = None

    def hook(self, _: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        """Add to the slow weights' output [n, out] what the steps so far contribute."""
        x = args[0]
        if self.inputs:
            similarity = x @ torch.cat(self.inputs).T
            if self.has_bias:
                similarity = similarity + 1
            output = output - self.learning_rate * (similarity @ torch.cat(self.deltas))
        self.last_input, self.last_output = x, output
        return output

    def step(self, delta: torch.Tensor) -> None:
        """Take one SGD step, given the loss's gradient [n, out] with respect to the last output."""
        assert self.last_input is not None
        self.inputs.append(self.last_input)
        self.deltas.append(delta)


@contextmanager
def dual_linears(layers: list[nn.Linear], learning_rate: float) -> Iterator[list[DualLinear]]:
    """Let Linear layers learn in dual form for the length of an episode."""
    duals = [DualLinear(learning_rate, layer.bias is not None) for layer in layers]
    handles = [layer.register_forward_hook(dual.hook) for layer, dual in zip(layers, duals, strict=True)]
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
