"""The small interface that every training engine has."""

from collections.abc import Sequence
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
    # What a user should know beside the choice itself, such as a fallback; it may change at the first episode.
    note: str

    def run(self, episode: Episode) -> EpisodeOutcome:
        """Return loss, accuracy and gradients of one episode."""
        ...


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the fraction of right predictions, a zero-dimensional float tensor."""
    return (logits.argmax(dim=1) == labels).float().mean()


# A relative error of gradients that no rounding in float32 explains; mistakes of PyTorch were 1e-2 and more.
_TOLERANCE = 5e-3


def disagreement(found: Sequence[EpisodeOutcome], expected: Sequence[EpisodeOutcome]) -> str:
    """Say where gradients differ by more than rounding, or return an empty string. Reads values back: once only."""
    for one, other in zip(found, expected, strict=True):
        norms = {name: gradient.norm() for name, gradient in other.gradients.items()}
        # Against all of them together as well: a gradient that is truly zero is noise in either.
        floor = 0.01 * torch.stack(list(norms.values())).norm()
        for name, gradient in other.gradients.items():
            error = float((one.gradients[name] - gradient).norm() / torch.maximum(norms[name], floor))
            if not error <= _TOLERANCE and bool(gradient.isfinite().all()):
                return f"its gradient of {name} is off by {error:.1%}, a mistake of this PyTorch"
    return ""
