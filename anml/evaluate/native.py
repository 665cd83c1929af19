"""Learners for CPUs with kernels in C++ (anml/native): the same steps as the reference learner, faster.

Convolution blocks run natively. A Linear layer's gradient for one example is an outer product: it is never written
down, and every weight is read and written once a step.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from anml.evaluate.learner import OneTrajectory, ReferenceLearner, learns_linear_head
from anml.evaluate.prepared_run import PreparedRun, classify
from anml.native import available, kernels
from anml.native.blocks import use_native_blocks
from anml.optim import Adam

# torch.optim.Adam's default.
_EPSILON = 1e-8


class NativeHeadLearner(OneTrajectory):
    """The output layer alone learns: one call takes many steps."""

    def __init__(self, prepared: PreparedRun, lr: float) -> None:
        super().__init__(prepared)
        self.steps, self.adam = 0, (lr, *prepared.betas, _EPSILON)
        self.weight, self.bias = (_with_moments(parameter) for parameter in self.model.head.parameters())

    def learn_each(self, first: int, last: int) -> None:
        inputs = self.prepared.train_inputs[first:last].contiguous()
        labels = self.prepared.train_labels[first:last].contiguous()
        kernels("evaluate").learn_head(self.weight, self.bias, inputs, labels, self.steps, *self.adam)
        self.steps += last - first


class NativeLearner(OneTrajectory):
    """Weights of Linear layers learn natively, all else by autograd and torch's Adam."""

    def __init__(self, prepared: PreparedRun, lr: float) -> None:
        super().__init__(prepared)
        use_native_blocks(self.model)
        self.steps, self.adam = 0, (lr, *prepared.betas, _EPSILON)
        trained = ((name, m) for name, m in self.model.named_modules() if f"{name}.weight" in prepared.trained_names)
        # A subclass may do something else with its weight.
        layers = {name: layer for name, layer in trained if type(layer) is nn.Linear}
        others = [name for name in prepared.trained_names if name.removesuffix(".weight") not in layers]
        self.others = [self.model.get_parameter(name).requires_grad_(True) for name in others]
        self.optimizer = Adam(self.others, lr, prepared.betas, fused=True) if others else None
        self.linears = [_OuterProductLinear(layer) for layer in layers.values()]

    def learn_each(self, first: int, last: int) -> None:
        for step in range(first, last):
            self._step(slice(step, step + 1))

    def _step(self, example: slice) -> None:
        logits = classify(self.model, self.prepared.train_inputs[example], self.prepared.stage)
        loss = cross_entropy(logits, self.prepared.train_labels[example])
        gradients = torch.autograd.grad(loss, [*self.others, *(linear.output for linear in self.linears)])
        for parameter, gradient in zip(self.others, gradients, strict=False):
            parameter.grad = gradient
        if self.optimizer is not None:
            self.optimizer.step()
        for linear, grad_out in zip(self.linears, gradients[len(self.others) :], strict=True):
            linear.update(grad_out, self.steps, self.adam)
        self.steps += 1


class NativeBatchLearner(ReferenceLearner):
    """Learns in batches, with native blocks."""

    def __init__(self, prepared: PreparedRun, lr: float) -> None:
        super().__init__(prepared, lr)
        use_native_blocks(self.model)


class _OuterProductLinear:
    """Updates the weight of a Linear layer natively; autograd computes no gradient of it."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weight = _with_moments(layer.weight)
        layer.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        self.input = inputs[0]
        # Where no layer before this one learns, the output would otherwise have no gradient.
        self.output = output if output.requires_grad or not torch.is_grad_enabled() else output.requires_grad_()
        return self.output

    def update(self, grad_out: torch.Tensor, steps: int, adam: tuple[float, ...]) -> None:
        """Take a step of Adam (lr, betas, epsilon), given the loss's gradient [1, out] at the output."""
        row, grad_out = self.input.detach()[0].contiguous(), grad_out[0].contiguous()
        kernels("evaluate").update_outer(self.weight, grad_out, row, steps, *adam)


def native_learner(prepared: PreparedRun, lr: float) -> NativeHeadLearner | NativeLearner:
    """Return the learner of one example at a time that suits a run."""
    is_head = learns_linear_head(prepared.model, prepared.stage, prepared.trained_names)
    return (NativeHeadLearner if is_head else NativeLearner)(prepared, lr)


def unsupported(device: torch.device, dtype: torch.dtype) -> str:
    """Say why native kernels cannot be used, or return an empty string when they can."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.float64):
        return "it is not in float32 or float64 on a CPU"
    return available("evaluate").reason or available("train").reason


def _with_moments(parameter: torch.Tensor) -> list[torch.Tensor]:
    """Return a parameter's own memory, and that of its two moments."""
    value = parameter.detach()
    assert value.is_contiguous()
    return [value, torch.zeros_like(value), torch.zeros_like(value)]
