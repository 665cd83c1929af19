"""The steps of an inner loop for engines that move one parameter at a time: momentum, and rates that are learned."""

import torch

from anml.config.methods import InnerOptimizer
from anml.models.meta_model import MetaModel

Weights = dict[str, torch.Tensor]


class InnerSteps:
    """SGD at the rate of the config, or at one learned rate per parameter (a whole tensor).

    rates: with `meta-sgd` zero-dimensional tensors by `inner_lr.NAME`, which the outer loop changes in place, and of
    which an engine returns gradients beside those of the weights; else empty. Meta-SGD (Li et al. 2017, arXiv
    1707.09835) has a rate for each element, MAML++ (Antoniou et al. 2019, arXiv 1810.09502) for each layer and step.
    """

    def __init__(self, model: MetaModel, names: list[str], inner: InnerOptimizer) -> None:
        self.lr, self.momentum = inner.lr, inner.momentum
        rated, like = names if inner.learns_rates else [], model.head.weight
        self.rates: Weights = {f"inner_lr.{name}": like.new_full((), inner.lr).requires_grad_() for name in rated}

    def rate(self, name: str) -> float | torch.Tensor:
        return self.rates.get(f"inner_lr.{name}", self.lr)

    def direction(self, velocity: Weights, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """Return what a step moves a parameter along; `velocity`, empty at first, holds that of the step before.

        As in torch's SGD: v = momentum * v + gradient, and the parameter moves by -rate * v.
        """
        if not self.momentum:
            return gradient
        velocity[name] = gradient + self.momentum * velocity[name] if name in velocity else gradient
        return velocity[name]


def learned_rates(engine: object) -> Weights:
    """Return the rates that an engine learns, by name; most learn none."""
    inner = getattr(engine, "inner", None)
    return inner.rates if isinstance(inner, InnerSteps) else {}
