"""The slow and obvious engine, written with the `higher` library: the oracle that other engines are tested against."""

import higher
import torch
from torch.nn.functional import cross_entropy

from anml.data.episodes import Episode
from anml.meta.engine import EpisodeOutcome, accuracy
from anml.models.meta_model import MetaModel


class ReferenceEngine:
    """Differentiates through SGD steps that `higher` keeps the whole graph of."""

    name = "reference"
    note = ""

    def __init__(self, model: MetaModel, inner_names: list[str], inner_lr: float) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD([model.get_parameter(name) for name in inner_names], lr=inner_lr)

    def run(self, episode: Episode) -> EpisodeOutcome:
        """Return loss, accuracy and gradients of one episode."""
        names = [name for name, _ in self.model.named_parameters()]
        with higher.innerloop_ctx(self.model, self.optimizer, copy_initial_weights=False) as (net, inner):
            for index in episode.support_index:
                inner.step(cross_entropy(net(episode.images[index]), episode.labels[index]))
            query = slice(episode.query_start, None)
            logits = net(episode.images[query])
            labels = episode.labels[query]
            loss = cross_entropy(logits, labels)
            gradients = torch.autograd.grad(loss, list(self.model.parameters()))
        return EpisodeOutcome(loss.detach(), accuracy(logits, labels), dict(zip(names, gradients, strict=True)))
