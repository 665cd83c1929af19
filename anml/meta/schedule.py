"""Optimizers and schedules of torch by the names that a config gives them."""

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, ReduceLROnPlateau

from anml.config.binding import nearest
from anml.config.training import TrainConfig
from anml.errors import ConfigError

# What they raise when they are made, or first stepped, with arguments that make no sense.
BAD_ARGUMENTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def make_by_name(module: Any, base: type, key: str, name: str, first: Any, arguments: dict[str, Any]) -> Any:
    """Make an optimizer or a schedule by its name in torch. Raises ConfigError naming what is wrong."""
    kinds = {
        own: kind
        for own, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base and not own.startswith("_")
    }
    if name not in kinds:
        message = f"{key}: torch has no {name!r}{nearest(name, kinds) or '; it has: ' + ', '.join(sorted(kinds))}"
        raise ConfigError(message)
    try:
        return kinds[name](first, **arguments)
    except BAD_ARGUMENTS as error:
        message = f"{key}_args: {name} does not take {arguments}: {error}"
        raise ConfigError(message) from None


# Schedules of the learning rate: any of torch.optim.lr_scheduler by its name in a config.


def make_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Return the schedule of i.i.d. training that a config names, or a constant one. Raises ConfigError."""
    if config.lr_scheduler is None:
        return ConstantLR(optimizer, factor=1.0)
    return _schedule("lr_scheduler", config.lr_scheduler, config.lr_scheduler_args, optimizer, "epoch")


def outer_lrs(config: TrainConfig) -> list[float]:
    """Return the outer learning rate of every episode, or nothing where it is outer_lr throughout.

    They are those that torch's own optimizer would have. Raises ConfigError.
    """
    name, arguments = config.outer_lr_scheduler, config.outer_lr_scheduler_args or {}
    if name is None:
        return []
    dummy = torch.optim.Adam([torch.zeros(1)], lr=config.outer_lr)
    schedule = _schedule("outer_lr_scheduler", name, arguments, dummy, "episode")
    dummy.step()  # Torch warns of a schedule that goes on before the optimizer has; once is enough.
    rates = []
    for episode in range(config.total_steps):
        try:
            if episode:
                schedule.step()
        except BAD_ARGUMENTS as error:
            message = f"outer_lr_scheduler_args: {name} with {arguments} fails at episode {episode}: {error}"
            raise ConfigError(message) from None
        rates.append(_rate(dummy, f"{name} with {arguments}", episode))
    return rates


def _rate(dummy: torch.optim.Adam, what: str, episode: int) -> float:
    """Return the rate that a schedule has come to. Raises ConfigError for one that makes no sense."""
    [group] = dummy.param_groups
    if group["betas"] != dummy.defaults["betas"]:
        message = f"outer_lr_scheduler_args: {what} changes Adam's betas; only the rate follows a schedule here: "
        raise ConfigError(message + "add cycle_momentum: false")
    rate = float(group["lr"])
    if not 0 <= rate < math.inf:
        message = f"outer_lr_scheduler_args: {what} gives the rate {rate} at episode {episode}"
        raise ConfigError(message)
    return rate


def _schedule(
    key: str, name: str, arguments: dict[str, Any], optimizer: torch.optim.Optimizer, unit: str
) -> LRScheduler:
    schedule = make_by_name(torch.optim.lr_scheduler, LRScheduler, key, name, optimizer, arguments)
    if isinstance(schedule, ReduceLROnPlateau):
        message = f"{key}: ReduceLROnPlateau needs a validation loss; use one that depends on the {unit} alone"
        raise ConfigError(message)
    return schedule
