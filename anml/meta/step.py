"""One meta-update: re-draw the output rows of the new classes, run the episode, update with Adam."""

import torch
from torch import nn

from anml.config.training import LoboScale, TrainConfig
from anml.data.episodes import Episode
from anml.meta.engine import Engine, EpisodeOutcome
from anml.meta.schedule import outer_lrs
from anml.models.heads import OutputLayer
from anml.models.meta_model import MetaModel, draw_kaiming, select_names
from anml.rng import torch_generator


class OuterStep:
    """What surrounds an episode: the lobotomy before it, the outer optimizer after. `model` is updated in place."""

    def __init__(self, config: TrainConfig, model: MetaModel, seed: int) -> None:
        self.config = config
        self.model = model
        self.seed = seed
        self.outer = {name: model.get_parameter(name) for name in select_names(model, config.outer_params)}
        self.optimizer = torch.optim.Adam(list(self.outer.values()), lr=config.outer_lr, fused=True)
        self.lrs = outer_lrs(config)
        self.lr_on_device: torch.Tensor | None = None

    def keep_lr_on_device(self) -> None:
        """Let Adam read a scheduled learning rate from the device, for an update that is captured once and replayed."""
        if self.lrs:
            # float32, as the fused kernel takes it.
            device = next(iter(self.outer.values())).device
            self.lr_on_device = torch.zeros((), dtype=torch.float32, device=device)

    def set_lr(self, index: int) -> None:
        """Set the outer learning rate of episode `index`; a loaded checkpoint may have brought another one."""
        if not self.lrs:
            return
        lr: float | torch.Tensor = self.lrs[index]
        if self.lr_on_device is not None:
            lr = self.lr_on_device.fill_(lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def begin(self, new_classes: tuple[int, ...], index: int) -> None:
        """Re-draw the output rows of the classes that episode `index` is about to teach."""
        if self.config.lobotomize:
            lobotomize(self.model.head, new_classes, torch_generator(self.seed, "lobotomy", index))

    def finish(self, gradients: dict[str, torch.Tensor]) -> None:
        """Clip the gradients (in place) and update the model."""
        for name, parameter in self.outer.items():
            # Fused Adam ignores strides without an error (torch 2.13).
            parameter.grad = gradients[name].contiguous()
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.outer.values(), self.config.max_grad_norm)
        self.optimizer.step()


class MetaStep(OuterStep):
    """A whole update by an engine."""

    def __init__(self, config: TrainConfig, model: MetaModel, engine: Engine, seed: int) -> None:
        super().__init__(config, model, seed)
        self.engine = engine

    def update(self, episode: Episode, index: int) -> EpisodeOutcome:
        """Run the episode with this index and update the model."""
        self.set_lr(index)
        self.begin(episode.new_classes, index)
        outcome = self.engine.run(episode)
        self.finish(outcome.gradients)
        return outcome


def lobotomize(
    head: OutputLayer, classes: tuple[int, ...], generator: torch.Generator, scale: LoboScale = "each_row"
) -> None:
    """Re-draw the weight rows of classes, so that nothing of them can be remembered.

    Of k rows with n weights, `each_row` is drawn as kaiming_normal of a 1 x n matrix, with a standard deviation of
    sqrt(2 / n); `all_rows` as that of one 1 x k x n tensor, with sqrt(2 / (k n)), as ANML's reference implementation
    draws several. Biases stay. So does the temperature of a metric head: it belongs to no class.
    """
    rows = draw_rows(head, classes, generator, scale)
    with torch.no_grad():
        head.weight[list(classes)] = rows.to(head.weight)


def draw_rows(
    head: OutputLayer, classes: tuple[int, ...], generator: torch.Generator, scale: LoboScale = "each_row"
) -> torch.Tensor:
    """Draw the new weight rows of a lobotomy, float32 [classes, in], on the CPU."""
    shape = (len(classes), head.in_features)
    return draw_kaiming((1, *shape), generator)[0] if scale == "all_rows" else draw_kaiming(shape, generator)
