"""Learners for CPUs with kernels in C++ (native/adam.h): the same steps, with each weight read and written once.

Both treat a Linear layer's gradient for one example as what it is, an outer product, and never write it down.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from anml.evaluate.learner import OneTrajectory
from anml.evaluate.stages import classify
from anml.evaluate.trial import Trial
from anml.native.build import available, kernels

# Weights of Linear layers times steps: a step saves half a nanosecond a weight, building the kernels takes 20 seconds.
_PAYS_FROM = 4e10
# torch.optim.Adam's defaults: beta1, beta2, epsilon.
_ADAM = (0.9, 0.999, 1e-8)


class NativeHeadLearner(OneTrajectory):
    """The output layer alone learns: a call takes many steps."""

    name = "native"

    def __init__(self, trial: Trial, learning_rate: float) -> None:
        super().__init__(trial, learning_rate)
        self.steps = 0
        self.weight, self.bias = (_with_moments(parameter) for parameter in self.model.head.parameters())

    def learn_each(self, first: int, last: int) -> None:
        """Take a step on each example."""
        inputs, labels = (part[first:last].contiguous() for part in (self.trial.train_inputs, self.trial.train_labels))
        kernels("evaluate").learn_head(self.weight, self.bias, inputs, labels, self.steps, self.rate, *_ADAM)
        self.steps += last - first


class NativeLearner(OneTrajectory):
    """Weights of Linear layers learn natively, all else by autograd and torch's Adam."""

    name = "native"

    def __init__(self, trial: Trial, learning_rate: float) -> None:
        super().__init__(trial, learning_rate)
        self.steps = 0
        layers = _linear_layers(self.model, trial)
        others = [name for name in trial.trained_names if name.removesuffix(".weight") not in layers]
        self.others = [self.model.get_parameter(name).requires_grad_(True) for name in others]
        self.optimizer = torch.optim.Adam(self.others, lr=learning_rate, fused=True) if others else None
        self.linears = [_OuterProductLinear(layer) for layer in layers.values()]

    def learn_each(self, first: int, last: int) -> None:
        """Take a step on each example."""
        for step in range(first, last):
            self._learn(slice(step, step + 1))

    def _learn(self, example: slice) -> None:
        logits = classify(self.model, self.trial.train_inputs[example], self.trial.stage)
        loss = cross_entropy(logits, self.trial.train_labels[example])
        gradients = torch.autograd.grad(loss, [*self.others, *(linear.output for linear in self.linears)])
        for parameter, gradient in zip(self.others, gradients, strict=False):
            parameter.grad = gradient
        if self.optimizer is not None:
            self.optimizer.step()
        for linear, delta in zip(self.linears, gradients[len(self.others) :], strict=True):
            linear.update(delta, self.steps, self.rate)
        self.steps += 1


class _OuterProductLinear:
    """A Linear layer, whose weight autograd is not asked about."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weight = _with_moments(layer.weight)
        layer.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        # Where nothing before it learns, autograd has no reason to come by.
        self.input = inputs[0]
        self.output = output if output.requires_grad or not torch.is_grad_enabled() else output.requires_grad_()
        return self.output

    def update(self, delta: torch.Tensor, steps: int, rate: float) -> None:
        """Take an Adam step, given the loss's gradient [1, out] at the output."""
        row, delta = self.input.detach()[0].contiguous(), delta[0].contiguous()
        kernels("evaluate").update_outer(self.weight, delta, row, steps, rate, *_ADAM)


def native_learner(trial: Trial, learning_rate: float) -> NativeHeadLearner | NativeLearner:
    """Return the native learner of a trial that `unsupported` finds no fault with."""
    whole_head = {f"{trial.model.head_layer}.{part}" for part in ("weight", "bias")}
    head_only = trial.stage == "head" and set(trial.trained_names) == whole_head
    return (NativeHeadLearner if head_only else NativeLearner)(trial, learning_rate)


def unsupported(trial: Trial) -> str:
    """Say why native kernels cannot learn a trial's sequence, or return an empty string when they can."""
    if trial.train_inputs.device.type != "cpu" or trial.train_inputs.dtype not in (torch.float32, torch.float64):
        return "it is not in float32 or float64 on a CPU"
    if not _linear_layers(trial.model, trial):
        return "no Linear layer learns"
    return available("evaluate").reason


def pays(trial: Trial, trajectories: int) -> bool:
    """Say whether a sweep is large enough to build the kernels for; not whether they are built already."""
    weights = sum(layer.weight.numel() for layer in _linear_layers(trial.model, trial).values())
    return weights * trajectories * len(trial.train_labels) >= _PAYS_FROM


def _linear_layers(model: nn.Module, trial: Trial) -> dict[str, nn.Linear]:
    """Return the Linear layers whose weight learns; a subclass may do something else with it."""
    layers = ((name, m) for name, m in model.named_modules() if f"{name}.weight" in trial.trained_names)
    return {name: layer for name, layer in layers if type(layer) is nn.Linear}


def _with_moments(parameter: torch.Tensor) -> list[torch.Tensor]:
    """Return a parameter's own memory, and that of its two moments."""
    value = parameter.detach()
    assert value.is_contiguous()
    return [value, torch.zeros_like(value), torch.zeros_like(value)]
