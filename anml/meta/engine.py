"""The small interface that every training engine has."""

from typing import NamedTuple, Protocol

import torch

from anml.data.episodes import Episode


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


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the fraction of right predictions, a zero-dimensional float tensor."""
    return (logits.argmax(dim=1) == labels).float().mean()
