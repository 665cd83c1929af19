"""One meta-update: re-draw the output rows of the new classes, run the episode, update with Adam."""

import torch
from torch import nn

from anml.config.training import TrainConfig
from anml.data.episodes import Episode
from anml.meta.engine import Engine, EpisodeOutcome
from anml.models.heads import OutputLayer
from anml.models.meta_model import MetaModel, draw_kaiming
from anml.models.parameters import select_names
from anml.rng import torch_generator


class MetaStep:
    """Holds the outer optimizer; `model` is updated in place."""

    def __init__(self, config: TrainConfig, model: MetaModel, engine: Engine, seed: int) -> None:
        self.config = config
        self.model = model
        self.engine = engine
        self.seed = seed
        self.outer = {name: model.get_parameter(name) for name in select_names(model, config.outer_params)}
        self.optimizer = torch.optim.Adam(list(self.outer.values()), lr=config.outer_lr, fused=True)

    def update(self, episode: Episode, index: int) -> EpisodeOutcome:
        """Run the episode with this index and update the model."""
        if self.config.lobotomize:
            lobotomize(self.model.head, episode.new_classes, torch_generator(self.seed, "lobotomy", index))
        outcome = self.engine.run(episode)
        for name, parameter in self.outer.items():
            parameter.grad = outcome.gradients[name]
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.outer.values(), self.config.max_grad_norm)
        self.optimizer.step()
        return outcome


def lobotomize(head: OutputLayer, classes: tuple[int, ...], generator: torch.Generator) -> None:
    """Re-draw the weight rows of classes about to be learned, so that nothing of them can be remembered.

    Each row is drawn as kaiming_normal of a 1 x n matrix; biases stay (ANML's reference implementation).
    So does the temperature of a metric head: it belongs to no class.
    """
    rows = draw_kaiming((len(classes), head.in_features), generator)
    with torch.no_grad():
        head.weight[list(classes)] = rows.to(head.weight)
