"""Training methods without the second-order gradient, for comparison.

`meta-first-order`: the gradient at the fast weights is used as if it were the meta-gradient (FOMAML, Finn et al. 2017,
section 5.2). `sequential_episodic`: the same episodes, but the model keeps the weights of the inner loop and is then
updated on the meta loss: ordinary sequential learning, nothing is differentiated through it.
"""

import torch
from torch.nn.functional import cross_entropy

from anml.data.episodes import Episode
from anml.meta.engine import EpisodeOutcome, accuracy
from anml.models.meta_model import MetaModel


class FirstOrderEngine:
    """Plain SGD in the inner loop, plain gradient after it."""

    name = "first-order"
    note = ""

    def __init__(self, model: MetaModel, inner_names: list[str], inner_lr: float, keep_fast_weights: bool) -> None:
        self.model = model
        self.inner = [model.get_parameter(name) for name in inner_names]
        self.inner_lr = inner_lr
        self.keep_fast_weights = keep_fast_weights

    def run(self, episode: Episode) -> EpisodeOutcome:
        """Return loss, accuracy and gradients; unless fast weights are kept, the weights are put back."""
        before = [] if self.keep_fast_weights else [p.detach().clone() for p in self.inner]
        for index in episode.support_index:
            self._sgd_step(cross_entropy(self.model(episode.images[index]), episode.labels[index]))
        query = slice(episode.query_start, None)
        logits, labels = self.model(episode.images[query]), episode.labels[query]
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
                parameter -= self.inner_lr * gradient
