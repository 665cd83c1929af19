"""An exponential moving average of a model's weights over its updates (after Polyak and Juditsky 1992)."""

import copy
from collections.abc import Sequence

import torch

from anml.models.meta_model import MetaModel


class WeightAverage:
    """The average of a model that is updated in place; `model` is a model of its own, which holds it.

    It begins as the model given (an average of before, where a training goes on; `updates` are those it has). In it is
    all floating-point state, the running statistics of a BatchNorm too; integer buffers are copied.
    """

    def __init__(self, source: MetaModel, decay: float, updates: int = 0) -> None:
        self.decay, self.updates = decay, updates
        self.model = copy.deepcopy(source)
        # Tensors, not names: an update costs a GPU a few launches for all of them, and nothing waits for it.
        pairs = list(zip(self.model.state_dict().values(), source.state_dict().values(), strict=True))
        self.averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self.copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    def update(self) -> None:
        """Take in the weights after an update of theirs: average = d * average + (1 - d) * weights.

        d = min(decay, (1 + n) / (10 + n)) at the n-th update: a short memory at first, for the initial weights to be
        forgotten (the warm-up of TensorFlow's ExponentialMovingAverage with num_updates).
        """
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(*_columns(self.averaged), 1 - decay)
        if self.copied:
            torch._foreach_copy_(*_columns(self.copied))


def _columns(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [average for average, _ in pairs], [weights for _, weights in pairs]
