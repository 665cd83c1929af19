"""The small interface that every training engine has, and the choice of one."""

from typing import NamedTuple, Protocol

import torch

from anml.config.training import TrainConfig
from anml.data.episodes import Episode
from anml.models.meta_model import MetaModel


class EpisodeOutcome(NamedTuple):
    """What one episode yields.

    loss, accuracy: of the meta loss's examples, zero-dimensional tensors (not read back: that would stall a GPU).
    gradients: of the loss with respect to the weights before the inner loop, by parameter name.
    """

    loss: torch.Tensor
    accuracy: torch.Tensor
    gradients: dict[str, torch.Tensor]


class Engine(Protocol):
    """Runs the inner loop of an episode and differentiates what follows from it. Changes no weights."""

    name: str

    def run(self, episode: Episode) -> EpisodeOutcome:
        """Return loss, accuracy and gradients of one episode."""
        ...


def make_engine(config: TrainConfig, model: MetaModel, inner_names: list[str]) -> Engine:
    """Return the engine that a config asks for; `auto` is the fast one."""
    if config.train_method in ("meta-first-order", "sequential_episodic"):
        from anml.meta.first_order import FirstOrderEngine

        keep = config.train_method == "sequential_episodic"
        return FirstOrderEngine(model, inner_names, config.inner_lr, keep_fast_weights=keep)
    if config.engine == "reference":
        from anml.meta.reference import ReferenceEngine  # Only here: `higher` is not needed by the others.

        return ReferenceEngine(model, inner_names, config.inner_lr)
    from anml.meta.fast import FastEngine

    return FastEngine(model, inner_names, config.inner_lr)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the fraction of right predictions, a zero-dimensional float tensor."""
    return (logits.argmax(dim=1) == labels).float().mean()
