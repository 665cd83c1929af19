"""Training methods without the second-order gradient, for comparison.

`meta-first-order`: the gradient at the fast weights is used as if it were the meta-gradient (FOMAML, Finn et al. 2017,
section 5.2). `sequential_episodic`: the same episodes, but the model keeps the weights of the inner loop and is then
updated on the meta loss: ordinary sequential learning, nothing is differentiated through it.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from anml.data.episodes import Episode
from anml.meta.engine import EpisodeOutcome, accuracy
from anml.models.meta_model import MetaModel
from anml.native.blocks import with_native_blocks
from anml.native.build import available


class FirstOrderEngine:
    """Plain SGD in the inner loop, plain gradient after it; `native`: with blocks in C++ where the model has such."""

    name = "first-order"

    def __init__(
        self, model: MetaModel, inner_names: list[str], inner_lr: float, keep_fast_weights: bool, native: bool = False
    ) -> None:
        self.model = model
        self.classify, self.note = _native(model) if native else (model, "")
        self.inner = [model.get_parameter(name) for name in inner_names]
        self.inner_lr = inner_lr
        self.keep_fast_weights = keep_fast_weights

    @property
    def is_native(self) -> bool:
        """Whether blocks run in C++."""
        return self.classify is not self.model

    def run(self, episode: Episode) -> EpisodeOutcome:
        """Return loss, accuracy and gradients; unless fast weights are kept, the weights are put back."""
        before = [] if self.keep_fast_weights else [p.detach().clone() for p in self.inner]
        for index in episode.support_index:
            self._sgd_step(cross_entropy(self.classify(episode.images[index]), episode.labels[index]))
        query = slice(episode.query_start, None)
        logits, labels = self.classify(episode.images[query]), episode.labels[query]
        loss = cross_entropy(logits, labels)
        parameters = dict(self.model.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for parameter, value in zip(self.inner, before, strict=not self.keep_fast_weights):
                parameter.copy_(value)
        return EpisodeOutcome(loss.detach(), accuracy(logits, labels), dict(zip(parameters, gradients, strict=True)))

    def _sgd_step(self, loss: torch.Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.inner)
        with torch.no_grad():
            for parameter, gradient in zip(self.inner, gradients, strict=True):
                parameter.add_(gradient, alpha=-self.inner_lr)


def _native(model: MetaModel) -> tuple[nn.Module, str]:
    """Return what classifies a model's images fastest, and a note of it."""
    native = with_native_blocks(model)
    if native is None:
        return model, ""
    # In this order: the kernels are only built for a model that can use them.
    found = available("train")
    return (native, "native blocks") if found else (model, f"without native blocks: {found.reason}")
