"""One meta-update: re-draw the output rows of the new classes, run the episode, update with Adam."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler

from anml.config.training import LoboScale, TrainConfig
from anml.data.episodes import Episode
from anml.errors import ConfigError
from anml.meta.engine import Engine, EpisodeOutcome, autocast
from anml.meta.inner_steps import learned_rates
from anml.models.heads import OutputLayer
from anml.models.meta_model import MetaModel, draw_kaiming, select_names
from anml.optim import BAD_ARGUMENTS, Adam, schedule_by_name
from anml.rng import torch_generator


class OuterStep:
    """What surrounds an episode: the lobotomy before it, the outer optimizer after. `model` is updated in place.

    rates: learned rates of the inner loop, which are updated too.
    """

    def __init__(
        self, config: TrainConfig, model: MetaModel, seed: int, rates: Mapping[str, torch.Tensor] = MappingProxyType({})
    ) -> None:
        self.config, self.model, self.seed = config, model, seed
        names = select_names(model, config.outer_params)
        self.outer: dict[str, torch.Tensor] = {**{name: model.get_parameter(name) for name in names}, **rates}
        self.optimizer = Adam(list(self.outer.values()), lr=config.outer_lr, fused=True)
        self.lrs = outer_lrs(config)
        self.lr_on_device: torch.Tensor | None = None

    def keep_lr_on_device(self) -> None:
        """Let Adam read a scheduled learning rate from the device, for an update that is captured once and replayed."""
        if self.lrs:
            # float32, as the fused kernel takes it.
            self.lr_on_device = torch.zeros((), dtype=torch.float32, device=self.model.head.weight.device)

    def set_lr(self, index: int) -> None:
        """Set the outer learning rate of episode `index`; a loaded checkpoint may have brought another one."""
        for group in self.optimizer.param_groups if self.lrs else ():
            lr = self.lrs[index]
            group["lr"] = lr if self.lr_on_device is None else self.lr_on_device.fill_(lr)

    def finish(self, gradients: dict[str, torch.Tensor]) -> None:
        """Clip the gradients (in place) and update the model and the rates."""
        for name, parameter in self.outer.items():
            # Fused Adam ignores strides without an error (torch 2.13).
            parameter.grad = gradients[name].contiguous()
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.outer.values(), self.config.max_grad_norm)
        if self.config.on_divergence == "skip":
            norms = torch.stack([gradients[name].norm() for name in self.outer])
            # Where this is 1, fused Adam changes nothing. No host waits for it, so that a graph may hold it.
            self.optimizer.found_inf = 1 - norms.isfinite().all().float()  # type: ignore[attr-defined]
        self.optimizer.step()


class MetaStep(OuterStep):
    """A whole update by an engine."""

    def __init__(self, config: TrainConfig, model: MetaModel, engine: Engine, seed: int) -> None:
        super().__init__(config, model, seed, learned_rates(engine))
        self.engine = engine

    def run(self, episode: Episode) -> EpisodeOutcome:
        """Run an episode by the engine, in the precision of the config."""
        with autocast(self.config.precision, episode.images.device):
            return self.engine.run(episode)

    def update(self, episode: Episode, index: int) -> EpisodeOutcome:
        """Run the episode with this index and update the model."""
        self.set_lr(index)
        if self.config.lobotomize:
            lobotomize(self.model.head, episode.new_classes, torch_generator(self.seed, "lobotomy", index))
        outcome = self.run(episode)
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


def make_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Return the schedule of i.i.d. training that a config names, or a constant one. Raises ConfigError."""
    if config.lr_scheduler is None:
        return ConstantLR(optimizer, factor=1.0)
    return schedule_by_name("lr_scheduler", config.lr_scheduler, config.lr_scheduler_args, optimizer, "epoch")


def outer_lrs(config: TrainConfig) -> list[float]:
    """Return the outer learning rate of every episode by torch's schedule; nothing without one. Raises ConfigError."""
    name, arguments = config.outer_lr_scheduler, config.outer_lr_scheduler_args or {}
    if name is None:
        return []
    dummy = Adam([torch.zeros(1)], lr=config.outer_lr)
    schedule = schedule_by_name("outer_lr_scheduler", name, arguments, dummy, "episode")
    dummy.step()  # Torch warns of a schedule that goes on before the optimizer has; once is enough.
    what = f"outer_lr_scheduler_args: {name} with {arguments}"
    [group] = dummy.param_groups
    lrs = []
    for episode in range(config.total_steps):
        try:
            if episode:
                schedule.step()
        except BAD_ARGUMENTS as error:
            message = f"{what} fails at episode {episode}: {error}"
            raise ConfigError(message) from None
        if group["betas"] != dummy.defaults["betas"]:
            message = f"{what} changes Adam's betas; only the rate follows a schedule: add cycle_momentum: false"
            raise ConfigError(message)
        lrs.append(float(group["lr"]))
        if not 0 <= lrs[-1] < math.inf:
            message = f"{what} gives the rate {lrs[-1]} at episode {episode}"
            raise ConfigError(message)
    return lrs
